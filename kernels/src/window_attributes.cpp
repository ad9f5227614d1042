#include "window_attributes.h"

#include <algorithm>

namespace ttac {

Window::Window(const Attributes& from)
    : block(block_of(from)),
      kernel(from.integers("kernel_shape", {})),
      strides(from.integers("strides", {1, 1})),
      pads(from.integers("pads", {0, 0, 0, 0})) {
  require(kernel.size() == 2 && strides.size() == 2 && pads.size() == 4, "attributes: the window is not two-dimensional");
  for (int axis : {0, 1}) {
    require(kernel[axis] > 0 && strides[axis] > 0, "attributes kernel_shape, strides: below one");
    require(std::min(pads[axis], pads[axis + 2]) >= 0 && std::max(pads[axis], pads[axis + 2]) < kernel[axis],
            "attribute pads: below zero, or a window lies in the padding");
  }
}

Axis Window::axis(int index, int64_t size) const {
  const int64_t room = size + pads[index] + pads[index + 2] - kernel[index];
  require(room >= 0, "input x: smaller than the window");
  return {size, room / strides[index] + 1, kernel[index], strides[index], pads[index]};
}

std::vector<int64_t> sizes_of(const Attributes& from) {
  std::vector<int64_t> sizes = from.integers("sizes", {});
  require(sizes.size() == 2 && sizes[0] > 0 && sizes[1] > 0, "attribute sizes: not the height and the width of x");
  return sizes;
}

}  // namespace ttac
