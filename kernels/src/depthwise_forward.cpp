// DepthwiseForward: a norm with its activation, a depthwise convolution, and another norm with its activation.  The
// activation between the first norm and the convolution exists only in strips that stay in a cache.
#include <algorithm>

#include "depthwise.h"
#include "norm_steps.h"

namespace ttac {
namespace {

// x2 and its moments, then y2.
struct ConvolveSteps : ForwardSteps {
  ConvolveSteps(NormTensors& second, const NormTensors& first_, const Convolution& convolution_, Tensor bias_)
      : ForwardSteps{second}, first(first_), convolution(convolution_), bias(bias_) {}
  const NormTensors& first;
  const Convolution& convolution;
  Tensor bias;

  void partial(int64_t block, const Stretch& stretch, Moments& into) const {
    const Axis& axis = convolution.rows;
    const Rows rows(stretch, convolution.narrow(), axis.outs);
    const int64_t low = std::max<int64_t>(0, rows.first * axis.stride - axis.begin);
    const int64_t high = std::min(axis.size, (rows.last - 1) * axis.stride - axis.begin + axis.kernel);
    const int64_t wide = convolution.wide();
    float* y1 = scratch(0, (high - low) * wide);
    NormPiece piece = first.piece(block, {(rows.map * axis.size + low) * wide, (high - low) * wide});
    piece.out = y1;
    instructions().norm.forward[first.settings.act][0][0](piece);
    float* x2 = at.x.floats(stretch.offset);
    DepthwiseRows task = convolution.rows_of(block, y1, low, x2, rows);
    task.bias = bias.floats(block * at.settings.block);
    instructions().depthwise.forward[block_index(at.settings.block)](task);
    instructions().norm.moments(x2, stretch.length, at.settings.block, into);
  }
};

class DepthwiseForward : public Kernel {
 public:
  explicit DepthwiseForward(const Attributes& attributes)
      : window_(attributes), first_(attributes, "1"), second_(attributes, "2") {}

  void run(const Call& call) const override {
    const Tensor x1 = call.input(0), bias = call.input(4);
    const Convolution convolution(window_, call.input(3), x1.shape);
    NormTensors first(first_, x1, convolution.strip(convolution.wide()));
    const std::vector<int64_t> outs = convolution.outs(x1.shape);
    const Tensor y2 = call.output(0, outs), x2 = call.output(1, outs);
    NormTensors second(second_, x2 ? x2 : y2, convolution.strip(convolution.narrow()));  // y2 may have its place
    first.scale = call.input(1);
    first.bias = call.input(2);
    second.scale = call.input(5);
    second.bias = call.input(6);
    second.out = y2;
    std::vector<float> spare(4 * first.layout.channels);  // for outputs that the graph does not ask for
    prepare(call, first, 2, spare.data());
    prepare(call, second, 4, spare.data() + 2 * first.layout.channels);
    if (bias) first.require_channels(bias, "input conv_bias: not one number for each channel");
    const ConvolveSteps steps(second, first, convolution, bias);
    reduce_twice_then_apply(call, first.layout, ForwardSteps{first}, steps);
  }

 private:
  static void prepare(const Call& call, NormTensors& at, size_t output, float* spare) {
    at.require_channels(at.scale, "input scale: not one number for each channel");
    at.require_channels(at.bias, "input bias: not one number for each channel");
    at.mean = call.output(output, {at.layout.channels});
    at.variance = call.output(output + 1, {at.layout.channels});
    if (!at.mean) at.mean.data = spare;
    if (!at.variance) at.variance.data = spare + at.layout.channels;
  }

  Window window_;
  NormSettings first_, second_;
};

}  // namespace

// x1, scale1, bias1, w, conv_bias, scale2, bias2 -> y2, x2, mean1, variance1, mean2, variance2
const Operator kDepthwiseForward("DepthwiseForward",
                                 {kTensor, kTensor, kTensor, kTensor, kMaybeTensor, kTensor, kTensor},
                                 {kTensor, kMaybeTensor, kMaybeTensor, kMaybeTensor, kMaybeTensor, kMaybeTensor},
                                 make_kernel<DepthwiseForward>);

}  // namespace ttac
