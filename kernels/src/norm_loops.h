// The inner loops of NormForward and NormBackward.  Part of tables.cpp.
#pragma once
#include "activation.h"

namespace ttac {
namespace {

// Floats of a tile: both passes over it hit the first-level cache.
constexpr int64_t kTile = 4096;

// Two groups of observations become one (Chan, Golub and LeVeque 1979).
void join(const Moments& part, Moments& into) {
  if (part.count == 0) return;
  const double count = into.count + part.count, share = part.count / count;
  for (int c = 0; c < kMaxBlock; ++c) {
    const double apart = part.mean[c] - into.mean[c];
    into.mean[c] += apart * share;
    into.squares[c] += part.squares[c] + apart * apart * into.count * share;
  }
  into.count = count;
}

// Moments in two passes: the sum of squares about the tile's own mean loses nothing to a large mean.
void moments_of_tile(const float* x, int64_t length, int block, Moments& into) {
  const float count = static_cast<float>(length / block);
  const Vec mean = fold(total<Vec, 4>(length, [&](int64_t i, auto at, Vec& sum) { sum += at.read(x + i); }), block) / count;
  Vec squares = total<Vec, 4>(length, [&](int64_t i, auto at, Vec& sum) {
    const Vec apart = at.keep(at.read(x + i) - mean);
    sum += apart * apart;
  });
  squares = fold(squares, block);
  Moments part;
  part.count = count;
  for (int c = 0; c < kMaxBlock; ++c) {
    part.mean[c] = mean[c];
    part.squares[c] = squares[c];
  }
  join(part, into);
}

void moments(const float* x, int64_t length, int block, Moments& into) {
  for (int64_t i = 0; i < length; i += kTile) {
    moments_of_tile(x + i, length - i < kTile ? length - i : kTile, block, into);
  }
}

template <class Act, bool residual>
void forward(const NormPiece& p) {
  const Vec mean = load(p.mean.value), slope = load(p.slope.value), offset = load(p.offset.value);
  const Vec low = all(p.low), high = all(p.high);
  sweep(p.length, [&](int64_t i, auto at) {
    Vec u = (at.read(p.x + i) - mean) * slope + offset;
    if (residual) u += at.read(p.residual + i);
    at.write(p.out + i, Act::value(u, low, high));
  });
}

// du at place i of the piece; `apart` is x minus its mean there.
template <class Act, Source source, class Access>
INLINE Vec gradient(const NormPiece& p, int64_t i, Access at, Vec apart) {
  if (source == kGradient) return at.read(p.du + i);
  const Vec dy = at.read(p.dy + i);
  if (Act::kind == kNone) return dy;
  Vec u;
  if (source == kFromOutput) {
    u = at.read(p.y + i);
  } else {
    u = apart * load(p.slope.value) + load(p.offset.value);
    if (source == kFromResidual) u += at.read(p.residual + i);
  }
  return Act::gradient(dy, u, all(p.low), all(p.high));
}

struct TwoSums {
  Vec plain, centred;
  void operator+=(const TwoSums& other) {
    plain += other.plain;
    centred += other.centred;
  }
};

template <class Act, Source source>
void sums_of_tile(const NormPiece& p, int64_t start, int64_t length, Sums& into) {
  const Vec mean = load(p.mean.value);
  const TwoSums found = total<TwoSums, 2>(length, [&](int64_t k, auto at, TwoSums& sums) {
    const int64_t i = start + k;
    const Vec apart = at.keep(at.read(p.x + i) - mean), du = gradient<Act, source>(p, i, at, apart);
    if (p.du != nullptr) at.write(p.du + i, du);
    sums.plain += at.keep(du);
    sums.centred += at.keep(du) * apart;
  });
  const Vec sums = fold(found.plain, p.block), products = fold(found.centred, p.block);
  for (int c = 0; c < kMaxBlock; ++c) {
    into.plain[c] += sums[c];
    into.centred[c] += products[c];
  }
}

template <class Act, Source source>
void sums(const NormPiece& p, Sums& into) {
  for (int64_t i = 0; i < p.length; i += kTile) {
    sums_of_tile<Act, source>(p, i, p.length - i < kTile ? p.length - i : kTile, into);
  }
}

template <class Act, Source source, bool constants>
void backward(const NormPiece& p) {
  const Vec mean = load(p.mean.value), slope = load(p.slope.value);
  const Vec constant = load(p.constant.value), linear = load(p.linear.value);
  sweep(p.length, [&](int64_t i, auto at) {
    const Vec apart = at.read(p.x + i) - mean;
    const Vec du = gradient<Act, source>(p, i, at, apart);
    at.write(p.out + i, constants ? slope * du : slope * du + constant + apart * linear);
  });
}

template <class Act, Source source>
constexpr void put_source(NormTable& table) {
  table.sums[Act::kind][source] = sums<Act, source>;
  table.backward[Act::kind][source][0] = backward<Act, source, false>;
  table.backward[Act::kind][source][1] = backward<Act, source, true>;
}

template <class Act>
constexpr void put_activation(NormTable& table) {
  table.forward[Act::kind][0] = forward<Act, false>;
  table.forward[Act::kind][1] = forward<Act, true>;
  put_source<Act, kFromOutput>(table);
  put_source<Act, kFromInput>(table);
  put_source<Act, kFromResidual>(table);
  put_source<Act, kGradient>(table);
}

constexpr NormTable norm_table() {
  NormTable table{};
  table.moments = moments;
  table.join = join;
  put_activation<NoActivation>(table);
  put_activation<Relu>(table);
  put_activation<Clip>(table);
  put_activation<Silu>(table);
  put_activation<HardSwish>(table);
  put_activation<Gelu>(table);
  return table;
}

}  // namespace
}  // namespace ttac
