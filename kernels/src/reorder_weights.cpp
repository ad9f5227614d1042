// ReorderWeights: a convolution's kernel in the engine's blocked layout, or flipped and exchanged for the gradient.
#include <algorithm>

#include "operator.h"
#include "pieces.h"

namespace ttac {
namespace {

// Where the elements of the reordered kernel lie in w, in floats; `inputs` and `outputs` are those of the result.
struct Places {
  Places(const Tensor& w, int64_t groups)
      : inputs(groups == 0 ? w.shape[1] : w.shape[0] / groups),
        outputs(groups == 0 ? w.shape[0] : groups * w.shape[1]),
        own(w.shape[1]),
        taps(w.shape[2] * w.shape[3]),
        input_step(groups == 0 ? taps : own * taps),
        exchanged(groups != 0) {}
  // The first tap of the first input of an output.
  int64_t start(int64_t output) const {
    return (exchanged ? output / own * inputs * own + output % own : output * own) * taps;
  }
  int64_t inputs, outputs, own, taps, input_step;
  bool exchanged;
};

class ReorderWeights : public Kernel {
 public:
  explicit ReorderWeights(const Attributes& attributes)
      : block_(block_of(attributes)),
        inner_(attributes.integer("inputs_in_blocks", 0) != 0 ? block_ : 1),
        groups_(attributes.integer("groups", 0)),
        rows_(attributes.integers("rows", {})),
        columns_(attributes.integers("columns", {})) {
    require(groups_ >= 0, "attribute groups: below zero");
  }

  void run(const Call& call) const override {
    const Tensor w = call.input(0);
    require(w.shape.size() == 4 && (groups_ == 0 || w.shape[0] % groups_ == 0), "input w: not of the shape [O, I, h, w]");
    const std::vector<int64_t> rows = taps(rows_, w.shape[2]), columns = taps(columns_, w.shape[3]);
    const Places at(w, groups_);
    const int64_t wide = filled(at.outputs, block_), deep = filled(at.inputs, inner_);
    const Tensor made = call.output(0, {wide, deep, static_cast<int64_t>(rows.size()), static_cast<int64_t>(columns.size())});
    std::vector<int64_t> order;
    for (int64_t row : rows) {
      for (int64_t column : columns) order.push_back(row * w.shape[3] + column);
    }
    const int64_t run = deep * static_cast<int64_t>(order.size()) * block_;  // floats of a block of outputs
    call.parallel(static_cast<size_t>(wide / block_), [&](size_t index) {
      const int64_t block = static_cast<int64_t>(index);
      copy(w.floats(), at, order, block * block_, deep, made.floats(block * run));
    });
  }

 private:
  static int64_t filled(int64_t count, int64_t block) { return (count + block - 1) / block * block; }

  static std::vector<int64_t> taps(std::vector<int64_t> chosen, int64_t size) {
    if (chosen.empty()) {
      for (int64_t tap = 0; tap < size; ++tap) chosen.push_back(tap);
    }
    for (int64_t tap : chosen) require(tap >= 0 && tap < size, "attributes rows, columns: a tap outside of the kernel");
    return chosen;
  }

  // The outputs of a block, with zeros for the padding.
  void copy(const float* w, const Places& at, const std::vector<int64_t>& order, int64_t first, int64_t deep,
            float* to) const {
    int64_t starts[16];
    const int64_t lanes = std::min(block_, at.outputs - first);
    for (int64_t lane = 0; lane < lanes; ++lane) starts[lane] = at.start(first + lane);
    for (int64_t low = 0; low < deep; low += inner_) {
      for (int64_t tap : order) {
        for (int64_t input = low; input < low + inner_; ++input, to += block_) {
          const float* from = w + input * at.input_step + tap;
          const int64_t real = input < at.inputs ? lanes : 0;
          for (int64_t lane = 0; lane < real; ++lane) to[lane] = from[starts[lane]];
          for (int64_t lane = real; lane < block_; ++lane) to[lane] = 0;
        }
      }
    }
  }

  int64_t block_, inner_, groups_;
  std::vector<int64_t> rows_, columns_;
};

}  // namespace

// w [O, I, h, w] -> the same in blocks
const Operator kReorderWeights("ReorderWeights", {kTensor}, {kTensor}, make_kernel<ReorderWeights>);

}  // namespace ttac
