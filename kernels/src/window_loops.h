// Which taps an output reads, and which outputs read an input.  Part of tables.cpp.
#pragma once
#include "vector.h"
#include "window.h"

namespace ttac {
namespace {

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// The taps of output `out` that read inside of the input.
INLINE Range taps_of(const Axis& axis, int64_t out) {
  const int64_t start = out * axis.stride - axis.begin;
  return {most(0, -start), least(axis.kernel, axis.size - start)};
}

// The outputs that read input `in`; output `o` does so with tap in + begin - o * stride.
INLINE Range readers_of(const Axis& axis, int64_t in) {
  const int64_t place = in + axis.begin, before = place - axis.kernel;
  const int64_t first = before < 0 ? 0 : before / axis.stride + 1;
  return {first, least(axis.outs, place / axis.stride + 1)};
}

}  // namespace
}  // namespace ttac
