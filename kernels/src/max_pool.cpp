// MaxPoolForward and MaxPoolBackward: the backward pass knows the winner of each window by its tap, one byte.
#include "dispatch.h"
#include "operator.h"
#include "rows.h"
#include "window_attributes.h"

namespace ttac {
namespace {

// The window of a pool; the tap number of the winner is a byte.
Window pool_window(const Attributes& from) {
  Window window(from);
  require(window.taps() <= 256, "attribute kernel_shape: more taps than a byte can number");
  return window;
}

class MaxPoolForward : public Kernel {
 public:
  explicit MaxPoolForward(const Attributes& attributes) : window_(pool_window(attributes)) {}

  void run(const Call& call) const override {
    const Tensor x = call.input(0);
    const int64_t block = window_.block;
    const Maps maps(x, window_.block);
    const Axis rows = window_.axis(0, maps.height), columns = window_.axis(1, maps.width);
    const Tensor y = call.output(0, maps.shape_with(rows.outs, columns.outs));
    const Tensor taps = call.output(1, y.shape);
    const int64_t taken = rows.size * columns.size * block, made = rows.outs * columns.outs * block;
    each_strip(call, maps.maps, rows.outs, columns.outs * block, [&](int64_t map, int64_t first, int64_t last) {
      PoolRows p{x.floats(map * taken), nullptr, y.floats(map * made), nullptr, taps.bytes(map * made), rows, columns,
                 first, last};
      instructions().pool.forward[block_index(window_.block)](p);
    });
  }

 private:
  Window window_;
};

class MaxPoolBackward : public Kernel {
 public:
  explicit MaxPoolBackward(const Attributes& attributes)
      : window_(pool_window(attributes)), sizes_(sizes_of(attributes)) {}

  void run(const Call& call) const override {
    const Tensor dy = call.input(0), taps = call.input(1);
    const int64_t block = window_.block;
    const Maps maps(dy, window_.block);
    const Axis rows = window_.axis(0, sizes_[0]), columns = window_.axis(1, sizes_[1]);
    require(maps.height == rows.outs && maps.width == columns.outs, "input dy: does not fit the sizes of x");
    require(taps.shape == dy.shape, "input taps: not of the shape of dy");
    const Tensor dx = call.output(0, maps.shape_with(rows.size, columns.size));
    const int64_t taken = rows.outs * columns.outs * block, made = rows.size * columns.size * block;
    each_strip(call, maps.maps, rows.size, columns.size * block, [&](int64_t map, int64_t first, int64_t last) {
      PoolRows p{nullptr, dy.floats(map * taken), nullptr, dx.floats(map * made), taps.bytes(map * taken), rows,
                 columns, first, last};
      instructions().pool.backward[block_index(window_.block)](p);
    });
  }

 private:
  Window window_;
  std::vector<int64_t> sizes_;
};

}  // namespace

const Operator kMaxPoolForward("MaxPoolForward", {kTensor}, {kTensor, kMaybeBytes}, make_kernel<MaxPoolForward>);
const Operator kMaxPoolBackward("MaxPoolBackward", {kTensor, kBytes}, {kTensor}, make_kernel<MaxPoolBackward>);

}  // namespace ttac
