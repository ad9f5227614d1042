// The passes of a norm, for `reduce_then_apply`.
#pragma once
#include "norm.h"

namespace ttac {

// Moments of x, then y.
struct ForwardSteps {
  using Partial = Moments;
  NormTensors& at;

  void partial(int64_t, const Stretch& stretch, Moments& into) const {
    instructions().norm.moments(at.x.floats(stretch.offset), stretch.length, at.settings.block, into);
  }

  void join(const Moments& part, Moments& into) const { instructions().norm.join(part, into); }

  void finish(int64_t block, const Moments& found) const {
    const int64_t first = block * at.settings.block;
    for (int c = 0; c < at.settings.block; ++c) {
      const double squares = found.squares[c] < 0 ? 0 : found.squares[c];  // of constants; NaN stays
      at.mean.floats()[first + c] = static_cast<float>(found.mean[c]);
      at.variance.floats()[first + c] = static_cast<float>(squares / found.count);
    }
    at.settle(block);
  }

  void apply(int64_t block, const Stretch& stretch) const {
    const bool residual(at.residual);
    const MaskKind kind = at.bits ? kMaskBits : at.mask ? kMaskBytes : kNoMask;
    instructions().norm.forward[at.settings.act][residual][kind](at.piece(block, stretch));
  }
};

// Sums of du, then dx; the tensors are settled.
struct BackwardSteps {
  using Partial = Sums;
  NormTensors& at;
  int rule;  // of the first pass

  void partial(int64_t block, const Stretch& stretch, Sums& into) const {
    instructions().norm.sums[rule](at.piece(block, stretch), into);
  }

  void join(const Sums& part, Sums& into) const {
    for (int c = 0; c < kMaxBlock; ++c) {
      into.plain[c] += part.plain[c];
      into.centred[c] += part.centred[c];
    }
  }

  void finish(int64_t block, const Sums& found) const {
    const int64_t first = block * at.settings.block;
    for (int c = 0; c < at.settings.block; ++c) {
      at.dbias.floats()[first + c] = static_cast<float>(found.plain[c]);
      at.dscale.floats()[first + c] = static_cast<float>(found.centred[c] / at.deviation(first + c));
    }
    at.settle_gradient(block);
  }

  void apply(int64_t block, const Stretch& stretch) const {
    if (!at.out) return;
    const bool more(at.more);
    instructions().norm.backward[at.du ? kStored : rule][at.settings.given][more](at.piece(block, stretch));
  }
};

}  // namespace ttac
