// ActivationForward, ActivationBackward and SoftmaxBackward.
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

// Call `body(start, length)` for stretches of `total` floats, in parallel.
template <class Body>
void each_part(const Call& call, int64_t total, int64_t length, Body body) {
  call.parallel(static_cast<size_t>((total + length - 1) / length), [&](size_t index) {
    const int64_t start = static_cast<int64_t>(index) * length;
    body(start, std::min(length, total - start));
  });
}

class ActivationForward : public Kernel {
 public:
  explicit ActivationForward(const Attributes& attributes) : settings_(attributes) {}

  void run(const Call& call) const override {
    const Tensor x = call.input(0), y = call.output(0, x.shape);
    each_part(call, elements_of(x), kStretch, [&](int64_t start, int64_t length) {
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
    each_part(call, elements_of(x), kStretch, [&](int64_t start, int64_t length) {
      instructions().norm.differentiate[settings_.act](dy.floats(start), x.floats(start), dx.floats(start), length,
                                                       settings_.low, settings_.high);
    });
  }

 private:
  NormSettings settings_;
};

class SoftmaxBackward : public Kernel {
 public:
  explicit SoftmaxBackward(const Attributes&) {}

  void run(const Call& call) const override {
    const Tensor dy = call.input(0), y = call.input(1), dx = call.output(0, y.shape);
    require(!y.shape.empty() && dy.shape == y.shape, "input dy: not of the shape of y");
    const int64_t width = std::max<int64_t>(1, y.shape.back()), rows = elements_of(y) / width;
    each_part(call, rows, std::max<int64_t>(1, kStretch / width), [&](int64_t first, int64_t count) {
      const int64_t start = first * width;
      instructions().layer.softmax_backward(dy.floats(start), y.floats(start), dx.floats(start), count, width);
    });
  }
};

}  // namespace

// x -> y
const Operator kActivationForward("ActivationForward", {kTensor}, {kTensor}, make_kernel<ActivationForward>);
// dy, x -> dx
const Operator kActivationBackward("ActivationBackward", {kTensor, kTensor}, {kTensor}, make_kernel<ActivationBackward>);
// dy, y -> dx
const Operator kSoftmaxBackward("SoftmaxBackward", {kTensor, kTensor}, {kTensor}, make_kernel<SoftmaxBackward>);
}  // namespace ttac
