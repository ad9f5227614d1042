// KeepBlocks: some blocks of neighbouring elements in 8 bits, and the mean of every block.
#include <algorithm>
#include <cmath>

#include "dispatch.h"
#include "operator.h"
#include "pieces.h"

namespace ttac {
namespace {

// Numbers of floor(ratio * count) of `count` blocks, ascending: one in each of as many equal stretches.  Multiples of
// the golden ratio choose the position in a stretch.
std::vector<int64_t> spread(int64_t count, float ratio) {
  constexpr int64_t kGolden = 40503, kPeriod = 65536;
  const float share = std::floor(static_cast<float>(count) * ratio);
  require(share >= 0 && share <= static_cast<float>(count), "input ratios: one is not between 0 and 1");
  const int64_t kept = static_cast<int64_t>(share);
  std::vector<int64_t> places(static_cast<size_t>(kept));
  for (int64_t i = 0; i < kept; ++i) {
    const int64_t first = i * count / kept, width = (i + 1) * count / kept - first;
    places[static_cast<size_t>(i)] = first + i * kGolden % kPeriod * width / kPeriod;
  }
  return places;
}

class KeepBlocks : public Kernel {
 public:
  explicit KeepBlocks(const Attributes& attributes)
      : block_(block_of(attributes)), size_(attributes.integer("size", 64)), layers_(attributes.integers("layers", {0})) {
    require(size_ > 0 && size_ <= kLargestKept, "attribute size: not from 1 to 128");
  }

  void run(const Call& call) const override {
    const Tensor x = call.input(0), ratios = call.input(1);
    const Layout layout(x.shape, block_);
    require(layout.positions % size_ == 0, "input x: its maps are no multiple of the size");
    const int64_t tiles = layout.positions / size_, count = layout.samples * layout.channels * tiles;
    const std::vector<int64_t> places = spread(count, largest(ratios));
    const int64_t kept = static_cast<int64_t>(places.size());
    const Tensor values = call.output(0, {kept, size_}), scale = call.output(1, {kept});
    const Tensor numbers = call.output(2, {kept}), mean = call.output(3, {count});
    std::copy(places.begin(), places.end(), static_cast<int64_t*>(numbers.data));
    call.parallel(static_cast<size_t>(layout.samples * layout.blocks), [&](size_t index) {
      const int64_t map = static_cast<int64_t>(index), first = map * block_ * tiles;
      const float* from = x.floats(map * layout.run);
      means(from, tiles, mean.floats(first));
      const auto end = std::lower_bound(places.begin(), places.end(), first + block_ * tiles);
      for (auto at = std::lower_bound(places.begin(), places.end(), first); at != end; ++at) {
        const int64_t k = at - places.begin(), lane = (*at - first) / tiles, tile = (*at - first) % tiles;
        instructions().sparse.keep(from + tile * size_ * block_ + lane, size_, block_, mean.floats()[*at],
                                   static_cast<int8_t*>(values.data) + k * size_, scale.floats(k));
      }
    });
  }

 private:
  // The largest keep ratio of the layers; a scalar is the ratio of layer 0.
  float largest(const Tensor& ratios) const {
    require(ratios.shape.size() <= 1 && !layers_.empty(), "input ratios: no vector");
    const int64_t count = ratios.shape.empty() ? 1 : ratios.shape[0];
    float found = -1;
    for (int64_t layer : layers_) {
      require(layer >= 0 && layer < count, "attribute layers: no keep ratio");
      const float ratio = *ratios.floats(layer);
      found = ratio <= found ? found : ratio;
    }
    return found;
  }

  void means(const float* from, int64_t tiles, float* means) const {
    float lanes[kMaxBlock];
    for (int64_t tile = 0; tile < tiles; ++tile) {
      instructions().sparse.means(from + tile * size_ * block_, size_, block_, lanes);
      for (int lane = 0; lane < block_; ++lane) means[lane * tiles + tile] = lanes[lane];
    }
  }

  int block_;
  int64_t size_;
  std::vector<int64_t> layers_;
};

}  // namespace

// x, keep ratios -> values, scale, places, mean
const Operator kKeepBlocks("KeepBlocks", {kTensor, kTensor}, {kSignedBytes, kTensor, kIntegers, kTensor},
                           make_kernel<KeepBlocks>);

}  // namespace ttac
