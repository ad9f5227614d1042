// The inner loops of MaxPoolForward and MaxPoolBackward.  Part of tables.cpp.
#pragma once
#include "pool_table.h"
#include "window_loops.h"

namespace ttac {
namespace {

// One output position.  The first of equal elements wins; NaN wins over numbers, as in PyTorch.
template <int block>
INLINE void pool_position(const PoolRows& p, int64_t row, Range down, int64_t column) {
  using Block = Memory<block>;
  const Range across = taps_of(p.columns, column);
  const int64_t top = row * p.rows.stride - p.rows.begin, left = column * p.columns.stride - p.columns.begin;
  typename Block::Floats best = Block::read(p.x + ((top + down.first) * p.columns.size + left + across.first) * block);
  typename Block::Ints winner = Block::all(static_cast<int32_t>(down.first * p.columns.kernel + across.first));
  for (int64_t i = down.first; i < down.last; ++i) {
    const float* line = p.x + ((top + i) * p.columns.size + left) * block;
    for (int64_t j = across.first; j < across.last; ++j) {
      const typename Block::Floats value = Block::read(line + j * block);
      const typename Block::Ints better = (value > best) | ((value != value) & (best == best));
      best = select(better, value, best);
      winner = select(better, Block::all(static_cast<int32_t>(i * p.columns.kernel + j)), winner);
    }
  }
  Block::write(p.y + (row * p.columns.outs + column) * block, best);
  if (p.taps != nullptr) Block::write(p.taps + (row * p.columns.outs + column) * block, winner);
}

template <int block>
void pool_forward(const PoolRows& p) {
  for (int64_t row = p.first; row < p.last; ++row) {
    const Range down = taps_of(p.rows, row);
    for (int64_t column = 0; column < p.columns.outs; ++column) pool_position<block>(p, row, down, column);
  }
}

// One position of dx, which gathers from the few outputs that read it, so that threads never add to the same place.
// `count` is the number of taps of the phase if the compiler shall know it, and 0 otherwise.
template <int block, int count>
INLINE void collect(const PoolRows& p, int64_t row, Range down, const Phase& phase, int64_t column, int64_t quotient) {
  using Block = Memory<block>;
  typename Block::Floats sum{};
  const auto add = [&](int64_t place, int64_t tap) {
    const typename Block::Ints won = Block::read(p.taps + place) == Block::all(static_cast<int32_t>(tap));
    sum += select(won, Block::read(p.dy + place), typename Block::Floats{});
  };
  const Range across = taps_of(p.columns, phase, quotient);
  for (int64_t i = down.first; i < down.last; ++i) {
    const int64_t line = (i * p.columns.outs + quotient) * block;
    const int64_t tap = (row + p.rows.begin - i * p.rows.stride) * p.columns.kernel + phase.remainder;
    if (count > 0 && across.last - across.first == count) {
#pragma GCC unroll 4
      for (int j = count - 1; j >= 0; --j) add(line - j * block, tap + j * p.columns.stride);
    } else {
      for (int64_t j = across.last - 1; j >= across.first; --j) add(line - j * block, tap + j * p.columns.stride);
    }
  }
  Block::write(p.dx + (row * p.columns.size + column) * block, sum);
}

template <int block, int count>
INLINE void collect_row(const PoolRows& p, int64_t row, Range down, const Phase& phase) {
  int64_t quotient = phase.quotient;
  for (int64_t column = phase.first; column < p.columns.size; column += p.columns.stride) {
    collect<block, count>(p, row, down, phase, column, quotient++);
  }
}

template <int block>
void pool_backward(const PoolRows& p) {
  for (int64_t row = p.first; row < p.last; ++row) {
    const Range down = readers_of(p.rows, row);
    for (int64_t remainder = 0; remainder < p.columns.stride; ++remainder) {
      const Phase phase = phase_of(p.columns, remainder);
      if (phase.count == 1) collect_row<block, 1>(p, row, down, phase);
      if (phase.count == 2) collect_row<block, 2>(p, row, down, phase);
      if (phase.count == 3) collect_row<block, 3>(p, row, down, phase);
      if (phase.count == 0 || phase.count > 3) collect_row<block, 0>(p, row, down, phase);
    }
  }
}

// The places of a row of x with one parity.
template <int block>
INLINE void put_parity(const float* from, const float* sum, float* to, int64_t first, int64_t width) {
  using Block = Memory<block>;
  for (int64_t column = first; column < width; column += 2) {
    typename Block::Floats value{};
    if (from != nullptr) value = Block::read(from + column / 2 * block);
    if (sum != nullptr) value += Block::read(sum + column * block);
    Block::write(to + column * block, value);
  }
}

template <int block>
void interleave(const InterleaveRows& p) {
  for (int64_t row = p.first; row < p.last; ++row) {
    const float* sum = p.sum == nullptr ? nullptr : p.sum + row * p.width * block;
    for (int64_t parity = 0; parity < 2; ++parity) {
      const float* phase = p.phases[row % 2][parity];
      const int64_t width = (p.width + 1 - parity) / 2;  // of the phase
      if (phase != nullptr) phase += row / 2 * width * block;
      put_parity<block>(phase, sum, p.x + row * p.width * block, parity, p.width);
    }
  }
}

template <int block>
constexpr void put_block(PoolTable& table) {
  table.forward[block_index(block)] = pool_forward<block>;
  table.backward[block_index(block)] = pool_backward<block>;
  table.interleave[block_index(block)] = interleave<block>;
}

constexpr PoolTable pool_table() {
  PoolTable table{};
  put_block<1>(table);
  put_block<2>(table);
  put_block<4>(table);
  put_block<8>(table);
  put_block<16>(table);
  return table;
}

}  // namespace
}  // namespace ttac
