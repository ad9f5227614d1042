// Maps divided into strips of rows, for operators that work on positions.
#pragma once
#include <algorithm>

#include "pieces.h"

namespace ttac {

constexpr int64_t kStrip = 1 << 15;  // floats of a strip: 128 KiB

// Call `body(map, first, last)` for strips of rows of each map, in parallel.  A map is one block of channels of one
// sample; a row has `row` floats.
template <class Body>
void each_strip(const Call& call, int64_t maps, int64_t rows, int64_t row, Body body) {
  const int64_t height = std::max<int64_t>(1, kStrip / std::max<int64_t>(1, row));
  const int64_t strips = (rows + height - 1) / height;
  call.parallel(static_cast<size_t>(maps * strips), [&](size_t index) {
    const int64_t map = static_cast<int64_t>(index) / strips, first = static_cast<int64_t>(index) % strips * height;
    body(map, first, std::min(rows, first + height));
  });
}

// A tensor [N, C, H, W] in blocks.
struct Maps {
  Maps(const Tensor& tensor, int block) : Maps(tensor.shape, block) {}
  Maps(const std::vector<int64_t>& shape, int block);
  std::vector<int64_t> shape_with(int64_t height, int64_t width) const { return {samples, channels, height, width}; }
  int64_t samples, channels, height, width;
  int64_t maps;  // number of maps
};

}  // namespace ttac
