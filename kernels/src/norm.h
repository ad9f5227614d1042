// Parts that NormForward and NormBackward share.
#pragma once
#include "dispatch.h"
#include "operator.h"
#include "pieces.h"

namespace ttac {

// The attributes of both operators.
struct NormSettings {
  // `suffix` is part of the names of the attributes.
  explicit NormSettings(const Attributes& from, const std::string& suffix = "");
  int block;
  float epsilon;
  Activation act;
  float low, high;
  bool given;  // the statistics are constants
};

// The tensors of one call.  `out` is y or dx; absent tensors stay empty.
struct NormTensors {
  NormTensors(const NormSettings& settings_, const Tensor& x_, int64_t piece = kPiece)
      : settings(settings_), layout(x_.shape, settings_.block, piece), x(x_), settled_(static_cast<size_t>(layout.blocks)) {}
  // Square root of the variance plus epsilon.
  float deviation(int64_t channel) const;
  // Find the coefficients of a block, once its statistics are known; a small piece takes less time than they do.
  void settle(int64_t block);
  void settle_all();
  // The coefficients of the block's dx, once its sums are known.
  void settle_gradient(int64_t block);
  // A settled block's coefficients with the places of the tensors.
  NormPiece piece(int64_t block, const Stretch& stretch) const;
  // How the backward pass finds du.  A mask takes a byte to read; otherwise u comes from x, which is read anyway.
  int rule() const;
  // The tensor has one number for each channel.
  void require_channels(const Tensor& tensor, const char* message) const;
  // The tensor is absent, or has the shape of x.
  void require_like_x(const Tensor& tensor, const char* message) const;

  const NormSettings& settings;
  Layout layout;
  Tensor x, residual, dy, more, scale, bias, mean, variance, out, mask, bits, du, dscale, dbias;

 private:
  std::vector<Coefficients> settled_;
};

}  // namespace ttac
