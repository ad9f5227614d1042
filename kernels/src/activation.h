// Activations and their derivatives on vectors.  Part of tables.cpp.
#pragma once
#include "norm_table.h"
#include "smooth.h"

namespace ttac {
namespace {

struct NoActivation {
  static constexpr Activation kind = kNone;
  INLINE Vec value(Vec u, Vec, Vec) { return u; }
};

// NaN stays NaN, as in the engine's own Relu and Clip.
struct Relu {
  static constexpr Activation kind = kRelu;
  INLINE Vec value(Vec u, Vec, Vec) { return select(u < Vec{}, Vec{}, u); }
  INLINE Mask mask(Vec u, Vec, Vec) { return u > Vec{}; }
  INLINE Vec gradient(Vec dy, Vec u, Vec low, Vec high) { return select(mask(u, low, high), dy, Vec{}); }
};

struct Clip {
  static constexpr Activation kind = kClip;
  INLINE Vec value(Vec u, Vec low, Vec high) {
    const Vec above = select(u < low, low, u);
    return select(above > high, high, above);
  }
  INLINE Mask mask(Vec u, Vec low, Vec high) { return (u > low) & (u < high); }
  INLINE Vec gradient(Vec dy, Vec u, Vec low, Vec high) { return select(mask(u, low, high), dy, Vec{}); }
};

// u * logistic(u)
struct Silu {
  static constexpr Activation kind = kSilu;
  INLINE Vec value(Vec u, Vec, Vec) { return u * logistic(u); }
  INLINE Vec gradient(Vec dy, Vec u, Vec, Vec) {
    const Vec s = logistic(u);
    return dy * (s + u * s * (all(1.0f) - s));
  }
};

// u * h with h = min(max(u/6 + 1/2, 0), 1)
struct HardSwish {
  static constexpr Activation kind = kHardSwish;
  INLINE Vec gate(Vec u) { return Clip::value(u * all(1.0f / 6.0f) + all(0.5f), Vec{}, all(1.0f)); }
  INLINE Vec value(Vec u, Vec, Vec) { return u * gate(u); }
  INLINE Vec gradient(Vec dy, Vec u, Vec, Vec) {
    const Mask inside = (u > all(-3.0f)) & (u < all(3.0f));
    return dy * (gate(u) + select(inside, u * all(1.0f / 6.0f), Vec{}));
  }
};

// u times the normal distribution at u
struct Gelu {
  static constexpr Activation kind = kGelu;
  INLINE Vec value(Vec u, Vec, Vec) { return u * normal(u).distribution; }
  INLINE Vec gradient(Vec dy, Vec u, Vec, Vec) {
    const Normal at = normal(u);
    return dy * (at.distribution + u * at.density);
  }
};

// u times the logistic function at v = 2k (u + a u^3), an approximation of the normal distribution
struct TanhGelu {
  static constexpr Activation kind = kTanhGelu;
  static constexpr float k = 1.595769122f, a = 0.044715f;  // 2 sqrt(2 / pi)
  INLINE Vec square(Vec u) {
    const Vec squared = u * u;
    return select(squared > all(1e4f), all(1e4f), squared);  // the logistic function is 0 or 1 there
  }
  INLINE Vec value(Vec u, Vec, Vec) { return u * logistic(all(k) * u * (all(1.0f) + all(a) * square(u))); }
  INLINE Vec gradient(Vec dy, Vec u, Vec, Vec) {
    const Vec squared = square(u), s = logistic(all(k) * u * (all(1.0f) + all(a) * squared));
    const Vec inner = s * (all(1.0f) - s) * all(k) * (all(1.0f) + all(3 * a) * squared);
    return dy * (s + u * inner);
  }
};

}  // namespace
}  // namespace ttac
