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

// An input or an output.
struct Port {
  ElementType type;
  Characteristic characteristic;
};

constexpr Port kTensor{kFloat32, kRequired}, kMaybeTensor{kFloat32, kOptional};
constexpr Port kMaybeMask{kBool, kOptional}, kBytes{kUint8, kRequired}, kMaybeBytes{kUint8, kOptional};
constexpr Port kSignedBytes{kInt8, kRequired}, kIntegers{kInt64, kRequired};

// The name, the ports and the maker of an operator.
struct Operator : CustomOp {
  Operator(const char* op_name, std::vector<Port> inputs, std::vector<Port> outputs,
           std::unique_ptr<Kernel> (*make)(const Attributes&));
  const char* op_name;
  std::vector<Port> inputs, outputs;
  std::unique_ptr<Kernel> (*make)(const Attributes&);
};

template <class Made>
std::unique_ptr<Kernel> make_kernel(const Attributes& attributes) {
  return std::make_unique<Made>(attributes);
}

extern const Operator kNormForward, kNormBackward, kMaxPoolForward, kMaxPoolBackward, kInterleave, kDepthwiseInputGrad,
    kDepthwiseForward, kDepthwiseBackward, kKeepBlocks, kSparseNormBackward, kLayerNormForward, kLayerNormBackward,
    kActivationForward, kActivationBackward, kSoftmaxBackward, kConvWeightGrad, kReorderWeights, kQuantizeRows,
    kDequantizeRows, kRestoreBlocks, kAdamStep, kByteMoments, kSignedByteMoments, kByteNorm, kSignedByteNorm;

}  // namespace ttac
