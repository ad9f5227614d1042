// The functions that the library exports.
#include <mutex>

#include "dispatch.h"
#include "operator.h"

#ifndef TTAC_KERNELS_VERSION
#error "the build passes the version of the package"
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace ttac {
namespace {

const Operator* const kOperators[] = {&kNormForward,     &kNormBackward, &kMaxPoolForward,
                                       &kMaxPoolBackward, &kInterleave,   &kDepthwiseInputGrad,
                                       &kDepthwiseForward, &kDepthwiseBackward, &kKeepBlocks,
                                       &kSparseNormBackward, &kLayerNormForward, &kLayerNormBackward,
                                       &kActivationForward, &kActivationBackward, &kSoftmaxBackward,
                                       &kConvWeightGrad, &kReorderWeights, &kQuantizeRows, &kDequantizeRows,
                                       &kRestoreBlocks, &kAdamStep, &kByteMoments, &kSignedByteMoments, &kByteNorm,
                                       &kSignedByteNorm};

// The domain lives as long as the process, because sessions keep a pointer to it.
Status* make_domain(const Slot* api, OpDomain** domain) {
  OpDomain* made = nullptr;
  if (Status* status = CreateOpDomain::of(api)("ttac.kernels", &made)) return status;
  for (const Operator* op : kOperators) {
    if (Status* status = AddToDomain::of(api)(made, op)) return status;
  }
  *domain = made;
  return nullptr;
}

}  // namespace
}  // namespace ttac

// Version of the package that the library belongs to.
EXPORT const char* ttac_kernels_version() { return TTAC_KERNELS_VERSION; }

// The instructions that the kernels use on this processor: "avx512", "avx2" or "baseline".
EXPORT const char* ttac_kernels_instructions() { return ttac::instructions().name; }

// The engine calls this function by its name for each session that registers the library.
EXPORT ttac::Status* RegisterCustomOps(ttac::SessionOptions* options, const ttac::ApiBase* base) {
  const ttac::Slot* api = base->get_api(ttac::kApiVersion);
  if (api == nullptr) {  // an engine before 1.18: report with the first slot, which every engine has
    const ttac::Slot* first = base->get_api(1);
    return ttac::CreateStatus::of(first)(ttac::kFail, "ttac_kernels needs onnxruntime 1.18 or later");
  }
  static std::mutex mutex;
  static ttac::OpDomain* domain = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (domain == nullptr) {
    if (ttac::Status* status = ttac::make_domain(api, &domain)) return status;
  }
  return ttac::AddDomain::of(api)(options, domain);
}
