// NormForward: normalisation by the moments of the batch, a residual, and an activation.
#include <algorithm>

#include "norm_steps.h"

namespace ttac {
namespace {

class NormForward : public Kernel {
 public:
  explicit NormForward(const Attributes& attributes) : settings_(attributes) {}

  void run(const Call& call) const override {
    NormTensors at(settings_, call.input(0));
    at.scale = call.input(1);
    at.bias = call.input(2);
    at.residual = call.input(3);
    at.require_channels(at.scale, "input scale: not one number for each channel");
    at.require_channels(at.bias, "input bias: not one number for each channel");
    at.require_like_x(at.residual, "input residual: not of the shape of x");
    at.out = call.output(0, at.x.shape);
    at.mask = call.output(3, at.x.shape);
    at.bits = call.output(4, {at.layout.samples, at.layout.blocks * ((at.layout.run + 7) / 8)});
    require(!at.mask || !at.bits, "outputs mask and bits: both are asked for");
    require(!(at.mask || at.bits) || settings_.act == kRelu || settings_.act == kClip, "output mask or bits: only relu and clip have one");
    if (settings_.given) {
      run_given(call, at);
    } else {
      run_batch(call, at);
    }
  }

 private:
  static void run_batch(const Call& call, NormTensors& at) {
    std::vector<float> spare(2 * at.layout.channels);  // for outputs that the graph does not ask for
    at.mean = call.output(1, {at.layout.channels});
    at.variance = call.output(2, {at.layout.channels});
    if (!at.mean) at.mean.data = spare.data();
    if (!at.variance) at.variance.data = spare.data() + at.layout.channels;
    reduce_then_apply(call, at.layout, ForwardSteps{at});
  }

  static void run_given(const Call& call, NormTensors& at) {
    at.mean = call.input(4);
    at.variance = call.input(5);
    at.require_channels(at.mean, "input mean: not one number for each channel");
    at.require_channels(at.variance, "input variance: not one number for each channel");
    copy(at.mean, call.output(1, at.mean.shape));
    copy(at.variance, call.output(2, at.variance.shape));
    at.settle_all();
    apply_blocks(call, at.layout, 0, at.layout.blocks, ForwardSteps{at});
  }

  static void copy(const Tensor& from, const Tensor& to) {
    if (to) std::copy_n(from.floats(), from.shape[0], to.floats());
  }

  NormSettings settings_;
};

}  // namespace

// x, scale, bias, residual, mean, variance -> y, mean, variance, mask, bits
const Operator kNormForward("NormForward",
                            {kTensor, kTensor, kTensor, kMaybeTensor, kMaybeTensor, kMaybeTensor},
                            {kTensor, kMaybeTensor, kMaybeTensor, kMaybeMask, kMaybeBytes}, make_kernel<NormForward>);

}  // namespace ttac
