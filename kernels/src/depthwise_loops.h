// The inner loops of depthwise convolutions.  Part of tables.cpp.
#pragma once
#include "depthwise_table.h"
#include "window_loops.h"

namespace ttac {
namespace {

// Neighbouring positions that share the reads of weights and of the input; more of them gain nothing.
constexpr int kNeighbours = 4;

// Call `four(i)` for groups of neighbours that cover [first, last), or `one(i)` where there are fewer.  The last group
// may overlap the one before it: both write the same numbers.
template <class Four, class One>
INLINE void in_groups(int64_t first, int64_t last, Four four, One one) {
  if (last - first >= kNeighbours) {
    for (int64_t i = first; i < last; i += kNeighbours) four(least(i, last - kNeighbours));
  } else {
    for (int64_t i = first; i < last; ++i) one(i);
  }
}

// `many` output positions from `column` on, each with the taps `across` of a row.  `count` is the number of these taps, or
// -1 if the compiler shall not know it.
template <int block, int count, int stride, int many>
INLINE void convolve(const DepthwiseRows& p, int64_t row, Range down, int64_t column, Range across) {
  using Block = Memory<block>;
  const int64_t tap = across.first, reads = count < 0 ? across.last - across.first : count;
  const int64_t line = p.columns.size * block, taps = p.columns.kernel * block;
  const float* in = p.in + (row * p.rows.stride - p.rows.begin - p.in_first + down.first) * line +
                    (column * p.columns.stride - p.columns.begin + tap) * block;
  const float* weights = p.weights + down.first * taps + tap * block;
  typename Block::Floats sums[many] = {};
  if (p.bias != nullptr) {
    for (auto& sum : sums) sum = Block::read(p.bias);
  }
  for (int64_t i = down.first; i < down.last; ++i, in += line, weights += taps) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < reads; ++j) {
      const auto weight = Block::read(weights + j * block);
#pragma GCC unroll 4
      for (int k = 0; k < many; ++k) sums[k] += Block::read(in + (k * stride + j) * block) * weight;
    }
  }
  float* out = p.out + ((row - p.first) * p.columns.outs + column) * block;
  for (int k = 0; k < many; ++k) Block::write(out + k * block, sums[k]);
}

// The same for one position at an edge, with as many taps as read inside of the map, at most `most`.
template <int block, int most>
INLINE void convolve_edge(const DepthwiseRows& p, int64_t row, Range down, int64_t column, Range taps) {
  if (most == 0 || taps.last - taps.first >= most) {
    convolve<block, most, 1, 1>(p, row, down, column, taps);
  } else if constexpr (most > 0) {
    convolve_edge<block, most - 1>(p, row, down, column, taps);
  }
}

// `width` and `stride` are those of the columns, or 0 if the compiler shall not know them.
template <int block, int width, int stride>
void convolve_rows(const DepthwiseRows& rows) {
  const DepthwiseRows p = rows;
  const Range inside = width > 0 ? whole_windows(p.columns) : Range{0, 0};
  for (int64_t row = p.first; row < p.last; ++row) {
    const Range down = taps_of(p.rows, row);
    const auto edge = [&](int64_t column) {
      const Range taps = taps_of(p.columns, column);
      if constexpr (width > 0) {
        convolve_edge<block, width>(p, row, down, column, taps);
      } else {
        convolve<block, -1, 1, 1>(p, row, down, column, taps);
      }
    };
    for (int64_t column = 0; column < inside.first; ++column) edge(column);
    if constexpr (width > 0) {
      in_groups(inside.first, inside.last,
                [&](int64_t i) { convolve<block, width, stride, kNeighbours>(p, row, down, i, {0, width}); },
                [&](int64_t i) { convolve<block, width, stride, 1>(p, row, down, i, {0, width}); });
    }
    for (int64_t column = inside.last; column < p.columns.outs; ++column) edge(column);
  }
}

template <int block, int width>
INLINE bool convolve_strided(const DepthwiseRows& p) {
  if (p.columns.kernel != width || p.columns.stride > 2) return false;
  if (p.columns.stride == 1) convolve_rows<block, width, 1>(p);
  if (p.columns.stride == 2) convolve_rows<block, width, 2>(p);
  return true;
}

template <int block>
void depthwise_forward(const DepthwiseRows& p) {
  if (!convolve_strided<block, 3>(p) && !convolve_strided<block, 5>(p)) convolve_rows<block, 0, 0>(p);
}

// `many` positions of the input's gradient, whose quotients follow `quotient`.  Each gathers from the outputs of a row, with
// the taps `across` of the phase.  `count` is the number of these taps, or -1 if the compiler shall not know it.
template <int block, int count, int many>
INLINE void gather(const DepthwiseRows& p, int64_t row, Range down, const Phase& phase, int64_t quotient, Range across) {
  using Block = Memory<block>;
  const int64_t tap = across.first, reads = count < 0 ? across.last - across.first : count;
  const int64_t step = p.columns.stride * block, taps = p.columns.kernel * block, next = p.columns.outs * block;
  const float* line = p.in + (down.first - p.in_first) * next + (quotient - tap) * block;
  const float* weights =
      p.weights + (row + p.rows.begin - down.first * p.rows.stride) * taps + phase.remainder * block + tap * step;
  typename Block::Floats sums[many] = {};
  for (int64_t i = down.first; i < down.last; ++i, line += next, weights -= p.rows.stride * taps) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < reads; ++j) {
      const auto weight = Block::read(weights + j * step);
#pragma GCC unroll 4
      for (int k = 0; k < many; ++k) sums[k] += Block::read(line + (k - j) * block) * weight;
    }
  }
  float* out = p.out + (row - p.first) * p.columns.size * block + column_of(p.columns, phase, quotient) * block;
  for (int k = 0; k < many; ++k) Block::write(out + k * step, sums[k]);
}

// The same for one position at an edge, with as many taps as read outputs that exist, at most `most`.
template <int block, int most>
INLINE void gather_edge(const DepthwiseRows& p, int64_t row, Range down, const Phase& phase, int64_t quotient, Range taps) {
  if (most == 0 || taps.last - taps.first >= most) {
    gather<block, most, 1>(p, row, down, phase, quotient, taps);
  } else if constexpr (most > 0) {
    gather_edge<block, most - 1>(p, row, down, phase, quotient, taps);
  }
}

// The columns of one phase; `count` is the number of its taps, or -1 if the compiler shall not know it.
template <int block, int count>
void gather_rows(const DepthwiseRows& rows, const Phase& phase_of_all) {
  const DepthwiseRows p = rows;
  const Phase phase = phase_of_all;
  const Range all = quotients_of(p.columns, phase);
  const Range inside = count >= 0 ? whole_readers(p.columns, phase, all) : Range{all.first, all.first};
  for (int64_t row = p.first; row < p.last; ++row) {
    const Range down = readers_of(p.rows, row);
    const auto edge = [&](int64_t quotient) {
      const Range taps = taps_of(p.columns, phase, quotient);
      if constexpr (count >= 0) {
        gather_edge<block, count>(p, row, down, phase, quotient, taps);
      } else {
        gather<block, -1, 1>(p, row, down, phase, quotient, taps);
      }
    };
    for (int64_t i = all.first; i < inside.first; ++i) edge(i);
    if constexpr (count >= 0) {
      in_groups(inside.first, inside.last,
                [&](int64_t i) { gather<block, count, kNeighbours>(p, row, down, phase, i, {0, count}); },
                [&](int64_t i) { gather<block, count, 1>(p, row, down, phase, i, {0, count}); });
    }
    for (int64_t i = inside.last; i < all.last; ++i) edge(i);
  }
}

template <int block>
void depthwise_backward(const DepthwiseRows& p) {
  for (int64_t remainder = 0; remainder < p.columns.stride; ++remainder) {
    const Phase phase = phase_of(p.columns, remainder);
    if (phase.count == 0) gather_rows<block, 0>(p, phase);
    if (phase.count == 1) gather_rows<block, 1>(p, phase);
    if (phase.count == 2) gather_rows<block, 2>(p, phase);
    if (phase.count == 3) gather_rows<block, 3>(p, phase);
    if (phase.count == 5) gather_rows<block, 5>(p, phase);
    if (phase.count == 4 || phase.count > 5) gather_rows<block, -1>(p, phase);
  }
}

template <int block>
constexpr void put_depthwise(DepthwiseTable& table) {
  table.forward[block_index(block)] = depthwise_forward<block>;
  table.backward[block_index(block)] = depthwise_backward<block>;
}

constexpr DepthwiseTable depthwise_table() {
  DepthwiseTable table{};
  put_depthwise<1>(table);
  put_depthwise<2>(table);
  put_depthwise<4>(table);
  put_depthwise<8>(table);
  put_depthwise<16>(table);
  return table;
}

}  // namespace
}  // namespace ttac
