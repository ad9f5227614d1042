// Vectors of floats, longer than a register where that is shorter.
//
// This file is part of tables.cpp, which is compiled once for each set of instructions.  Everything here must have
// internal linkage: the linker keeps one copy of an external inline function, perhaps the one with AVX-512 in it.
#pragma once
#include <cstddef>
#include <cstdint>

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
};

template <>
struct Numbers<1, true> {
  using Floats = float;
  using Ints = int32_t;
};

// The vector extensions do not take their sizes from template parameters.
#define TTAC_NUMBERS(lanes)                                        \
  template <>                                                      \
  struct Numbers<lanes, true> {                                    \
    typedef float Floats __attribute__((vector_size(4 * lanes)));  \
    typedef int32_t Ints __attribute__((vector_size(4 * lanes)));  \
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

// The same bits, or the same number in each lane, as another type.
template <class To, class From>
INLINE To bits_of(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the sizes differ");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class To, class Number>
INLINE To spread(Number number) {
  Number held[sizeof(To) / sizeof(Number)];
  for (Number& each : held) each = number;
  return bits_of<To>(held);
}

template <class Mask, class Value>
INLINE Value select(Mask mask, Value yes, Value no) {
  return mask ? yes : no;
}

template <class Mask, class Half>
INLINE Twice<Half> select(Twice<Mask> mask, Twice<Half> yes, Twice<Half> no) {
  return {select(mask.low, yes.low, no.low), select(mask.high, yes.high, no.high)};
}

// Numbers in memory need no alignment; bytes become integers and back.
template <int lanes>
struct Memory {
  using Floats = typename Numbers<lanes>::Floats;
  using Ints = typename Numbers<lanes>::Ints;

  INLINE Floats read(const float* from) {
    Floats value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
  }
  INLINE void write(float* to, Floats value) { __builtin_memcpy(to, &value, sizeof value); }
  INLINE Ints read(const uint8_t* from) {  // a loop over an array becomes one instruction, which a conversion does not
    int32_t held[lanes];
    for (int lane = 0; lane < lanes; ++lane) held[lane] = from[lane];
    return bits_of<Ints>(held);
  }
  INLINE void write(uint8_t* to, Ints value) {
    int32_t held[lanes];
    __builtin_memcpy(held, &value, sizeof held);
    for (int lane = 0; lane < lanes; ++lane) to[lane] = static_cast<uint8_t>(held[lane]);
  }
};

}  // namespace
}  // namespace ttac
