// ConvWeightGrad: the gradient of a convolution by its kernel.
//
// A task has two blocks of outputs and one block of inputs of one group, and all taps.  Where there are few tasks, the
// samples are divided too, and the parts are added in their order.
#include <algorithm>

#include "dispatch.h"
#include "operator.h"
#include "rows.h"
#include "window_attributes.h"

namespace ttac {
namespace {

constexpr int64_t kPlanes = 16;           // inputs of a task where x is in the plain order
constexpr int64_t kTasks = 32;           // at least so many, where the samples allow it
constexpr int64_t kWeightStrip = 1 << 13;  // floats of a strip of one block of dy: 32 KiB

int64_t parts_of(int64_t whole, int64_t size) { return (whole + size - 1) / size; }

// The division of the sums into tasks.
struct Division {
  int64_t group, outputs, inputs;  // outputs and inputs of a group
  int64_t block, taps;
  int64_t chunk;  // inputs of a task: one block of x, or planes
  int64_t pairs() const { return parts_of(parts_of(outputs, block), kWeightOuts); }
  int64_t chunks() const { return parts_of(inputs, chunk); }
  int64_t tasks() const { return group * pairs() * chunks(); }
  int64_t floats() const { return taps * chunk * kWeightOuts * block; }
};

// The part of the kernel that one task makes.
struct Part {
  Part(const Division& at, int64_t task)
      : group(task / (at.pairs() * at.chunks())),
        first_block(task / at.chunks() % at.pairs() * kWeightOuts),
        first_input(task % at.chunks() * at.chunk) {
    outs = static_cast<int>(std::min<int64_t>(kWeightOuts, parts_of(at.outputs, at.block) - first_block));
    inputs = static_cast<int>(std::min(at.chunk, at.inputs - first_input));
  }
  int64_t group, first_block, first_input;
  int outs, inputs;
};

// A 1x1 window that reads every position once is one long row.
void join_rows(Axis& rows, Axis& columns) {
  const auto plain = [](const Axis& axis) { return axis.kernel == 1 && axis.stride == 1 && axis.size == axis.outs; };
  if (!plain(rows) || !plain(columns)) return;
  const int64_t positions = rows.size * columns.size;
  rows = {1, 1, 1, 1, 0};
  columns = {positions, positions, 1, 1, 0};
}

class ConvWeightGrad : public Kernel {
 public:
  explicit ConvWeightGrad(const Attributes& attributes)
      : window_(attributes),
        x_block_(attributes.integer("x_block", window_.block)),
        group_(attributes.integer("group", 1)),
        shape_(attributes.integers("shape", {})) {
    require(x_block_ == 1 || x_block_ == window_.block, "attribute x_block: neither 1 nor the block");
    require(shape_.size() == 2 && shape_[0] > 0 && shape_[1] > 0, "attribute shape: not outputs and inputs of a group");
    require(group_ > 0 && shape_[0] % group_ == 0, "attribute group: does not divide the outputs");
    require(group_ == 1 || (shape_[0] / group_ % window_.block == 0 && shape_[1] % x_block_ == 0),
            "attribute group: a group has no whole blocks");
  }

  void run(const Call& call) const override {
    const Tensor x = call.input(0), dy = call.input(1);
    const Maps in(x, static_cast<int>(x_block_)), out(dy, window_.block);
    Axis rows = window_.axis(0, in.height), columns = window_.axis(1, in.width);
    require(out.height == rows.outs && out.width == columns.outs && in.samples == out.samples,
            "input dy: not of the shape of the convolution's output");
    require(in.channels == padded(shape_[1] * group_, x_block_) && out.channels == padded(shape_[0], window_.block),
            "attribute shape: not the channels of x and dy");
    const Tensor dw = call.output(0, {shape_[0], shape_[1], window_.kernel[0], window_.kernel[1]});
    join_rows(rows, columns);
    const Division at{group_, shape_[0] / group_, shape_[1], window_.block, window_.taps(),
                      x_block_ == 1 ? kPlanes : x_block_};
    const int64_t parts = std::max<int64_t>(1, std::min(in.samples, kTasks / at.tasks()));
    std::vector<float> sums(static_cast<size_t>(at.tasks() * parts * at.floats()));
    call.parallel(static_cast<size_t>(at.tasks() * parts), [&](size_t index) {
      const int64_t task = static_cast<int64_t>(index) / parts, part = static_cast<int64_t>(index) % parts;
      float* own = sums.data() + static_cast<int64_t>(index) * at.floats();
      const int64_t first = part * in.samples / parts, last = (part + 1) * in.samples / parts;
      for (int64_t n = first; n < last; ++n) add_sample(Part(at, task), at, in, out, n, {x, dy}, rows, columns, own);
      if (parts == 1) write(at, Part(at, task), own, dw.floats());
    });
    if (parts == 1) return;
    for (int64_t task = 0; task < at.tasks(); ++task) {
      float* own = sums.data() + task * parts * at.floats();
      for (int64_t i = at.floats(); i < parts * at.floats(); ++i) own[i % at.floats()] += own[i];
      write(at, Part(at, task), own, dw.floats());
    }
  }

 private:
  struct Operands {
    const Tensor &x, &dy;
  };

  static int64_t padded(int64_t channels, int64_t block) { return parts_of(channels, block) * block; }

  void add_sample(const Part& part, const Division& at, const Maps& in, const Maps& out, int64_t sample,
                  const Operands& from, const Axis& rows, const Axis& columns, float* sums) const {
    const int64_t positions = in.height * in.width, outs = out.height * out.width;
    const int64_t input = part.group * at.inputs + part.first_input;
    const int64_t output = part.group * at.outputs / at.block + part.first_block;
    WeightRows p{};
    p.x = from.x.floats((sample * in.channels + input) * positions);
    p.dy = from.dy.floats((sample * out.channels + output * at.block) * outs);
    p.sums = sums;
    p.rows = rows;
    p.columns = columns;
    p.input_step = x_block_ == 1 ? positions : 1;
    p.position_step = x_block_;
    p.dy_step = outs * at.block;
    p.inputs = part.inputs;
    p.outs = part.outs;
    const int64_t height = std::max<int64_t>(1, kWeightStrip / (columns.outs * at.block));
    for (int64_t row = 0; row < rows.outs; row += height) {
      p.first = row;
      p.last = std::min(rows.outs, row + height);
      instructions().weight.gradient[block_index(window_.block)](p);
    }
  }

  // The sums of a task in their places of dw [O, I, kh, kw].
  static void write(const Division& at, const Part& part, const float* sums, float* dw) {
    for (int o = 0; o < part.outs; ++o) {
      const int64_t first = (part.first_block + o) * at.block;
      for (int64_t lane = 0; lane < std::min(at.block, at.outputs - first); ++lane) {
        float* to = dw + ((part.group * at.outputs + first + lane) * at.inputs + part.first_input) * at.taps;
        for (int64_t k = 0; k < part.inputs; ++k) {
          for (int64_t tap = 0; tap < at.taps; ++tap) {
            to[k * at.taps + tap] = sums[((tap * part.inputs + k) * part.outs + o) * at.block + lane];
          }
        }
      }
    }
  }

  Window window_;
  int64_t x_block_, group_;
  std::vector<int64_t> shape_;
};

}  // namespace

// x, dy -> dw
const Operator kConvWeightGrad("ConvWeightGrad", {kTensor, kTensor}, {kTensor}, make_kernel<ConvWeightGrad>);

}  // namespace ttac
