// Sixteen floats at once, in GCC's vector extensions; the compiler splits them where registers are shorter.
//
// This file is part of tables.cpp, which is compiled once for each set of instructions.  Everything here must have
// internal linkage: the linker keeps one copy of an external inline function, perhaps the one with AVX-512 in it.
#pragma once
#include <cstddef>
#include <cstdint>

#define INLINE static inline __attribute__((always_inline))

namespace ttac {
namespace {

constexpr int kLanes = 16;
typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t Mask __attribute__((vector_size(4 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef uint8_t LooseBytes __attribute__((vector_size(kLanes), aligned(1), may_alias));
typedef float Loose __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

INLINE Vec load(const float* from) { return *reinterpret_cast<const Loose*>(from); }
INLINE void store(float* to, Vec value) { *reinterpret_cast<Loose*>(to) = value; }
INLINE Vec all(float value) { return value - Vec{}; }
INLINE Mask truth(Bytes bytes) { return __builtin_convertvector(bytes, Mask) != 0; }
INLINE Bytes as_bytes(Mask mask) { return __builtin_convertvector(mask & 1, Bytes); }
INLINE Vec select(Mask mask, Vec yes, Vec no) { return mask ? yes : no; }

// Access to sixteen floats, and to the fewer floats at the end of a run.
struct Whole {
  INLINE Vec read(const float* from) { return load(from); }
  INLINE void write(float* to, Vec value) { store(to, value); }
  INLINE Bytes read(const uint8_t* from) { return *reinterpret_cast<const LooseBytes*>(from); }
  INLINE void write(uint8_t* to, Bytes value) { *reinterpret_cast<LooseBytes*>(to) = value; }
  INLINE Vec keep(Vec value) { return value; }
};

struct Part {
  int count;
  Vec read(const float* from) const {
    alignas(64) float held[kLanes] = {};
    __builtin_memcpy(held, from, sizeof(float) * static_cast<size_t>(count));
    return load(held);
  }
  void write(float* to, Vec value) const {
    __builtin_memcpy(to, &value, sizeof(float) * static_cast<size_t>(count));
  }
  Bytes read(const uint8_t* from) const {
    Bytes value{};
    __builtin_memcpy(&value, from, static_cast<size_t>(count));
    return value;
  }
  void write(uint8_t* to, Bytes value) const { __builtin_memcpy(to, &value, static_cast<size_t>(count)); }
  // Zero where the run has ended.
  Vec keep(Vec value) const {
    const Mask lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return select(lane < count, value, Vec{});
  }
};

// Call `body(i, access)` for each vector of a run of `length` floats, the last one perhaps a part.
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

// Let each lane hold the sum of the lanes of its channel; lane i belongs to channel i % block.
INLINE Vec fold(Vec v, int block) {
  if (block <= 8) v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  if (block <= 4) v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  if (block <= 2) v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  if (block <= 1) v += __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  return v;
}

}  // namespace
}  // namespace ttac
