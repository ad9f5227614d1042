// The inner loop of Adam's step.  Part of tables.cpp.
#pragma once
#include "adam_table.h"
#include "runs.h"

namespace ttac {
namespace {

// Square roots.
template <class Floats>
INLINE Floats roots(Floats value) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Floats) == 64) return (Floats)_mm512_maskz_sqrt_ps(0xFFFF, (__m512)value);  // the other form warns in GCC 12
#endif
#if defined(__AVX__)
  if constexpr (sizeof(Floats) == 32) return (Floats)_mm256_sqrt_ps((__m256)value);
#endif
#if defined(__SSE__)
  if constexpr (sizeof(Floats) == 16) return (Floats)_mm_sqrt_ps((__m128)value);
#endif
  for (size_t lane = 0; lane < sizeof(Floats) / sizeof(float); ++lane) value[lane] = __builtin_sqrtf(value[lane]);
  return value;
}

template <class Half>
INLINE Twice<Half> roots(Twice<Half> value) {
  return {roots(value.low), roots(value.high)};
}

void adam_step(const AdamPiece& p) {
  const Vec root = all(p.root), rate = all(p.rate), epsilon = all(p.epsilon);
  const Vec decay1 = all(p.decay1), share1 = all(p.share1), decay2 = all(p.decay2), share2 = all(p.share2);
  sweep(p.length, [&](int64_t i, auto at) {
    const Vec g = at.read(p.g + i);
    const Vec mean = at.read(p.m + i) * decay1 + g * share1;
    const Vec square = at.read(p.v + i) * decay2 + g * g * share2;
    at.write(p.mean + i, mean);
    at.write(p.square + i, square);
    at.write(p.next + i, at.read(p.w + i) - mean / (roots(square) / root + epsilon) * rate);
  });
}

constexpr AdamTable adam_table() { return {adam_step}; }

}  // namespace
}  // namespace ttac
