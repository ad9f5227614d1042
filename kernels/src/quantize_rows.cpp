// QuantizeRows, DequantizeRows: the codec `int8`.  RestoreBlocks: the codec `blocks`, read as a whole tensor.
#include <algorithm>
#include <cmath>

#include "dispatch.h"
#include "operator.h"
#include "pieces.h"

namespace ttac {
namespace {

// Call `body(piece, first)` for each block of channels of each sample; `first` is the number of its first row.
template <class Body>
void each_rows(const Call& call, const Layout& layout, const Tensor& x, const Tensor& values, int block, Body body) {
  call.parallel(static_cast<size_t>(layout.samples * layout.blocks), [&](size_t index) {
    const int64_t map = static_cast<int64_t>(index);
    RowsPiece piece{};
    piece.x = x.floats(map * layout.run);
    piece.values = values.bytes(map * layout.run);
    piece.length = layout.run;
    piece.block = block;
    body(piece, map * block);
  });
}

class QuantizeRows : public Kernel {
 public:
  explicit QuantizeRows(const Attributes& attributes) : block_(block_of(attributes)) {}

  void run(const Call& call) const override {
    const Tensor x = call.input(0);
    const Layout layout(x.shape, block_);
    const int64_t rows = layout.samples * layout.channels;
    const Tensor values = call.output(0, x.shape), scale = call.output(1, {rows}), zero = call.output(2, {rows});
    each_rows(call, layout, x, values, block_, [&](RowsPiece& piece, int64_t first) {
      Lanes low, high, sum;
      instructions().rows.range(piece, low, high, sum);
      for (int lane = 0; lane < kMaxBlock; ++lane) {
        const float step = (high.value[lane] - low.value[lane]) * static_cast<float>(1.0 / 255) + 1e-30f;
        const float own = step + sum.value[lane] * 0.0f;  // NaN where a value is not finite: bytes do not show it
        piece.scale.value[lane] = own;
        piece.zero.value[lane] = own > 0 ? std::nearbyint(-low.value[lane] / own) : 0;
        if (lane >= block_) continue;
        scale.floats()[first + lane] = own;
        zero.bytes()[first + lane] = static_cast<uint8_t>(piece.zero.value[lane]);
      }
      instructions().rows.quantize(piece);
    });
  }

 private:
  int block_;
};

class DequantizeRows : public Kernel {
 public:
  explicit DequantizeRows(const Attributes& attributes) : block_(block_of(attributes)) {}

  void run(const Call& call) const override {
    const Tensor values = call.input(0), scale = call.input(1), zero = call.input(2);
    const Layout layout(values.shape, block_);
    const std::vector<int64_t> rows{layout.samples * layout.channels};
    require(scale.shape == rows && zero.shape == rows, "input scale or zero: not one number for each row");
    const Tensor x = call.output(0, values.shape);
    each_rows(call, layout, x, values, block_, [&](RowsPiece& piece, int64_t first) {
      for (int lane = 0; lane < kMaxBlock; ++lane) {
        piece.scale.value[lane] = scale.floats()[first + lane % block_];
        piece.zero.value[lane] = zero.bytes()[first + lane % block_];
      }
      instructions().rows.dequantize(piece);
    });
  }

 private:
  int block_;
};

class RestoreBlocks : public Kernel {
 public:
  explicit RestoreBlocks(const Attributes& attributes)
      : block_(block_of(attributes)), size_(attributes.integer("size", 64)), sizes_(attributes.integers("sizes", {})) {
    require(sizes_.size() == 3 && std::min({sizes_[0], sizes_[1], sizes_[2]}) > 0, "attribute sizes: not [C, H, W]");
    require(size_ > 0 && sizes_[1] * sizes_[2] % size_ == 0, "attribute size: does not divide the maps");
  }

  void run(const Call& call) const override {
    const Tensor values = call.input(0), scale = call.input(1), places = call.input(2), mean = call.input(3);
    const int64_t tiles = sizes_[1] * sizes_[2] / size_, count = mean.shape.size() == 1 ? mean.shape[0] : -1;
    require(count >= 0 && count % (sizes_[0] * tiles) == 0, "input mean: not one number for each block");
    const int64_t kept = scale.shape.size() == 1 ? scale.shape[0] : -1;
    require(kept >= 0 && values.shape == std::vector<int64_t>{kept, size_}, "input values: not [kept, size]");
    const int64_t* numbers = static_cast<const int64_t*>(places.data);
    require(places.shape.size() >= 1 && places.shape[0] == kept && std::is_sorted(numbers, numbers + kept) &&
                (kept == 0 || (numbers[0] >= 0 && numbers[kept - 1] < count)),
            "input places: not ascending numbers of blocks");
    const Tensor x = call.output(0, {count / (sizes_[0] * tiles), sizes_[0], sizes_[1], sizes_[2]});
    const Layout layout(x.shape, block_);
    call.parallel(static_cast<size_t>(layout.samples * layout.blocks), [&](size_t index) {
      const int64_t map = static_cast<int64_t>(index), first = map * block_ * tiles;
      float* to = x.floats(map * layout.run);
      fill(mean.floats(first), tiles, to);
      const int64_t* end = std::lower_bound(numbers, numbers + kept, first + block_ * tiles);
      for (const int64_t* at = std::lower_bound(numbers, numbers + kept, first); at != end; ++at) {
        const int64_t k = at - numbers, lane = (*at - first) / tiles, tile = (*at - first) % tiles;
        const int8_t* from = static_cast<const int8_t*>(values.data) + k * size_;
        float* own = to + tile * size_ * block_ + lane;
        for (int64_t i = 0; i < size_; ++i) own[i * block_] = static_cast<float>(from[i]) * scale.floats()[k];
      }
    });
  }

 private:
  // Every element as the mean of its block.
  void fill(const float* mean, int64_t tiles, float* to) const {
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for (int64_t i = 0; i < size_; ++i) {
        for (int lane = 0; lane < block_; ++lane) *to++ = mean[lane * tiles + tile];
      }
    }
  }

  int block_;
  int64_t size_;
  std::vector<int64_t> sizes_;
};

}  // namespace

// x -> values, scale, zero
const Operator kQuantizeRows("QuantizeRows", {kTensor}, {kBytes, kTensor, kBytes}, make_kernel<QuantizeRows>);

// values, scale, zero -> x
const Operator kDequantizeRows("DequantizeRows", {kBytes, kTensor, kBytes}, {kTensor}, make_kernel<DequantizeRows>);

// values, scale, places, mean -> x
const Operator kRestoreBlocks("RestoreBlocks", {kSignedBytes, kTensor, kIntegers, kTensor}, {kTensor},
                              make_kernel<RestoreBlocks>);

}  // namespace ttac
