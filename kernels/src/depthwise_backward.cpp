// DepthwiseBackward: the gradient of DepthwiseForward.  The gradients between the norms exist only in strips.
#include <algorithm>

#include "depthwise.h"
#include "norm_steps.h"

namespace ttac {
namespace {

// du1 and its sums, then dx1.
struct GatherSteps : BackwardSteps {
  GatherSteps(NormTensors& first, const BackwardSteps& second_, const Convolution& convolution_)
      : BackwardSteps{first, first.rule()}, second(second_), convolution(convolution_) {}
  const BackwardSteps& second;
  const Convolution& convolution;

  // The rows of x2 that read the rows of x1.
  Range readers(const Range& rows) const {
    const Axis& axis = convolution.rows;
    const int64_t before = rows.first + axis.begin - axis.kernel;
    const int64_t low = before < 0 ? 0 : before / axis.stride + 1;
    return {low, std::max(low, std::min(axis.outs, (rows.last - 1 + axis.begin) / axis.stride + 1))};
  }

  void partial(int64_t block, const Stretch& stretch, Sums& into) const {
    const Rows rows(stretch, convolution.wide(), convolution.rows.size);
    const Range from = readers(rows);
    const int64_t narrow = convolution.narrow(), length = (from.last - from.first) * narrow;
    float *dx2 = scratch(0, length), *dy1 = scratch(1, stretch.length);
    NormPiece piece = second.at.piece(block, {(rows.map * convolution.rows.outs + from.first) * narrow, length});
    piece.out = dx2;
    instructions().norm.backward[second.rule][0][0](piece);
    const DepthwiseRows task = convolution.rows_of(block, dx2, from.first, dy1, rows);
    instructions().depthwise.backward[block_index(at.settings.block)](task);
    NormPiece own = at.piece(block, stretch);
    own.dy = dy1;
    instructions().norm.sums[rule](own, into);
  }
};

class DepthwiseBackward : public Kernel {
 public:
  explicit DepthwiseBackward(const Attributes& attributes)
      : window_(attributes), first_(attributes, "1"), second_(attributes, "2") {}

  void run(const Call& call) const override {
    const Tensor x2 = call.input(1), x1 = call.input(2);
    const Convolution convolution(window_, call.input(3), x1.shape);
    require(x2.shape == convolution.outs(x1.shape), "input x2: not of the shape of the convolution's output");
    NormTensors first(first_, x1, convolution.strip(convolution.wide()));
    NormTensors second(second_, x2, convolution.strip(convolution.narrow()));
    second.dy = call.input(0);
    second.require_like_x(second.dy, "input dy2: not of the shape of x2");
    read(call, first, 4);
    read(call, second, 8);
    first.out = first.du = call.output(0, x1.shape);  // du1 has the place of dx1 first
    std::vector<float> spare(4 * first.layout.channels);  // for outputs that the graph does not ask for
    write(call, first, 1, spare.data());
    write(call, second, 3, spare.data() + 2 * first.layout.channels);
    first.settle_all();
    second.settle_all();
    const BackwardSteps last{second, second.rule()};
    const GatherSteps steps(first, last, convolution);
    reduce_twice_then_apply(call, first.layout, last, steps);
  }

 private:
  static void read(const Call& call, NormTensors& at, size_t index) {
    at.scale = call.input(index);
    at.bias = call.input(index + 1);
    at.mean = call.input(index + 2);
    at.variance = call.input(index + 3);
    for (const Tensor* each : {&at.scale, &at.bias, &at.mean, &at.variance}) {
      at.require_channels(*each, "input scale, bias, mean or variance: not one number for each channel");
    }
  }

  static void write(const Call& call, NormTensors& at, size_t index, float* spare) {
    at.dscale = call.output(index, {at.layout.channels});
    at.dbias = call.output(index + 1, {at.layout.channels});
    if (!at.dscale) at.dscale.data = spare;
    if (!at.dbias) at.dbias.data = spare + at.layout.channels;
  }

  Window window_;
  NormSettings first_, second_;
};

}  // namespace

// dy2, x2, x1, w, and scale, bias, mean, variance of both norms -> dx1, and dscale, dbias of both norms
const Operator kDepthwiseBackward(
    "DepthwiseBackward",
    {kTensor, kTensor, kTensor, kTensor, kTensor, kTensor, kTensor, kTensor, kTensor, kTensor, kTensor, kTensor},
    {kMaybeTensor, kMaybeTensor, kMaybeTensor, kMaybeTensor, kMaybeTensor}, make_kernel<DepthwiseBackward>);

}  // namespace ttac
