// The inner loops of the codec `int8`.  Part of tables.cpp.
#pragma once
#include "rows_table.h"
#include "sparse_loops.h"

namespace ttac {
namespace {

struct Extremes {
  Vec low{}, high{}, sum{};
};

// The extreme of the lanes that belong to the same channel.
template <class Better>
INLINE void fold_extremes(Vec value, int block, Lanes& into, Better better) {
  Whole::write(into.value, value);
  for (int half = kLanes / 2; half >= block; half /= 2) {
    for (int lane = 0; lane < half; ++lane) {
      if (better(into.value[lane + half], into.value[lane])) into.value[lane] = into.value[lane + half];
    }
  }
  for (int lane = block; lane < kLanes; ++lane) into.value[lane] = into.value[lane % block];
}

void rows_range(const RowsPiece& p, Lanes& low, Lanes& high, Lanes& sum) {
  Extremes found;
  sweep(p.length, [&](int64_t i, auto at) {
    const Vec value = at.read(p.x + i);
    found.low = select(value < found.low, value, found.low);
    found.high = select(value > found.high, value, found.high);
    found.sum += at.keep(value);
  });
  fold_extremes(found.low, p.block, low, [](float a, float b) { return a < b; });
  fold_extremes(found.high, p.block, high, [](float a, float b) { return a > b; });
  fold(found.sum, p.block, sum.value);
}

void rows_quantize(const RowsPiece& p) {
  const Vec scale = load(p.scale.value), zero = load(p.zero.value);
  sweep(p.length, [&](int64_t i, auto at) {
    Vec value = at.read(p.x + i) / scale + all(kRounding) - all(kRounding) + zero;
    value = select(value > Vec{}, value, Vec{});
    value = select(value < all(255.0f), value, all(255.0f)) + all(kRounding);
    at.write(p.values + i, bits_of<Mask>(value) & all(255));
  });
}

void rows_dequantize(const RowsPiece& p) {
  const Vec scale = load(p.scale.value), zero = load(p.zero.value);
  sweep(p.length, [&](int64_t i, auto at) {
    const Vec value = bits_of<Vec>(at.read(p.values + i) + bits_of<Mask>(all(kRounding))) - all(kRounding);
    at.write(p.x + i, (value - zero) * scale);
  });
}

constexpr RowsTable rows_table() { return {rows_range, rows_quantize, rows_dequantize}; }

}  // namespace
}  // namespace ttac
