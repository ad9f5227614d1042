// The channels of a block at one position, as a vector.  Part of tables.cpp.
#pragma once
#include "vector.h"

namespace ttac {
namespace {

template <int block>
struct Types;

// The vector extensions do not take their sizes from template parameters.
#define TTAC_TYPES(block)                                                             \
  template <>                                                                         \
  struct Types<block> {                                                               \
    typedef float Floats __attribute__((vector_size(4 * block)));                     \
    typedef int32_t Ints __attribute__((vector_size(4 * block)));                     \
    typedef uint8_t Codes __attribute__((vector_size(block)));                        \
    INLINE Ints widen(Codes codes) { return __builtin_convertvector(codes, Ints); }   \
    INLINE Codes narrow(Ints ints) { return __builtin_convertvector(ints, Codes); }   \
  };
TTAC_TYPES(2)
TTAC_TYPES(4)
TTAC_TYPES(8)
TTAC_TYPES(16)
#undef TTAC_TYPES

template <>
struct Types<1> {
  typedef float Floats;
  typedef int32_t Ints;
  typedef uint8_t Codes;
  INLINE Ints widen(Codes code) { return code; }
  INLINE Codes narrow(Ints code) { return static_cast<Codes>(code); }
};

template <int block>
struct Channels : Types<block> {
  using typename Types<block>::Floats;
  using typename Types<block>::Ints;
  using typename Types<block>::Codes;

  INLINE Floats read(const float* from) {
    Floats value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
  }
  INLINE Ints read(const uint8_t* from) {
    Codes value;
    __builtin_memcpy(&value, from, sizeof value);
    return Types<block>::widen(value);
  }
  INLINE void write(float* to, Floats value) { __builtin_memcpy(to, &value, sizeof value); }
  INLINE void write(uint8_t* to, Ints value) {
    const Codes codes = Types<block>::narrow(value);
    __builtin_memcpy(to, &codes, sizeof codes);
  }
};

}  // namespace
}  // namespace ttac
