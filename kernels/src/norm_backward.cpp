// NormBackward: the gradient of NormForward.
#include "norm.h"

namespace ttac {
namespace {

struct BackwardSteps {
  using Partial = Sums;
  const NormTensors& at;
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
  }

  void apply(int64_t block, const Stretch& stretch) const {
    if (!at.out) return;
    NormPiece piece = at.piece(block, stretch);
    const float count = static_cast<float>(at.layout.samples * at.layout.positions);
    for (int lane = 0; lane < kMaxBlock; ++lane) {
      const int64_t channel = block * at.settings.block + lane % at.settings.block;
      const float slope = piece.slope.value[lane];
      piece.constant.value[lane] = -slope * at.dbias.floats()[channel] / count;
      piece.linear.value[lane] = -slope * at.dscale.floats()[channel] / (count * at.deviation(channel));
    }
    instructions().norm.backward[at.du ? kStored : rule][at.settings.given](piece);
  }
};

class NormBackward : public Kernel {
 public:
  explicit NormBackward(const Attributes& attributes) : settings_(attributes) {}

  void run(const Call& call) const override {
    NormTensors at(settings_, call.input(1));
    read(call, at);
    std::vector<float> spare(2 * at.layout.channels);  // for outputs that the graph does not ask for
    at.out = call.output(0, at.x.shape);
    at.dscale = call.output(1, {at.layout.channels});
    at.dbias = call.output(2, {at.layout.channels});
    at.du = call.output(3, at.x.shape);
    if (!at.dscale) at.dscale.data = spare.data();
    if (!at.dbias) at.dbias.data = spare.data() + at.layout.channels;
    if (settings_.act >= kSilu && !at.du) at.du = at.out;  // a smooth activation costs more than a place for du
    reduce_then_apply(call, at.layout, BackwardSteps{at, rule(at)});
  }

 private:
  static void read(const Call& call, NormTensors& at) {
    at.dy = call.input(0);
    at.scale = call.input(2);
    at.bias = call.input(3);
    at.mean = call.input(4);
    at.variance = call.input(5);
    at.mask = call.input(6);
    at.residual = call.input(7);
    at.require_like_x(at.dy, "input dy: not of the shape of x");
    at.require_like_x(at.mask, "input mask: not of the shape of x");
    at.require_like_x(at.residual, "input residual: not of the shape of x");
    for (const Tensor* each : {&at.scale, &at.mean, &at.variance}) {
      at.require_channels(*each, "input scale, mean or variance: not one number for each channel");
    }
  }

  // A mask takes a byte to read; otherwise u comes from x, which is read anyway.
  int rule(const NormTensors& at) const {
    if (settings_.act == kNone) return kDirect;
    if (at.mask && (settings_.act == kRelu || settings_.act == kClip)) return kMasked;
    at.require_channels(at.bias, "input bias: not one number for each channel");
    return recomputed(settings_.act, static_cast<bool>(at.residual));
  }

  NormSettings settings_;
};

}  // namespace

// dy, x, scale, bias, mean, variance, mask, residual -> dx, dscale, dbias, du
const Operator kNormBackward(
    "NormBackward", {kTensor, kTensor, kTensor, kMaybeTensor, kTensor, kTensor, kMaybeMask, kMaybeTensor},
    {kMaybeTensor, kMaybeTensor, kMaybeTensor, kMaybeTensor}, make_kernel<NormBackward>);

}  // namespace ttac
