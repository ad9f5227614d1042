// NormBackward: the gradient of NormForward.
#include "norm_steps.h"

namespace ttac {
namespace {

class NormBackward : public Kernel {
 public:
  explicit NormBackward(const Attributes& attributes) : settings_(attributes) {}

  void run(const Call& call) const override {
    NormTensors at(settings_, call.input(1));
    read(call, at);
    std::vector<float> spare(2 * at.layout.channels);  // for outputs that the graph does not ask for
    at.out = call.output(0, at.x.shape);
    at.dscale = call.output(1, {at.layout.channels});
    at.dbias = call.output(2, {at.layout.channels});
    at.du = call.output(3, at.x.shape);
    if (!at.dscale) at.dscale.data = spare.data();
    if (!at.dbias) at.dbias.data = spare.data() + at.layout.channels;
    if (settings_.act >= kSilu && !at.du) at.du = at.out;  // a smooth activation costs more than a place for du
    at.settle_all();
    reduce_then_apply(call, at.layout, BackwardSteps{at, at.rule()});
  }

 private:
  static void read(const Call& call, NormTensors& at) {
    at.dy = call.input(0);
    at.scale = call.input(2);
    at.bias = call.input(3);
    at.mean = call.input(4);
    at.variance = call.input(5);
    at.mask = call.input(6);
    at.residual = call.input(7);
    at.bits = call.input(8);
    at.more = call.input(9);
    const int64_t bytes = at.layout.blocks * ((at.layout.run + 7) / 8);
    require(!at.bits || at.bits.shape == std::vector<int64_t>{at.layout.samples, bytes},
            "input bits: not one bit for each element of x");
    at.require_like_x(at.dy, "input dy: not of the shape of x");
    at.require_like_x(at.mask, "input mask: not of the shape of x");
    at.require_like_x(at.residual, "input residual: not of the shape of x");
    at.require_like_x(at.more, "input more: not of the shape of x");
    for (const Tensor* each : {&at.scale, &at.mean, &at.variance}) {
      at.require_channels(*each, "input scale, mean or variance: not one number for each channel");
    }
  }

  NormSettings settings_;
};

}  // namespace

// dy, x, scale, bias, mean, variance, mask, residual, bits, more -> dx, dscale, dbias, du
const Operator kNormBackward(
    "NormBackward",
    {kTensor, kTensor, kTensor, kMaybeTensor, kTensor, kTensor, kMaybeMask, kMaybeTensor, kMaybeBytes,
     kMaybeTensor},
    {kMaybeTensor, kMaybeTensor, kMaybeTensor, kMaybeTensor}, make_kernel<NormBackward>);

}  // namespace ttac
