// The inner loops of a convolution's weight gradient.  Part of tables.cpp.
#pragma once
#include "weight_table.h"
#include "window_loops.h"

namespace ttac {
namespace {

// Inputs whose sums stay in registers at once.
constexpr int kAtOnce = kRegister == 16 ? 8 : 4;

// The outputs whose tap `tap` reads inside of the input.
INLINE Range outputs_of(const Axis& axis, int64_t tap) {
  const int64_t before = axis.begin - tap;
  const int64_t first = before > 0 ? (before + axis.stride - 1) / axis.stride : 0;
  const int64_t room = axis.size - 1 + before;
  return {first, room < 0 ? 0 : least(axis.outs, room / axis.stride + 1)};
}

// Add the products of one tap to its sums, over all rows of the strip; the sums of one strip start at zero, so that
// long sums round less.
template <int block, int outs, int inputs>
INLINE void add_tap(const WeightRows& p, Range down, Range across, int64_t row, int64_t column, const float* x,
                    float* sums) {
  using Block = Memory<block>;
  typename Block::Floats found[inputs][outs] = {};
  const int64_t step = p.columns.stride * p.position_step;
  for (int64_t y = down.first; y < down.last; ++y) {
    const float* from = x + ((y * p.rows.stride + row) * p.columns.size + across.first * p.columns.stride + column) *
                                p.position_step;
    const float* dy = p.dy + (y * p.columns.outs + across.first) * block;
    for (int64_t i = across.first; i < across.last; ++i, from += step, dy += block) {
      typename Block::Floats gradient[outs];
#pragma GCC unroll 2
      for (int o = 0; o < outs; ++o) gradient[o] = Block::read(dy + o * p.dy_step);
#pragma GCC unroll 8
      for (int k = 0; k < inputs; ++k) {
        const typename Block::Floats value = Block::all(from[k * p.input_step]);
#pragma GCC unroll 2
        for (int o = 0; o < outs; ++o) found[k][o] += gradient[o] * value;
      }
    }
  }
  for (int k = 0; k < inputs; ++k) {
    for (int o = 0; o < outs; ++o) {
      float* to = sums + (k * outs + o) * block;
      Block::write(to, Block::read(to) + found[k][o]);
    }
  }
}

template <int block, int outs>
INLINE void add_taps(const WeightRows& p) {
  for (int64_t i = 0; i < p.rows.kernel; ++i) {
    Range down = outputs_of(p.rows, i);
    down = {most(down.first, p.first), least(down.last, p.last)};
    for (int64_t j = 0; j < p.columns.kernel; ++j) {
      const Range across = outputs_of(p.columns, j);
      if (down.first >= down.last || across.first >= across.last) continue;
      const int64_t row = i - p.rows.begin, column = j - p.columns.begin;
      float* sums = p.sums + (i * p.columns.kernel + j) * p.inputs * outs * block;
      int k = 0;
      for (; k + kAtOnce <= p.inputs; k += kAtOnce) {
        add_tap<block, outs, kAtOnce>(p, down, across, row, column, p.x + k * p.input_step, sums + k * outs * block);
      }
      for (; k < p.inputs; ++k) {
        add_tap<block, outs, 1>(p, down, across, row, column, p.x + k * p.input_step, sums + k * outs * block);
      }
    }
  }
}

template <int block>
void weight_gradient(const WeightRows& p) {
  if (p.outs == 2) {
    add_taps<block, 2>(p);
  } else {
    add_taps<block, 1>(p);
  }
}

constexpr WeightTable weight_table() {
  return {{weight_gradient<1>, weight_gradient<2>, weight_gradient<4>, weight_gradient<8>, weight_gradient<16>}};
}

}  // namespace
}  // namespace ttac
