// Which taps an output reads, and which outputs read an input.  Part of tables.cpp.
#pragma once
#include "vector.h"
#include "window.h"

namespace ttac {
namespace {

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// The taps of output `out` that read inside of the input.
INLINE Range taps_of(const Axis& axis, int64_t out) {
  const int64_t start = out * axis.stride - axis.begin;
  return {most(0, -start), least(axis.kernel, axis.size - start)};
}

// The outputs that read inside of the input alone.
INLINE Range whole_windows(const Axis& axis) {
  const int64_t first = (axis.begin + axis.stride - 1) / axis.stride, spare = axis.size + axis.begin - axis.kernel;
  const int64_t last = spare < 0 ? 0 : least(axis.outs, spare / axis.stride + 1);
  return {least(first, last), last};
}

// The outputs that read input `in`; output `o` does so with tap in + begin - o * stride.
INLINE Range readers_of(const Axis& axis, int64_t in) {
  const int64_t place = in + axis.begin, before = place - axis.kernel;
  const int64_t first = before < 0 ? 0 : before / axis.stride + 1;
  return {first, least(axis.outs, place / axis.stride + 1)};
}

// The columns of x whose places (column + begin) have one remainder by the stride.  They read the outputs quotient,
// quotient - 1, ... with the taps remainder, remainder + stride, ...
struct Phase {
  int64_t remainder, count, first, quotient;  // count of taps, first column, and its quotient
};

INLINE Phase phase_of(const Axis& axis, int64_t remainder) {
  const int64_t first = (remainder - axis.begin % axis.stride + axis.stride) % axis.stride;
  const int64_t count = remainder < axis.kernel ? (axis.kernel - remainder - 1) / axis.stride + 1 : 0;
  return {remainder, count, first, (first + axis.begin) / axis.stride};
}

// The taps [first, last) of a phase that read an output, of a column with this quotient.
INLINE Range taps_of(const Axis& axis, const Phase& phase, int64_t quotient) {
  return {most(0, quotient + 1 - axis.outs), least(phase.count, quotient + 1)};
}

// The quotients of a phase's columns.
INLINE Range quotients_of(const Axis& axis, const Phase& phase) {
  const int64_t columns = phase.first < axis.size ? (axis.size - phase.first - 1) / axis.stride + 1 : 0;
  return {phase.quotient, phase.quotient + columns};
}

INLINE int64_t column_of(const Axis& axis, const Phase& phase, int64_t quotient) {
  return phase.first + (quotient - phase.quotient) * axis.stride;
}

// Those of them whose taps all read outputs that exist.
INLINE Range whole_readers(const Axis& axis, const Phase& phase, const Range& all) {
  const int64_t first = least(most(all.first, phase.count - 1), all.last);
  return {first, most(first, least(all.last, axis.outs))};
}

}  // namespace
}  // namespace ttac
