// Loops over runs of floats, sixteen at a time.  Part of tables.cpp.
#pragma once
#include "vector.h"

namespace ttac {
namespace {

constexpr int kLanes = 16;
using Vec = Numbers<kLanes>::Floats;
using Mask = Numbers<kLanes>::Ints;

INLINE Vec all(float value) { return Memory<kLanes>::all(value); }
INLINE Mask all(int32_t value) { return Memory<kLanes>::all(value); }
INLINE Vec load(const float* from) { return Memory<kLanes>::read(from); }

// Access to sixteen numbers, and to the fewer numbers at the end of a run.
struct Whole : Memory<kLanes> {
  INLINE Vec keep(Vec value) { return value; }
};

struct Part {
  int count;
  template <class Number>
  auto read(const Number* from) const {
    Number held[kLanes] = {};
    __builtin_memcpy(held, from, sizeof(Number) * static_cast<size_t>(count));
    return Whole::read(held);
  }
  template <class Number, class Value>
  void write(Number* to, Value value) const {
    Number held[kLanes];
    Whole::write(held, value);
    __builtin_memcpy(to, held, sizeof(Number) * static_cast<size_t>(count));
  }
  // Zero where the run has ended.
  Vec keep(Vec value) const {
    float held[kLanes];
    Whole::write(held, value);
    for (int lane = count; lane < kLanes; ++lane) held[lane] = 0;
    return load(held);
  }
};

// Call `body(i, access)` for each vector of a run of `length` numbers, the last one perhaps a part.
template <class Body>
INLINE void sweep(int64_t length, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes) body(i, Whole{});
  if (i < length) body(i, Part{static_cast<int>(length - i)});
}

// Sums over a run: `body(i, access, sums)` adds to its sums.  `ways` of them run side by side, because an addition
// takes four cycles; fewer additions in a row also round less.
template <class Accumulator, int ways, class Body>
INLINE Accumulator total(int64_t length, Body body) {
  Accumulator sums[ways] = {};
  int64_t i = 0;
  for (; i + ways * kLanes <= length; i += ways * kLanes) {
#pragma GCC unroll 4
    for (int k = 0; k < ways; ++k) body(i + k * kLanes, Whole{}, sums[k]);
  }
  for (; i + kLanes <= length; i += kLanes) body(i, Whole{}, sums[0]);
  if (i < length) body(i, Part{static_cast<int>(length - i)}, sums[1]);
  for (int k = 1; k < ways; ++k) sums[0] += sums[k];
  return sums[0];
}

// Write the sums of the lanes of each channel, 16/block times; lane i belongs to channel i % block.
INLINE void fold(Vec value, int block, float (&sums)[kLanes]) {
  Whole::write(sums, value);
  for (int half = kLanes / 2; half >= block; half /= 2) {
    for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  }
  for (int lane = block; lane < kLanes; ++lane) sums[lane] = sums[lane % block];
}

}  // namespace
}  // namespace ttac
