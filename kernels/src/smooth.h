// The exponential, the logistic function and the normal distribution on vectors.  Part of tables.cpp.
#pragma once
#include "vector.h"

namespace ttac {
namespace {

// e^x for x in [-87, 88], and the value at the nearer end outside; NaN stays NaN.  e^x = 2^n e^r with |r| <= ln(2)/2;
// the polynomial of e^r is a minimax fit with a relative error of 2e-9.
INLINE Vec exponential(Vec x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
  x = select(x < all(-87.0f), all(-87.0f), x);
  x = select(x > all(88.0f), all(88.0f), x);
  const Vec shifted = x * 1.44269504f + kShift, n = shifted - kShift;
  const Vec r = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // ln(2) in two parts
  Vec sum = 0.00837481571f + r * 0.001383683f;
  sum = 0.166664202f + r * (0.0416682259f + r * sum);
  sum = 1.0f + r * (1.00000004f + r * (0.499999921f + r * sum));
  const Mask power = ((Mask)shifted << 23) + (127 << 23);  // the sign and exponent of `shifted` leave on the left
  return sum * (Vec)power;
}

INLINE Vec logistic(Vec x) { return 1.0f / (1.0f + exponential(-x)); }

// Density and distribution of the standard normal at u.
struct Normal {
  Vec density, distribution;
};

// The tail at t = |u| is density times Mills' ratio.  The ratio is a polynomial in w = 1 / (1 + 0.3 t), a minimax fit
// with a relative error of 6e-8 for t <= 14; beyond, the density of float32 is zero.
INLINE Normal normal(Vec u) {
  const Vec t = select(u < Vec{}, -u, u), w = 1.0f / (1.0f + 0.3f * t);
  Vec ratio = -0.424042187f + w * 0.0962013286f;
  ratio = 0.357290952f + w * (-0.191784915f + w * (0.573176744f + w * ratio));
  ratio = 1.79737994e-05f + w * (0.299511139f + w * (0.305609629f + w * (0.237333545f + w * ratio)));
  const Vec density = select(t > all(13.0f), Vec{}, 0.398942280f * exponential(-0.5f * t * t));
  const Vec tail = density * ratio;
  return {density, select(u < Vec{}, tail, 1.0f - tail)};
}

}  // namespace
}  // namespace ttac
