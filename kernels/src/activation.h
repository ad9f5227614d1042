// Activations and their derivatives on vectors.  Part of tables.cpp.
#pragma once
#include "norm_table.h"
#include "vector.h"

namespace ttac {
namespace {

struct NoActivation {
  static constexpr Activation kind = kNone;
  INLINE Vec value(Vec u, Vec, Vec) { return u; }
  INLINE Vec gradient(Vec dy, Vec, Vec, Vec) { return dy; }
};

// NaN stays NaN, as in the engine's own Relu and Clip.
struct Relu {
  static constexpr Activation kind = kRelu;
  INLINE Vec value(Vec u, Vec, Vec) { return select(u < Vec{}, Vec{}, u); }
  INLINE Vec gradient(Vec dy, Vec u, Vec, Vec) { return select(u > Vec{}, dy, Vec{}); }
};

struct Clip {
  static constexpr Activation kind = kClip;
  INLINE Vec value(Vec u, Vec low, Vec high) {
    const Vec above = select(u < low, low, u);
    return select(above > high, high, above);
  }
  INLINE Vec gradient(Vec dy, Vec u, Vec low, Vec high) { return select((u > low) & (u < high), dy, Vec{}); }
};

}  // namespace
}  // namespace ttac
