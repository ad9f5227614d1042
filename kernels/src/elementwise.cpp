// ActivationForward and ActivationBackward.
#include <algorithm>

#include "norm.h"

namespace ttac {
namespace {

constexpr int64_t kStretch = 1 << 14;  // floats of a task: 64 KiB

int64_t elements_of(const Tensor& tensor) {
  int64_t count = 1;
  for (int64_t size : tensor.shape) count *= size;
  return count;
}

// Call `body(start, length)` for the stretches of a tensor of `total` floats, in parallel.
template <class Body>
void each_stretch(const Call& call, int64_t total, Body body) {
  call.parallel(static_cast<size_t>((total + kStretch - 1) / kStretch), [&](size_t index) {
    const int64_t start = static_cast<int64_t>(index) * kStretch;
    body(start, std::min(kStretch, total - start));
  });
}

class ActivationForward : public Kernel {
 public:
  explicit ActivationForward(const Attributes& attributes) : settings_(attributes) {}

  void run(const Call& call) const override {
    const Tensor x = call.input(0), y = call.output(0, x.shape);
    each_stretch(call, elements_of(x), [&](int64_t start, int64_t length) {
      instructions().norm.activate[settings_.act](x.floats(start), y.floats(start), length, settings_.low, settings_.high);
    });
  }

 private:
  NormSettings settings_;
};

class ActivationBackward : public Kernel {
 public:
  explicit ActivationBackward(const Attributes& attributes) : settings_(attributes) {
    require(settings_.act != kNone, "attribute act: none has no gradient of its own");
  }

  void run(const Call& call) const override {
    const Tensor dy = call.input(0), x = call.input(1), dx = call.output(0, x.shape);
    require(dy.shape == x.shape, "input dy: not of the shape of x");
    each_stretch(call, elements_of(x), [&](int64_t start, int64_t length) {
      instructions().norm.differentiate[settings_.act](dy.floats(start), x.floats(start), dx.floats(start), length,
                                                       settings_.low, settings_.high);
    });
  }

 private:
  NormSettings settings_;
};

}  // namespace

// x -> y
const Operator kActivationForward("ActivationForward", {kTensor}, {kTensor}, make_kernel<ActivationForward>);
// dy, x -> dx
const Operator kActivationBackward("ActivationBackward", {kTensor, kTensor}, {kTensor}, make_kernel<ActivationBackward>);
}  // namespace ttac
