// The exponential, the logistic function and the normal distribution on vectors.  Part of tables.cpp.
#pragma once
#include "runs.h"

namespace ttac {
namespace {

// c[0] + c[1] x + ...
template <int count>
INLINE Vec polynomial(Vec x, const float (&c)[count]) {
  Vec sum = all(c[count - 1]);
#pragma GCC unroll 16
  for (int i = count - 2; i >= 0; --i) sum = sum * x + all(c[i]);
  return sum;
}

// e^x for x in [-87, 88], and the value at the nearer end outside; NaN stays NaN.  e^x = 2^n e^r with |r| <= ln(2)/2;
// the polynomial of e^r is a minimax fit with a relative error of 2e-9.
INLINE Vec exponential(Vec x) {
  constexpr float kFit[] = {1.0f,          1.00000004f,    0.499999921f, 0.166664202f,
                            0.0416682259f, 0.00837481571f, 0.001383683f};
  const Vec shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
  x = select(x < all(-87.0f), all(-87.0f), x);
  x = select(x > all(88.0f), all(88.0f), x);
  const Vec shifted = x * all(1.44269504f) + shift, n = shifted - shift;
  const Vec r = (x - n * all(0.693145752f)) - n * all(1.42860677e-6f);  // ln(2) in two parts
  const Mask power = (bits_of<Mask>(shifted) << 23) + all(127 << 23);  // only the low bits of `shifted` stay
  return polynomial(r, kFit) * bits_of<Vec>(power);
}

INLINE Vec logistic(Vec x) { return all(1.0f) / (all(1.0f) + exponential(-x)); }

// Density and distribution of the standard normal at u.
struct Normal {
  Vec density, distribution;
};

// The tail at t = |u| is density times Mills' ratio.  The ratio is a polynomial in w = 1 / (1 + 0.3 t), a minimax fit
// with a relative error of 6e-8 for t <= 14; beyond, the density of float32 is zero.
INLINE Normal normal(Vec u) {
  constexpr float kFit[] = {1.79737994e-05f, 0.299511139f, 0.305609629f,  0.237333545f, 0.357290952f,
                            -0.191784915f,   0.573176744f, -0.424042187f, 0.0962013286f};
  const Vec t = select(u < Vec{}, -u, u), w = all(1.0f) / (all(1.0f) + all(0.3f) * t);
  const Vec density = select(t > all(13.0f), Vec{}, all(0.398942280f) * exponential(all(-0.5f) * t * t));
  const Vec tail = density * polynomial(w, kFit);
  return {density, select(u < Vec{}, tail, all(1.0f) - tail)};
}

}  // namespace
}  // namespace ttac
