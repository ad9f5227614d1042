// Parts of the depthwise operators.
#pragma once
#include "dispatch.h"
#include "rows.h"
#include "window_attributes.h"

namespace ttac {

// Floats from the beginning of a cache line on: a vector that crosses two lines takes two reads.
class Lines {
 public:
  explicit Lines(int64_t floats = 0) : lines_((static_cast<size_t>(floats) + kFloats - 1) / kFloats) {}
  bool holds(int64_t floats) const { return lines_.size() * kFloats >= static_cast<size_t>(floats); }
  float* data() { return lines_.data()->content; }
  const float* data() const { return lines_.data()->content; }

 private:
  static constexpr size_t kFloats = 16;
  struct alignas(64) Line {
    float content[kFloats];
  };
  std::vector<Line> lines_;
};

// Weights [C, 1, kh, kw] in the order [C/block][kh * kw][block].
Lines blocked_weights(const Tensor& weights, const Window& window);

// Memory for one task, of one thread, in two places.  It stays for the next task: new memory would cost page faults.
float* scratch(int place, int64_t floats);

// A depthwise convolution between x1 [N, C, H, W] and x2 [N, C, Ho, Wo], in strips of whole rows.
struct Convolution {
  Convolution(const Window& window_, const Tensor& weights, const std::vector<int64_t>& shape);
  int64_t wide() const { return columns.size * window.block; }  // floats of a row of x1
  int64_t narrow() const { return columns.outs * window.block; }  // and of x2
  int64_t strip(int64_t row) const { return row * std::max<int64_t>(1, kStrip / row); }  // floats of a strip
  std::vector<int64_t> outs(const std::vector<int64_t>& shape) const;
  // The loops over rows [first, last) of `out`, from rows that begin at `in_first`.
  DepthwiseRows rows_of(int64_t block, const float* in, int64_t in_first, float* out, Range range) const;

  const Window& window;
  Lines weights;
  Axis rows, columns;
};

// Reduce by `before`, then by `after`, which reads its results, and apply `after`.  `x1` divides the work: a task has one
// block of channels where that fits a cache, else the blocks go in waves.
template <class Before, class After>
void reduce_twice_then_apply(const Call& call, const Layout& x1, const Before& before, const After& after) {
  if (x1.fits_cache()) {
    block_by_block(call, x1, [&](int64_t block) {
      reduce_block(before.at.layout, block, before);
      reduce_block(after.at.layout, block, after);
      apply_block(after.at.layout, block, after);
    });
  } else {
    each_wave(x1, [&](int64_t low, int64_t high) {
      reduce_blocks(call, before.at.layout, low, high, before);
      reduce_blocks(call, after.at.layout, low, high, after);
      apply_blocks(call, after.at.layout, low, high, after);
    });
  }
}

// The rows of a stretch of a map: its first and last row, and its map.
struct Rows : Range {
  Rows(const Stretch& stretch, int64_t row, int64_t height)
      : Range{stretch.offset / row % height, stretch.offset / row % height + stretch.length / row},
        map(stretch.offset / (row * height)) {}
  int64_t map;
};

}  // namespace ttac
