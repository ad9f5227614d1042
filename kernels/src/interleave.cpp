// Interleave: the four phases of an input gradient of a convolution with stride 2, put together.
#include "dispatch.h"
#include "operator.h"
#include "rows.h"
#include "window_attributes.h"

namespace ttac {
namespace {

class Interleave : public Kernel {
 public:
  explicit Interleave(const Attributes& attributes) : block_(block_of(attributes)), sizes_(sizes_of(attributes)) {}

  void run(const Call& call) const override {
    Tensor inputs[kInputs];
    for (size_t i = 0; i < kInputs; ++i) inputs[i] = call.input(i);
    const Maps maps(checked(inputs), block_);
    const Tensor x = call.output(0, maps.shape_with(sizes_[0], sizes_[1]));
    const int64_t row = sizes_[1] * block_;
    each_strip(call, maps.maps, sizes_[0], row, [&](int64_t map, int64_t first, int64_t last) {
      InterleaveRows p{{}, inputs[kSum].floats(map * sizes_[0] * row), x.floats(map * sizes_[0] * row), sizes_[1],
                       first, last};
      for (int i = 0; i < kSum; ++i) p.phases[i / 2][i % 2] = inputs[i].floats(map * places(i) * block_);
      instructions().pool.interleave[block_index(block_)](p);
    });
  }

 private:
  static constexpr int kSum = 4;
  static constexpr size_t kInputs = 5;

  int64_t height(int phase) const { return (sizes_[0] + 1 - phase / 2) / 2; }
  int64_t width(int phase) const { return (sizes_[1] + 1 - phase % 2) / 2; }
  int64_t places(int phase) const { return height(phase) * width(phase); }

  // The shape of x; all inputs that are there must fit it.
  std::vector<int64_t> checked(const Tensor (&inputs)[kInputs]) const {
    std::vector<int64_t> shape;
    for (int i = 0; i <= kSum; ++i) {
      if (!inputs[i]) continue;
      require(inputs[i].shape.size() == 4, "an input is not of the shape [N, C, H, W]");
      if (shape.empty()) shape = {inputs[i].shape[0], inputs[i].shape[1], sizes_[0], sizes_[1]};
      const bool whole = i == kSum;
      const std::vector<int64_t> wanted{shape[0], shape[1], whole ? sizes_[0] : height(i), whole ? sizes_[1] : width(i)};
      require(inputs[i].shape == wanted, "an input does not fit the sizes of x");
    }
    require(!shape.empty(), "there is no input");
    return shape;
  }

  int block_;
  std::vector<int64_t> sizes_;
};

}  // namespace

// The phases (0, 0), (0, 1), (1, 0), (1, 1), and a tensor that is added -> x
const Operator kInterleave("Interleave", {kMaybeTensor, kMaybeTensor, kMaybeTensor, kMaybeTensor, kMaybeTensor},
                           {kTensor}, make_kernel<Interleave>);

}  // namespace ttac
