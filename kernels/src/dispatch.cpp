#include "dispatch.h"

#include <cstdlib>
#include <cstring>

namespace ttac {
namespace {

#if defined(__x86_64__)
bool allowed(const Instructions& found, const char* wanted) {
  return wanted == nullptr || *wanted == '\0' || std::strcmp(found.name, wanted) == 0;
}
#endif

const Instructions& choose() {
#if defined(__x86_64__)
  const char* wanted = std::getenv("TTAC_KERNELS_INSTRUCTIONS");
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (avx512 && allowed(kAvx512, wanted)) return kAvx512;
  if (avx2 && allowed(kAvx2, wanted)) return kAvx2;
#endif
  return kBaseline;
}

}  // namespace

const Instructions& instructions() {
  static const Instructions& chosen = choose();
  return chosen;
}

}  // namespace ttac
