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

constexpr int32_t kBitOfLane[kLanes] = {1,      1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                                        1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};

// Bits of an integer as a mask.
INLINE Mask spread_bits(int32_t bits) { return (all(bits) & Numbers<kLanes>::read(kBitOfLane)) != Mask{}; }

// `count` bits from bit i on, at most sixteen.
INLINE int32_t some_bits(const uint8_t* from, int64_t i, int count) {
  if (i % 8 == 0 && count == kLanes) {
    uint16_t found;
    __builtin_memcpy(&found, from + i / 8, sizeof found);
    return found;
  }
  int32_t found = 0;
  for (int64_t byte = i / 8; byte <= (i + count - 1) / 8; ++byte) found |= from[byte] << 8 * (byte - i / 8);
  return found >> i % 8;
}

// Access to sixteen numbers, and to the fewer numbers at the end of a run.
struct Whole : Memory<kLanes> {
  INLINE Vec keep(Vec value) { return value; }
  // The sixteen bits from bit i on, lowest first.
  INLINE Mask bits(const uint8_t* from, int64_t i) { return spread_bits(some_bits(from, i, kLanes)); }
  // The sixteen bits at bit i, a multiple of eight.
  INLINE void write_bits(uint8_t* to, int64_t i, Mask mask) {
    const uint16_t packed = static_cast<uint16_t>(packed_bits(mask));
    __builtin_memcpy(to + i / 8, &packed, sizeof packed);
  }
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
  Mask bits(const uint8_t* from, int64_t i) const { return spread_bits(some_bits(from, i, count)); }
  void write_bits(uint8_t* to, int64_t i, Mask mask) const {
    const int packed = packed_bits(mask) & ((1 << count) - 1);
    for (int byte = 0; byte < (count + 7) / 8; ++byte) to[i / 8 + byte] = static_cast<uint8_t>(packed >> 8 * byte);
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
