#include "depthwise.h"

namespace ttac {

Lines blocked_weights(const Tensor& weights, const Window& window) {
  const std::vector<int64_t> wanted{weights.shape.empty() ? 0 : weights.shape[0], 1, window.kernel[0], window.kernel[1]};
  require(weights.shape == wanted && wanted[0] % window.block == 0, "input w: not of the shape [C, 1, kh, kw]");
  const int64_t taps = window.taps(), block = window.block;
  Lines found(wanted[0] * taps);
  for (int64_t channel = 0; channel < wanted[0]; ++channel) {
    float* to = found.data() + channel / block * taps * block + channel % block;
    for (int64_t tap = 0; tap < taps; ++tap) to[tap * block] = weights.floats()[channel * taps + tap];
  }
  return found;
}

float* scratch(int place, int64_t floats) {
  static thread_local Lines held[2];
  if (!held[place].holds(floats)) held[place] = Lines(floats);
  return held[place].data();
}

Convolution::Convolution(const Window& window_, const Tensor& weights_, const std::vector<int64_t>& shape)
    : window(window_), weights(blocked_weights(weights_, window_)) {
  require(shape.size() == 4, "input x1: not of the shape [N, C, H, W]");
  require(shape[1] == weights_.shape[0], "input w: has other channels than x1");
  rows = window.axis(0, shape[2]);
  columns = window.axis(1, shape[3]);
}

std::vector<int64_t> Convolution::outs(const std::vector<int64_t>& shape) const {
  return {shape[0], shape[1], rows.outs, columns.outs};
}

DepthwiseRows Convolution::rows_of(int64_t block, const float* in, int64_t in_first, float* out, Range range) const {
  const float* own = weights.data() + block * window.taps() * window.block;
  return {in, out, own, nullptr, rows, columns, range.first, range.last, in_first};
}

}  // namespace ttac
