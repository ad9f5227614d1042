// SparseNormBackward: the gradient of a norm whose input was saved by KeepBlocks.
#include <algorithm>

#include "dispatch.h"
#include "operator.h"
#include "pieces.h"

namespace ttac {
namespace {

constexpr int64_t kWholeMap = int64_t{1} << 40;  // floats of a piece: no map is larger

// The tensors of one call; `reciprocal` is 1/sqrt(variance + epsilon).
struct SparseTensors {
  SparseTensors(const Call& call, int block_, int64_t size)
      : layout(call.input(0).shape, block_, kWholeMap), block(block_) {
    require(size > 0 && size <= kLargestKept && layout.positions % size == 0, "attribute size: does not divide the maps");
    dy = call.input(0);
    const Tensor values = call.input(1), places = call.input(3);
    kept = {static_cast<const int8_t*>(values.data), call.input(2).floats(),
            static_cast<const int64_t*>(places.data), call.input(4).floats(), size,
            *static_cast<const int64_t*>(call.input(5).data)};
    count = places.shape.empty() ? 0 : places.shape[0];
    tiles = layout.positions / size;
    require(values.shape == std::vector<int64_t>{count, size} && call.input(2).shape == std::vector<int64_t>{count},
            "inputs values and scale: not one block for each place");
    require(call.input(4).shape == std::vector<int64_t>{layout.samples * layout.channels * tiles},
            "input mean: not one number for each block");
    scale = channels(call.input(6));
    mean = channels(call.input(7));
    reciprocal = channels(call.input(8));
    mask = call.input(9);
    bits = call.input(10);
    require(!mask || mask.shape == dy.shape, "input mask: not of the shape of dy");
    require(!bits || bits.shape == std::vector<int64_t>{layout.samples, layout.blocks * ((layout.run + 7) / 8)},
            "input bits: not one bit for each element");
    out = call.output(0, dy.shape);
    dscale = call.output(1, {layout.channels});
    dbias = call.output(2, {layout.channels});
    du = call.output(3, dy.shape);
  }

  const float* channels(const Tensor& tensor) const {
    require(tensor.shape == std::vector<int64_t>{layout.channels},
            "input norm_scale, norm_mean or reciprocal: not one number for each channel");
    return tensor.floats();
  }

  SparseRule rule() const { return bits ? kWhereBits : mask ? kWhereBytes : kAllOfIt; }

  SparsePiece piece(int64_t channel_block, const Stretch& stretch) const {
    SparsePiece p{};
    const int64_t map = layout.run ? stretch.offset / layout.run : 0;
    p.kept = kept;
    p.dy = dy.floats(stretch.offset);
    p.mask = mask.bytes(stretch.offset);
    p.bits = bits.bytes(map * ((layout.run + 7) / 8));
    p.out = out.floats(stretch.offset);
    p.du = du.floats(stretch.offset);
    p.tiles = tiles;
    p.block = block;
    const int64_t* end = kept.places + count;
    for (int lane = 0; lane < kMaxBlock; ++lane) {
      const int64_t number = (map * block + lane % block) * tiles;
      p.numbers[lane] = number;
      p.first[lane] = std::lower_bound(kept.places, end, number) - kept.places;
      p.last[lane] = std::lower_bound(kept.places, end, number + tiles) - kept.places;
      const int64_t channel = channel_block * block + lane % block;
      p.mean.value[lane] = mean[channel];
      p.slope.value[lane] = scale[channel] * reciprocal[channel];
    }
    return p;
  }

  Layout layout;
  int block;
  Kept kept;
  int64_t count, tiles;
  const float *scale, *mean, *reciprocal;
  Tensor dy, mask, bits, out, dscale, dbias, du;
};

// Sums of du, then dx.
struct SparseSteps {
  using Partial = Sums;
  const SparseTensors& at;

  void partial(int64_t block, const Stretch& stretch, Sums& into) const {
    instructions().sparse.sums[at.rule()](at.piece(block, stretch), into);
  }

  void join(const Sums& part, Sums& into) const {
    for (int c = 0; c < kMaxBlock; ++c) {
      into.plain[c] += part.plain[c];
      into.centred[c] += part.centred[c];
    }
  }

  void finish(int64_t block, const Sums& found) const {
    const int64_t first = block * at.block;
    for (int c = 0; c < at.block; ++c) {
      at.dbias.floats()[first + c] = static_cast<float>(found.plain[c]);
      at.dscale.floats()[first + c] = static_cast<float>(found.centred[c] * at.reciprocal[first + c]);
    }
  }

  void apply(int64_t block, const Stretch& stretch) const {
    if (!at.out) return;
    SparsePiece p = at.piece(block, stretch);
    const float count = static_cast<float>(at.layout.samples * at.layout.positions);
    for (int lane = 0; lane < kMaxBlock; ++lane) {
      const int64_t channel = block * at.block + lane % at.block;
      const float slope = p.slope.value[lane];
      p.constant.value[lane] = -slope * at.dbias.floats()[channel] / count;
      p.linear.value[lane] = -slope * at.reciprocal[channel] * at.dscale.floats()[channel] / count;
    }
    instructions().sparse.backward[at.rule()](p);
  }
};

class SparseNormBackward : public Kernel {
 public:
  explicit SparseNormBackward(const Attributes& attributes)
      : block_(block_of(attributes)), size_(attributes.integer("size", 64)) {}

  void run(const Call& call) const override {
    SparseTensors at(call, block_, size_);
    std::vector<float> spare(2 * at.layout.channels);  // for outputs that the graph does not ask for
    if (!at.dscale) at.dscale.data = spare.data();
    if (!at.dbias) at.dbias.data = spare.data() + at.layout.channels;
    reduce_then_apply(call, at.layout, SparseSteps{at});
  }

 private:
  int block_;
  int64_t size_;
};

}  // namespace

// dy, values, scale, places, mean, single, norm_scale, norm_mean, reciprocal, mask, bits -> dx, dscale, dbias, du
const Operator kSparseNormBackward("SparseNormBackward",
                                   {kTensor, kSignedBytes, kTensor, kIntegers, kTensor, kIntegers, kTensor, kTensor,
                                    kTensor, kMaybeMask, kMaybeBytes},
                                   {kMaybeTensor, kMaybeTensor, kMaybeTensor, kMaybeTensor},
                                   make_kernel<SparseNormBackward>);

}  // namespace ttac
