// The inner loops of ByteMoments and ByteNorm.  Part of tables.cpp.
#pragma once
#include "bytes_table.h"
#include "runs.h"

namespace ttac {
namespace {

constexpr float kHalfToEven = 12582912.0f;  // 1.5 * 2^23: a sum with it is rounded to an integer, a half to the even one

// Add a vector to the sums in memory.
template <class Access>
INLINE void add_to(uint32_t* sums, Access at, Mask more) {
  float* place = reinterpret_cast<float*>(sums);
  at.write(place, bits_of<Vec>(bits_of<Mask>(at.read(static_cast<const float*>(place))) + more));
}

template <bool is_signed>
INLINE Mask flipped(Mask value) {
  return is_signed ? value ^ all(kFlip) : value;
}

template <bool is_signed>
void bytes_moments(const BytesPiece& p, uint32_t* sums, uint32_t* squares) {
  sweep(p.channels, [&](int64_t first, auto at) {
    Mask sum{}, square{};
    const uint8_t* x = p.x + first;
    for (int64_t i = 0; i < p.positions; ++i, x += p.channels) {
      const Mask value = flipped<is_signed>(at.read(x));
      sum += value;
      square += value * value;
    }
    add_to(sums + first, at, sum);
    add_to(squares + first, at, square);
  });
}

template <bool is_signed>
void bytes_map(const BytesPiece& p) {
  const Vec low = all(p.low), high = all(p.high), round = all(kHalfToEven);
  sweep(p.channels, [&](int64_t first, auto at) {
    const Vec slope = at.read(p.slope + first), offset = at.read(p.offset + first);
    const uint8_t* x = p.x + first;
    uint8_t* y = p.y + first;
    for (int64_t i = 0; i < p.positions; ++i, x += p.channels, y += p.channels) {
      const Vec value = bits_of<Vec>(flipped<is_signed>(at.read(x)) + bits_of<Mask>(round)) - round;
      Vec mapped = value * slope + offset;
      mapped = select(mapped > low, mapped, low);  // a NaN becomes `low`
      mapped = select(mapped < high, mapped, high) + round;
      at.write(y, flipped<is_signed>(bits_of<Mask>(mapped)));  // the lowest byte of the bits is the integer
    }
  });
}

constexpr BytesTable bytes_table() { return {{bytes_moments<false>, bytes_moments<true>}, {bytes_map<false>, bytes_map<true>}}; }

}  // namespace
}  // namespace ttac
