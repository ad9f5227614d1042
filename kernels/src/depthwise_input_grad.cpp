// DepthwiseInputGrad: the gradient of a depthwise convolution by its input.
#include "depthwise.h"
#include "dispatch.h"
#include "operator.h"
#include "rows.h"

namespace ttac {

namespace {

class DepthwiseInputGrad : public Kernel {
 public:
  explicit DepthwiseInputGrad(const Attributes& attributes) : window_(attributes), sizes_(sizes_of(attributes)) {}

  void run(const Call& call) const override {
    const Tensor dy = call.input(0), w = call.input(1);
    const Maps maps(dy, window_.block);
    const Lines weights = blocked_weights(w, window_);
    require(w.shape[0] == maps.channels, "input w: has other channels than dy");
    const Axis rows = window_.axis(0, sizes_[0]), columns = window_.axis(1, sizes_[1]);
    require(maps.height == rows.outs && maps.width == columns.outs, "input dy: does not fit the sizes of x");
    const Tensor dx = call.output(0, maps.shape_with(rows.size, columns.size));
    const int64_t block = window_.block, row = columns.size * block, blocks = maps.channels / block;
    each_strip(call, maps.maps, rows.size, row, [&](int64_t map, int64_t first, int64_t last) {
      const float* own = weights.data() + map % blocks * window_.taps() * block;
      const DepthwiseRows p{dy.floats(map * rows.outs * columns.outs * block),
                            dx.floats((map * rows.size + first) * row), own, nullptr, rows, columns, first, last, 0};
      instructions().depthwise.backward[block_index(window_.block)](p);
    });
  }

 private:
  Window window_;
  std::vector<int64_t> sizes_;
};

}  // namespace

// dy, w -> dx
const Operator kDepthwiseInputGrad("DepthwiseInputGrad", {kTensor, kTensor}, {kTensor},
                                   make_kernel<DepthwiseInputGrad>);

}  // namespace ttac
