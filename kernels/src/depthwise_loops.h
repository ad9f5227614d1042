// The inner loops of depthwise convolutions.  Part of tables.cpp.
#pragma once
#include "depthwise_table.h"
#include "window_loops.h"

namespace ttac {
namespace {

// One output position; `width` is that of the kernel if the compiler shall know it, and 0 otherwise.
template <int block, int width>
INLINE void convolve(const DepthwiseRows& p, int64_t row, Range down, int64_t column) {
  using Block = Memory<block>;
  const Range across = taps_of(p.columns, column);
  const int64_t top = row * p.rows.stride - p.rows.begin - p.in_first;
  const int64_t left = column * p.columns.stride - p.columns.begin;
  typename Block::Floats sum{};
  if (p.bias != nullptr) sum = Block::read(p.bias);
  for (int64_t i = down.first; i < down.last; ++i) {
    const float* line = p.in + ((top + i) * p.columns.size + left) * block;
    const float* weights = p.weights + i * p.columns.kernel * block;
    if (width > 0 && across.last - across.first == width) {
#pragma GCC unroll 8
      for (int j = 0; j < width; ++j) sum += Block::read(line + j * block) * Block::read(weights + j * block);
    } else {
      for (int64_t j = across.first; j < across.last; ++j) {
        sum += Block::read(line + j * block) * Block::read(weights + j * block);
      }
    }
  }
  Block::write(p.out + ((row - p.first) * p.columns.outs + column) * block, sum);
}

template <int block, int width>
INLINE void convolve_rows(const DepthwiseRows& p) {
  for (int64_t row = p.first; row < p.last; ++row) {
    const Range down = taps_of(p.rows, row);
    for (int64_t column = 0; column < p.columns.outs; ++column) convolve<block, width>(p, row, down, column);
  }
}

template <int block>
void depthwise_forward(const DepthwiseRows& p) {
  if (p.columns.kernel == 3) {
    convolve_rows<block, 3>(p);
  } else {
    convolve_rows<block, 0>(p);
  }
}

// One position of the input's gradient, which gathers from the outputs that read it.
template <int block>
INLINE void gather(const DepthwiseRows& p, int64_t row, Range down, int64_t column, Range across) {
  using Block = Memory<block>;
  typename Block::Floats sum{};
  for (int64_t i = down.first; i < down.last; ++i) {
    const float* line = p.in + (i - p.in_first) * p.columns.outs * block;
    const int64_t tap = (row + p.rows.begin - i * p.rows.stride) * p.columns.kernel + column + p.columns.begin;
    for (int64_t j = across.first; j < across.last; ++j) {
      sum += Block::read(line + j * block) * Block::read(p.weights + (tap - j * p.columns.stride) * block);
    }
  }
  Block::write(p.out + ((row - p.first) * p.columns.size + column) * block, sum);
}

// Stride 1: all columns but those at the ends have the same readers, in the reversed order of the taps.
template <int block, int width>
INLINE void gather_inside(const DepthwiseRows& p, int64_t row, Range down, int64_t column) {
  using Block = Memory<block>;
  typename Block::Floats sum{};
  for (int64_t i = down.first; i < down.last; ++i) {
    const int64_t first = column + p.columns.begin - width + 1;
    const float* line = p.in + ((i - p.in_first) * p.columns.outs + first) * block;
    const float* weights = p.weights + ((row + p.rows.begin - i * p.rows.stride + 1) * p.columns.kernel - 1) * block;
#pragma GCC unroll 8
    for (int j = 0; j < width; ++j) sum += Block::read(line + j * block) * Block::read(weights - j * block);
  }
  Block::write(p.out + ((row - p.first) * p.columns.size + column) * block, sum);
}

template <int block>
void depthwise_backward(const DepthwiseRows& p) {
  const bool usual = p.columns.kernel == 3 && p.columns.stride == 1;
  for (int64_t row = p.first; row < p.last; ++row) {
    const Range down = readers_of(p.rows, row);
    for (int64_t column = 0; column < p.columns.size; ++column) {
      const int64_t place = column + p.columns.begin;
      if (usual && place >= 2 && place < p.columns.outs) {
        gather_inside<block, 3>(p, row, down, column);
      } else {
        gather<block>(p, row, down, column, readers_of(p.columns, column));
      }
    }
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
