// ConvWeightGrad: the gradient of a convolution by its kernel.
//
// A task has a few blocks of outputs and of inputs of one group, and all taps.  Where there are few tasks, the samples
// are divided too, and the parts are added in their order.
#include <algorithm>

#include "dispatch.h"
#include "operator.h"
#include "rows.h"
#include "window_attributes.h"

namespace ttac {
namespace {

constexpr int64_t kPlanes = 16;            // inputs of a task where x is in the plain order
constexpr int64_t kTasks = 32;             // at least so many, where the samples allow it
constexpr int64_t kWeightStrip = 1 << 13;  // floats of a strip of one block of dy: 32 KiB
constexpr int64_t kFewTaps = 4;            // fewer taps read x and dy too seldom, so a task has more of both

int64_t parts_of(int64_t whole, int64_t size) { return (whole + size - 1) / size; }

// The division of the sums into tasks.
struct Division {
  Division(int64_t group_, int64_t outputs_, int64_t inputs_, int64_t block_, int64_t taps_, int64_t x_block)
      : group(group_), outputs(outputs_), inputs(inputs_), block(block_), taps(taps_) {
    const bool few = taps < kFewTaps;
    chunk = std::min(inputs, x_block == 1 ? kPlanes : few ? 4 * x_block : x_block);
    sets = parts_of(blocks(), few ? 6 : 3);
  }
  int64_t group, outputs, inputs;  // outputs and inputs of a group
  int64_t block, taps;
  int64_t chunk;  // most inputs of a task
  int64_t sets;   // of blocks of outputs; as even as can be
  int64_t blocks() const { return parts_of(outputs, block); }
  int64_t chunks() const { return parts_of(inputs, chunk); }
  int64_t tasks() const { return group * sets * chunks(); }
  int64_t floats() const { return taps * chunk * parts_of(blocks(), sets) * block; }
};

// The part of the kernel that one task makes.
struct Part {
  Part(const Division& at, int64_t task)
      : group(task / (at.sets * at.chunks())), first_input(task % at.chunks() * at.chunk) {
    const int64_t set = task / at.chunks() % at.sets;
    first_block = set * at.blocks() / at.sets;
    outs = static_cast<int>((set + 1) * at.blocks() / at.sets - first_block);
    inputs = static_cast<int>(std::min(at.chunk, at.inputs - first_input));
  }
  int64_t group, first_block, first_input;
  int outs, inputs;
};

// The rows of a 1x1 window that reads every position once are joined to rows as long as a strip.
void join_rows(Axis& rows, Axis& columns, int64_t block) {
  const auto plain = [](const Axis& axis) { return axis.kernel == 1 && axis.stride == 1 && axis.size == axis.outs; };
  if (!plain(rows) || !plain(columns)) return;
  int64_t count = rows.size;
  while (count > 1 && (rows.size % count != 0 || count * columns.size * block > kWeightStrip)) --count;
  rows.size = rows.outs = rows.size / count;
  columns.size = columns.outs = columns.size * count;
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
    join_rows(rows, columns, window_.block);
    const Division at(group_, shape_[0] / group_, shape_[1], window_.block, window_.taps(), x_block_);
    const int64_t parts = std::max<int64_t>(1, std::min(in.samples, kTasks / at.tasks()));
    const auto add = [&](int64_t task, int64_t part, float* sums) {
      const int64_t first = part * in.samples / parts, last = (part + 1) * in.samples / parts;
      add_samples(Part(at, task), at, in, out, {first, last}, {x, dy}, rows, columns, sums);
    };
    if (parts == 1) {
      call.parallel(static_cast<size_t>(at.tasks()), [&](size_t task) {
        std::vector<float> sums(static_cast<size_t>(at.floats()));
        add(static_cast<int64_t>(task), 0, sums.data());
        write(at, Part(at, static_cast<int64_t>(task)), sums.data(), dw.floats());
      });
      return;
    }
    std::vector<float> sums(static_cast<size_t>(at.tasks() * parts * at.floats()));
    call.parallel(static_cast<size_t>(at.tasks() * parts), [&](size_t index) {
      const int64_t i = static_cast<int64_t>(index);
      add(i / parts, i % parts, sums.data() + i * at.floats());
    });
    call.parallel(static_cast<size_t>(at.tasks()), [&](size_t task) {
      float* own = sums.data() + static_cast<int64_t>(task) * parts * at.floats();
      for (int64_t part = 1; part < parts; ++part) {
        for (int64_t i = 0; i < at.floats(); ++i) own[i] += own[part * at.floats() + i];
      }
      write(at, Part(at, static_cast<int64_t>(task)), own, dw.floats());
    });
  }

 private:
  struct Operands {
    const Tensor &x, &dy;
  };

  static int64_t padded(int64_t channels, int64_t block) { return parts_of(channels, block) * block; }

  // Strips of rows, or of several samples where a map is small.
  void add_samples(const Part& part, const Division& at, const Maps& in, const Maps& out, Range samples,
                   const Operands& from, const Axis& rows, const Axis& columns, float* sums) const {
    const int64_t positions = in.height * in.width, outs = out.height * out.width;
    const int64_t input = part.group * at.inputs + part.first_input;
    const int64_t output = part.group * at.outputs / at.block + part.first_block;
    WeightRows p{};
    p.sums = sums;
    p.rows = rows;
    p.columns = columns;
    p.x_sample = in.channels * positions;
    p.dy_sample = out.channels * outs;
    p.x_map = x_block_ * positions;
    p.dy_map = at.block * outs;
    p.input_step = x_block_ == 1 ? positions : 1;
    p.position_step = x_block_;
    p.inputs = part.inputs;
    p.in_block = static_cast<int>(x_block_ == 1 ? part.inputs : x_block_);
    p.outs = part.outs;
    const int64_t height = std::max<int64_t>(1, kWeightStrip / (columns.outs * at.block));
    const int64_t together = std::max<int64_t>(1, height / rows.outs), strips = parts_of(rows.outs, height);
    for (int64_t n = samples.first; n < samples.last; n += together) {
      p.samples = std::min(together, samples.last - n);
      p.x = from.x.floats(n * p.x_sample + input * positions);
      p.dy = from.dy.floats(n * p.dy_sample + output * p.dy_map);
      for (int64_t strip = 0; strip < strips; ++strip) {
        p.first = strip * rows.outs / strips;
        p.last = (strip + 1) * rows.outs / strips;
        instructions().weight.gradient[block_index(window_.block)](p);
      }
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
