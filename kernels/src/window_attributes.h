// The attributes of a window: kernel_shape, strides, pads and block.
#pragma once
#include "pieces.h"
#include "window.h"

namespace ttac {

struct Window {
  explicit Window(const Attributes& from);
  // The window along an axis of `size` elements; throws where the input is too small.
  Axis axis(int index, int64_t size) const;
  int64_t taps() const { return kernel[0] * kernel[1]; }

  int block;
  std::vector<int64_t> kernel, strides, pads;
};

// The attribute `sizes`: height and width of x.
std::vector<int64_t> sizes_of(const Attributes& from);

}  // namespace ttac
