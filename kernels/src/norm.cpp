#include "norm.h"

#include <cmath>

namespace ttac {
namespace {

Activation activation_of(const std::string& name) {
  constexpr const char* kNames[] = {"none", "relu", "clip", "silu", "hardswish", "gelu", "tanhgelu"};
  for (int kind = 0; kind < kActivations; ++kind) {
    if (name == kNames[kind]) return static_cast<Activation>(kind);
  }
  throw std::runtime_error("attribute act: there is no activation " + name);
}

}  // namespace

NormSettings::NormSettings(const Attributes& from, const std::string& suffix)
    : block(block_of(from)),
      epsilon(from.number(("epsilon" + suffix).c_str(), 1e-5f)),
      act(activation_of(from.text(("act" + suffix).c_str(), "none"))),
      low(from.number(("low" + suffix).c_str(), 0)),
      high(from.number(("high" + suffix).c_str(), 0)),
      given(from.text("statistics", "batch") == "given") {}

float NormTensors::deviation(int64_t channel) const {
  return std::sqrt(static_cast<float>(static_cast<double>(variance.floats()[channel]) + settings.epsilon));
}

void NormTensors::settle(int64_t block) {
  Coefficients& found = settled_[static_cast<size_t>(block)];
  for (int lane = 0; lane < kMaxBlock; ++lane) {
    const int64_t channel = block * settings.block + lane % settings.block;
    found.mean.value[lane] = mean.floats()[channel];
    found.slope.value[lane] = scale.floats()[channel] / deviation(channel);
    found.offset.value[lane] = bias ? bias.floats()[channel] : 0;
  }
}

void NormTensors::settle_all() {
  for (int64_t block = 0; block < layout.blocks; ++block) settle(block);
}

void NormTensors::settle_gradient(int64_t block) {
  Coefficients& found = settled_[static_cast<size_t>(block)];
  const float count = static_cast<float>(layout.samples * layout.positions);
  for (int lane = 0; lane < kMaxBlock; ++lane) {
    const int64_t channel = block * settings.block + lane % settings.block;
    const float slope = found.slope.value[lane];
    found.constant.value[lane] = -slope * dbias.floats()[channel] / count;
    found.linear.value[lane] = -slope * dscale.floats()[channel] / (count * deviation(channel));
  }
}

NormPiece NormTensors::piece(int64_t block, const Stretch& stretch) const {
  NormPiece piece{};
  static_cast<Coefficients&>(piece) = settled_[static_cast<size_t>(block)];
  piece.block = settings.block;
  piece.low = settings.low;
  piece.high = settings.high;
  piece.x = x.floats(stretch.offset);
  piece.residual = residual.floats(stretch.offset);
  piece.dy = dy.floats(stretch.offset);
  piece.more = more.floats(stretch.offset);
  piece.out = out.floats(stretch.offset);
  piece.mask = mask.bytes(stretch.offset);
  if (bits) piece.bits = bits.bytes(stretch.offset / layout.run * ((layout.run + 7) / 8) + stretch.offset % layout.run / 8);
  piece.du = du.floats(stretch.offset);
  piece.length = stretch.length;
  return piece;
}

int NormTensors::rule() const {
  if (settings.act == kNone) return kDirect;
  const bool masked = settings.act == kRelu || settings.act == kClip;
  if (bits && masked) return kMaskedBits;
  if (mask && masked) return kMasked;
  require_channels(bias, "input bias: not one number for each channel");
  return recomputed(settings.act, static_cast<bool>(residual));
}

void NormTensors::require_channels(const Tensor& tensor, const char* message) const {
  require(tensor && tensor.shape.size() == 1 && tensor.shape[0] == layout.channels, message);
}

void NormTensors::require_like_x(const Tensor& tensor, const char* message) const {
  require(!tensor || tensor.shape == x.shape, message);
}

}  // namespace ttac
