// An operator of the domain `ttac.kernels`, as the engine sees it.
#pragma once
#include <memory>

#include "call.h"

namespace ttac {

// One node of a session; the engine may run it for several calls at once.
class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void run(const Call& call) const = 0;
};

// The name, the ports and the maker of an operator.  All tensors are float32; ports beyond the required ones may be
// absent.
struct Operator : CustomOp {
  Operator(const char* op_name, size_t inputs, size_t required_inputs, size_t outputs, size_t required_outputs,
           std::unique_ptr<Kernel> (*make)(const Attributes&));
  const char* op_name;
  size_t inputs, required_inputs, outputs, required_outputs;
  std::unique_ptr<Kernel> (*make)(const Attributes&);
};

template <class Made>
std::unique_ptr<Kernel> make_kernel(const Attributes& attributes) {
  return std::make_unique<Made>(attributes);
}

extern const Operator kNormForward;
extern const Operator kNormBackward;

}  // namespace ttac
