// The inner loops of a convolution's weight gradient.  Part of tables.cpp.
//
// The sums of a few inputs and a few blocks of outputs stay in registers.  An addition takes four cycles and two start
// in each, so at least eight sums run side by side, and more of them need fewer loads for each sum.
#pragma once
#include "weight_table.h"
#include "window_loops.h"

namespace ttac {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSums = 24;  // registers with sums, of 32
#elif defined(__AVX__)
constexpr int kSums = 12;  // of 16
#else
constexpr int kSums = 8;
#endif
constexpr int kOutsAtOnce = kSums % 3 == 0 ? 3 : 2;

// Inputs whose sums stay in registers at once.
constexpr int inputs_at_once(int block) {
  const int registers = block > kRegister ? block / kRegister : 1;
  return kSums / kOutsAtOnce / registers > 1 ? kSums / kOutsAtOnce / registers : 1;
}

// The outputs whose tap `tap` reads inside of the input.
INLINE Range outputs_of(const Axis& axis, int64_t tap) {
  const int64_t before = axis.begin - tap;
  const int64_t first = before > 0 ? (before + axis.stride - 1) / axis.stride : 0;
  const int64_t room = axis.size - 1 + before;
  return {first, room < 0 ? 0 : least(axis.outs, room / axis.stride + 1)};
}

// A tap and the outputs of the strip that read by it.
struct TapRows {
  int64_t row, column;  // the place of the tap, from that of output (0, 0)
  Range down, across;
};

// Add the products of one tap to its sums [inputs][p.outs][block], of which these `outs` are next to each other.  The
// sums of one strip start at zero, so that long sums round less.
template <int block, int outs, int inputs>
INLINE void add_tap(const WeightRows& p, const TapRows& tap, const float* x, const float* dy_map, float* sums) {
  using Block = Memory<block>;
  typename Block::Floats found[inputs][outs] = {};
  const int64_t step = p.columns.stride * p.position_step;
  const int64_t start = tap.across.first * p.columns.stride + tap.column;
  for (int64_t n = 0; n < p.samples; ++n) {
    for (int64_t y = tap.down.first; y < tap.down.last; ++y) {
      const float* from = x + n * p.x_sample + ((y * p.rows.stride + tap.row) * p.columns.size + start) * p.position_step;
      const float* dy = dy_map + n * p.dy_sample + (y * p.columns.outs + tap.across.first) * block;
      for (int64_t i = tap.across.first; i < tap.across.last; ++i, from += step, dy += block) {
        typename Block::Floats gradient[outs];
#pragma GCC unroll 4
        for (int o = 0; o < outs; ++o) gradient[o] = Block::read(dy + o * p.dy_map);
#pragma GCC unroll 8
        for (int k = 0; k < inputs; ++k) {
          const typename Block::Floats value = Block::all(from[k * p.input_step]);
#pragma GCC unroll 4
          for (int o = 0; o < outs; ++o) found[k][o] += gradient[o] * value;
        }
      }
    }
  }
  for (int k = 0; k < inputs; ++k) {
    for (int o = 0; o < outs; ++o) {
      float* to = sums + (k * p.outs + o) * block;
      Block::write(to, Block::read(to) + found[k][o]);
    }
  }
}

// All inputs of one block.
template <int block, int outs>
INLINE void add_inputs(const WeightRows& p, const TapRows& tap, const float* x, const float* dy, float* sums, int inputs) {
  constexpr int many = inputs_at_once(block);
  int k = 0;
  for (; k + many <= inputs; k += many) {
    add_tap<block, outs, many>(p, tap, x + k * p.input_step, dy, sums + k * p.outs * block);
  }
  if constexpr (many > 3) {  // the colours of an image
    for (; k + 3 <= inputs; k += 3) {
      add_tap<block, outs, 3>(p, tap, x + k * p.input_step, dy, sums + k * p.outs * block);
    }
  }
  for (; k < inputs; ++k) add_tap<block, outs, 1>(p, tap, x + k * p.input_step, dy, sums + k * p.outs * block);
}

// All taps and inputs for blocks [first, first + outs) of the outputs.
template <int block, int outs>
INLINE void add_outputs(const WeightRows& p, int first) {
  for (int done = 0; done < p.inputs; done += p.in_block) {
    const float* x = p.x + done / p.in_block * p.x_map;
    for (int64_t i = 0; i < p.rows.kernel; ++i) {
      const Range rows = outputs_of(p.rows, i);
      const Range down = {most(rows.first, p.first), least(rows.last, p.last)};
      for (int64_t j = 0; j < p.columns.kernel; ++j) {
        const TapRows tap{i - p.rows.begin, j - p.columns.begin, down, outputs_of(p.columns, j)};
        if (tap.down.first >= tap.down.last || tap.across.first >= tap.across.last) continue;
        float* sums = p.sums + (((i * p.columns.kernel + j) * p.inputs + done) * p.outs + first) * block;
        add_inputs<block, outs>(p, tap, x, p.dy + first * p.dy_map, sums,
                                static_cast<int>(least(p.in_block, p.inputs - done)));
      }
    }
  }
}

// Blocks of outputs by three; four of them are two pairs.
template <int block>
void weight_gradient(const WeightRows& p) {
  int first = 0;
  if constexpr (kOutsAtOnce == 3) {
    for (; p.outs - first == 3 || p.outs - first > 4; first += 3) add_outputs<block, 3>(p, first);
  }
  for (; first + 2 <= p.outs; first += 2) add_outputs<block, 2>(p, first);
  if (first < p.outs) add_outputs<block, 1>(p, first);
}

constexpr WeightTable weight_table() {
  return {{weight_gradient<1>, weight_gradient<2>, weight_gradient<4>, weight_gradient<8>, weight_gradient<16>}};
}

}  // namespace
}  // namespace ttac
