// AdamStep: one step of Adam for one tensor, in one pass over the memory.
#include <algorithm>
#include <cmath>

#include "dispatch.h"
#include "operator.h"
#include "pieces.h"

namespace ttac {
namespace {

int64_t elements_of(const Tensor& tensor) {
  int64_t count = 1;
  for (int64_t size : tensor.shape) count *= size;
  return count;
}

class AdamStep : public Kernel {
 public:
  explicit AdamStep(const Attributes& attributes)
      : decay1_(attributes.number("decay1", 0.9f)),
        share1_(attributes.number("share1", 0.1f)),
        decay2_(attributes.number("decay2", 0.999f)),
        share2_(attributes.number("share2", 0.001f)),
        epsilon_(attributes.number("epsilon", 1e-8f)) {}

  void run(const Call& call) const override {
    const Tensor w = call.input(0), g = call.input(1), m = call.input(2), v = call.input(3);
    const Tensor rate = call.input(4), root = call.input(5);
    const int64_t count = elements_of(w);
    for (const Tensor* each : {&g, &m, &v}) {
      require(elements_of(*each) == count, "inputs g, m, v: not as many elements as w");
    }
    require(elements_of(rate) == 1 && elements_of(root) == 1, "inputs rate, root: not one number");
    const Tensor next = call.output(0, w.shape), mean = call.output(1, m.shape), square = call.output(2, v.shape);
    call.parallel(static_cast<size_t>((count + kPiece - 1) / kPiece), [&](size_t index) {
      const int64_t first = static_cast<int64_t>(index) * kPiece;
      instructions().adam.step({w.floats(first), g.floats(first), m.floats(first), v.floats(first), next.floats(first),
                                mean.floats(first), square.floats(first), std::min(kPiece, count - first), decay1_,
                                share1_, decay2_, share2_, epsilon_, *rate.floats(), *root.floats()});
    });
  }

 private:
  float decay1_, share1_, decay2_, share2_, epsilon_;
};

}  // namespace

// w, g, m, v, rate, root -> the next w, m, v
const Operator kAdamStep("AdamStep", {kTensor, kTensor, kTensor, kTensor, kTensor, kTensor},
                         {kTensor, kTensor, kTensor}, make_kernel<AdamStep>);

}  // namespace ttac
