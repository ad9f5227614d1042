// Vectors of floats, longer than a register where that is shorter.
//
// This file is part of tables.cpp, which is compiled once for each set of instructions.  Everything here must have
// internal linkage: the linker keeps one copy of an external inline function, perhaps the one with AVX-512 in it.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__SSE__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

namespace ttac {
namespace {

#if defined(__AVX512F__)
constexpr int kRegister = 16;  // floats of a register
#elif defined(__AVX__)
constexpr int kRegister = 8;
#else
constexpr int kRegister = 4;
#endif

// Two vectors as one.  GCC splits a long vector itself, but compares and selects its elements one by one.
template <class Half>
struct Twice {
  Half low, high;
};

// The types of `lanes` numbers: a scalar, a vector extension, or a pair.
template <int lanes, bool fits = (lanes <= kRegister)>
struct Numbers {
  using Floats = Twice<typename Numbers<lanes / 2>::Floats>;
  using Ints = Twice<typename Numbers<lanes / 2>::Ints>;
  INLINE Floats read(const float* from) {
    return {Numbers<lanes / 2>::read(from), Numbers<lanes / 2>::read(from + lanes / 2)};
  }
  INLINE Ints read(const int32_t* from) {
    return {Numbers<lanes / 2>::read(from), Numbers<lanes / 2>::read(from + lanes / 2)};
  }
  template <class Number, class Value>
  INLINE void write(Number* to, Value value) {
    Numbers<lanes / 2>::write(to, value.low);
    Numbers<lanes / 2>::write(to + lanes / 2, value.high);
  }
};

template <>
struct Numbers<1, true> {
  using Floats = float;
  using Ints = int32_t;
  template <class Number>
  INLINE Number read(const Number* from) {
    return *from;
  }
  template <class Number>
  INLINE void write(Number* to, Number value) {
    *to = value;
  }
};

// The vector extensions do not take their sizes from template parameters.  A copy by memcpy would go through pieces of
// 16 bytes, and the long load after the short stores would wait.
#define TTAC_NUMBERS(lanes)                                                                          \
  template <>                                                                                        \
  struct Numbers<lanes, true> {                                                                      \
    typedef float Floats __attribute__((vector_size(4 * lanes)));                                    \
    typedef int32_t Ints __attribute__((vector_size(4 * lanes)));                                    \
    typedef float LooseFloats __attribute__((vector_size(4 * lanes), aligned(4), may_alias));        \
    typedef int32_t LooseInts __attribute__((vector_size(4 * lanes), aligned(4), may_alias));        \
    INLINE Floats read(const float* from) { return *reinterpret_cast<const LooseFloats*>(from); }    \
    INLINE Ints read(const int32_t* from) { return *reinterpret_cast<const LooseInts*>(from); }      \
    INLINE void write(float* to, Floats value) { *reinterpret_cast<LooseFloats*>(to) = value; }      \
    INLINE void write(int32_t* to, Ints value) { *reinterpret_cast<LooseInts*>(to) = value; }        \
  };
TTAC_NUMBERS(2)
TTAC_NUMBERS(4)
TTAC_NUMBERS(8)
TTAC_NUMBERS(16)
#undef TTAC_NUMBERS

#define TTAC_BINARY(sign)                                                                  \
  template <class Half>                                                                    \
  INLINE auto operator sign(Twice<Half> a, Twice<Half> b)->Twice<decltype(a.low sign b.low)> { \
    return {a.low sign b.low, a.high sign b.high};                                         \
  }
TTAC_BINARY(+)
TTAC_BINARY(-)
TTAC_BINARY(*)
TTAC_BINARY(/)
TTAC_BINARY(<)
TTAC_BINARY(>)
TTAC_BINARY(==)
TTAC_BINARY(!=)
TTAC_BINARY(&)
TTAC_BINARY(|)
TTAC_BINARY(^)
#undef TTAC_BINARY

template <class Half>
INLINE Twice<Half> operator-(Twice<Half> a) {
  return {-a.low, -a.high};
}

template <class Half>
INLINE Twice<Half> operator<<(Twice<Half> a, int bits) {
  return {a.low << bits, a.high << bits};
}

template <class Half>
INLINE void operator+=(Twice<Half>& a, Twice<Half> b) {
  a = a + b;
}

// The same bits as another type.
template <class To, class From>
INLINE To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From), "the sizes differ");
  return (To)from;
}

template <class To, class Half>
INLINE To bits_of(Twice<Half> from) {
  return {bits_of<decltype(To::low)>(from.low), bits_of<decltype(To::high)>(from.high)};
}

template <class Mask, class Value>
INLINE Value select(Mask mask, Value yes, Value no) {
  return mask ? yes : no;
}

template <class Mask, class Half>
INLINE Twice<Half> select(Twice<Mask> mask, Twice<Half> yes, Twice<Half> no) {
  return {select(mask.low, yes.low, no.low), select(mask.high, yes.high, no.high)};
}

// The sign bits of a mask as an integer, the first lane lowest.
template <class Ints>
INLINE int packed_bits(Ints mask) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Ints) == 64) return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#endif
#if defined(__AVX__)
  if constexpr (sizeof(Ints) == 32) return _mm256_movemask_ps((__m256)mask);
#endif
#if defined(__SSE__)
  if constexpr (sizeof(Ints) == 16) return _mm_movemask_ps((__m128)mask);
#endif
  int packed = 0;
  for (size_t lane = 0; lane < sizeof(Ints) / sizeof(int32_t); ++lane) packed |= (mask[lane] & 1) << lane;
  return packed;
}

template <class Half>
INLINE int packed_bits(Twice<Half> mask) {
  return packed_bits(mask.low) | packed_bits(mask.high) << sizeof(Half) / sizeof(int32_t);
}

// Numbers in memory need no alignment; bytes become integers and back.
template <int lanes>
struct Memory {
  using Floats = typename Numbers<lanes>::Floats;
  using Ints = typename Numbers<lanes>::Ints;

  // The same number in each lane.
  INLINE Floats all(float number) {
    float held[lanes];
    for (float& each : held) each = number;
    return read(held);
  }
  INLINE Ints all(int32_t number) {
    int32_t held[lanes];
    for (int32_t& each : held) each = number;
    return Numbers<lanes>::read(held);
  }
  INLINE Floats read(const float* from) { return Numbers<lanes>::read(from); }
  INLINE void write(float* to, Floats value) { Numbers<lanes>::write(to, value); }
  INLINE Ints read(const uint8_t* from) {  // a loop over an array becomes one instruction, which a conversion does not
    int32_t held[lanes];
    for (int lane = 0; lane < lanes; ++lane) held[lane] = from[lane];
    return Numbers<lanes>::read(held);
  }
  INLINE void write(uint8_t* to, Ints value) {
    int32_t held[lanes];
    Numbers<lanes>::write(held, value);
    for (int lane = 0; lane < lanes; ++lane) to[lane] = static_cast<uint8_t>(held[lane]);
  }
};

}  // namespace
}  // namespace ttac
