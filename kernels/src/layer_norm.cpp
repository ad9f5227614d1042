// LayerNormForward and LayerNormBackward: each position is normalised by the moments of its channels.
#include <algorithm>

#include "dispatch.h"
#include "operator.h"
#include "pieces.h"

namespace ttac {
namespace {

constexpr int64_t kGroup = 1 << 14;  // floats of a task: 64 KiB

// The attributes of both operators.
struct LayerSettings {
  explicit LayerSettings(const Attributes& from)
      : block(block_of(from)),
        epsilon(from.number("epsilon", 1e-5f)),
        maps(from.integer("axis", -1) == 1),
        channels(from.integer("channels", 0)) {
    require(maps || from.integer("axis", -1) == -1, "attribute axis: not 1 or -1");
  }
  int block;
  float epsilon;
  bool maps;         // the channels are those of [N, C, ...] in blocks; otherwise the last axis
  int64_t channels;  // without padding; 0 for all
};

// Where the channels of each position are.
struct LayerLayout {
  LayerLayout(const LayerSettings& settings_, const Tensor& x);
  int64_t tasks() const { return samples * groups; }
  // The piece of a task, the place of its first float, and the number of its first position.
  LayerPiece piece(int64_t task, int64_t& start, int64_t& number) const;
  int64_t padded() const { return piece_.vectors * lanes; }  // channels of whole vectors

  const LayerSettings& settings;
  std::vector<int64_t> statistics;  // shape of the mean
  int64_t width, lanes, samples = 1, positions = 1, each, groups;

 private:
  LayerPiece piece_{};
};

LayerLayout::LayerLayout(const LayerSettings& settings_, const Tensor& x) : settings(settings_) {
  require(x.shape.size() >= 2, "input x: fewer than two axes");
  const size_t axis = settings.maps ? 1 : x.shape.size() - 1;
  width = x.shape[axis];
  lanes = settings.maps ? settings.block : kMaxBlock;
  require(width > 0, "input x: no channels");
  require(!settings.maps || width % lanes == 0, "input x: its channels are no multiple of the block");
  for (size_t i = 0; i < x.shape.size(); ++i) {
    if (i == axis) continue;
    statistics.push_back(x.shape[i]);
    (settings.maps && i == 0 ? samples : positions) *= x.shape[i];
  }
  piece_.vectors = (width + lanes - 1) / lanes;
  piece_.channels = settings.channels > 0 ? settings.channels : width;
  require(piece_.channels <= width && piece_.channels > width - lanes, "attribute channels: does not fit x");
  piece_.epsilon = settings.epsilon;
  piece_.step = settings.maps ? lanes : width;
  piece_.stride = settings.maps ? positions * lanes : lanes;
  each = std::max<int64_t>(1, kGroup / width);
  groups = (positions + each - 1) / each;
}

LayerPiece LayerLayout::piece(int64_t task, int64_t& start, int64_t& number) const {
  const int64_t first = task % groups * each;
  LayerPiece piece = piece_;
  piece.positions = std::min(each, positions - first);
  start = task / groups * width * positions + first * piece.step;
  number = task / groups * positions + first;
  return piece;
}

class LayerNorm : public Kernel {
 public:
  explicit LayerNorm(const Attributes& attributes) : settings_(attributes) {}

 protected:
  static void require_like(const Tensor& tensor, const std::vector<int64_t>& shape, const char* message) {
    require(!tensor || tensor.shape == shape, message);
  }

  LayerSettings settings_;
};

class LayerNormForward : public LayerNorm {
 public:
  using LayerNorm::LayerNorm;

  void run(const Call& call) const override {
    const Tensor x = call.input(0), scale = call.input(1), bias = call.input(2), residual = call.input(3);
    const LayerLayout layout(settings_, x);
    require_like(scale, {layout.width}, "input scale: not one number for each channel");
    require_like(bias, {layout.width}, "input bias: not one number for each channel");
    require_like(residual, x.shape, "input residual: not of the shape of x");
    const Tensor y = call.output(0, x.shape), mean = call.output(1, layout.statistics);
    const Tensor reciprocal = call.output(2, layout.statistics), sum = call.output(3, x.shape);
    require(bool(residual) == bool(sum), "output sum: it belongs to the input residual");
    call.parallel(static_cast<size_t>(layout.tasks()), [&](size_t index) {
      const int64_t task = static_cast<int64_t>(index);
      int64_t start, number;
      LayerPiece piece = layout.piece(task, start, number);
      piece.x = x.floats(start);
      piece.residual = residual.floats(start);
      piece.scale = scale.floats();
      piece.bias = bias.floats();
      piece.out = y.floats(start);
      piece.sum = sum.floats(start);
      piece.mean = mean.floats(number);
      piece.reciprocal = reciprocal.floats(number);
      const LayerTable& table = instructions().layer;
      (settings_.maps ? table.forward[block_index(settings_.block)] : table.forward_rows)(piece);
    });
  }
};

class LayerNormBackward : public LayerNorm {
 public:
  using LayerNorm::LayerNorm;

  void run(const Call& call) const override {
    const Tensor dy = call.input(0), x = call.input(1), scale = call.input(2), mean = call.input(3);
    const Tensor reciprocal = call.input(4), more = call.input(5);
    const LayerLayout layout(settings_, x);
    require_like(dy, x.shape, "input dy: not of the shape of x");
    require_like(more, x.shape, "input more: not of the shape of x");
    require_like(scale, {layout.width}, "input scale: not one number for each channel");
    require_like(mean, layout.statistics, "input mean: not one number for each position");
    require_like(reciprocal, layout.statistics, "input reciprocal: not one number for each position");
    const Tensor dx = call.output(0, x.shape);
    const int64_t padded = layout.padded();
    std::vector<float> parts(static_cast<size_t>(layout.tasks() * 2 * padded));
    call.parallel(static_cast<size_t>(layout.tasks()), [&](size_t index) {
      const int64_t task = static_cast<int64_t>(index);
      int64_t start, number;
      LayerPiece piece = layout.piece(task, start, number);
      piece.x = x.floats(start);
      piece.dy = dy.floats(start);
      piece.more = more.floats(start);
      piece.scale = scale.floats();
      piece.out = dx.floats(start);
      piece.mean = mean.floats(number);
      piece.reciprocal = reciprocal.floats(number);
      piece.dscale = parts.data() + task * 2 * padded;
      piece.dbias = piece.dscale + padded;
      const LayerTable& table = instructions().layer;
      (settings_.maps ? table.backward[block_index(settings_.block)] : table.backward_rows)(piece);
    });
    add_up(layout, parts, 0, call.output(1, {layout.width}));
    add_up(layout, parts, padded, call.output(2, {layout.width}));
  }

 private:
  // The sums of all tasks, in the order of the tasks.
  static void add_up(const LayerLayout& layout, const std::vector<float>& parts, int64_t first, const Tensor& to) {
    if (!to) return;
    std::vector<double> sums(static_cast<size_t>(layout.width));
    for (int64_t task = 0; task < layout.tasks(); ++task) {
      const float* part = parts.data() + task * 2 * layout.padded() + first;
      for (int64_t channel = 0; channel < layout.width; ++channel) sums[static_cast<size_t>(channel)] += part[channel];
    }
    std::copy(sums.begin(), sums.end(), to.floats());
  }
};

}  // namespace

// x, scale, bias, residual -> y, mean, reciprocal, sum
const Operator kLayerNormForward("LayerNormForward", {kTensor, kTensor, kTensor, kMaybeTensor},
                                 {kTensor, kMaybeTensor, kMaybeTensor, kMaybeTensor}, make_kernel<LayerNormForward>);
// dy, x, scale, mean, reciprocal, more -> dx, dscale, dbias
const Operator kLayerNormBackward("LayerNormBackward", {kTensor, kTensor, kTensor, kTensor, kTensor, kMaybeTensor},
                                  {kMaybeTensor, kMaybeTensor, kMaybeTensor}, make_kernel<LayerNormBackward>);

}  // namespace ttac
