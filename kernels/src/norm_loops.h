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

struct TwoSums {
  Vec plain, other;
  void operator+=(const TwoSums& more) {
    plain += more.plain;
    other += more.other;
  }
};

// Moments in two passes: the sum of squares about the tile's own mean loses nothing to a large mean.  The sum of the
// distances themselves is the rounding error of that mean, and corrects both moments.
void moments_of_tile(const float* x, int64_t length, int block, Moments& into) {
  const float count = static_cast<float>(length / block);
  float mean[kLanes], rest[kLanes], squares[kLanes];
  fold(total<Vec, 4>(length, [&](int64_t i, auto at, Vec& sum) { sum += at.read(x + i); }), block, mean);
  for (float& each : mean) each /= count;
  const Vec centre = load(mean);
  const TwoSums found = total<TwoSums, 4>(length, [&](int64_t i, auto at, TwoSums& sums) {
    const Vec apart = at.keep(at.read(x + i) - centre);
    sums.plain += apart;
    sums.other += apart * apart;
  });
  fold(found.plain, block, rest);
  fold(found.other, block, squares);
  Moments part;
  part.count = count;
  for (int c = 0; c < kMaxBlock; ++c) {
    const double correction = rest[c] / count;
    part.mean[c] = mean[c] + correction;
    part.squares[c] = squares[c] - rest[c] * correction;
  }
  join(part, into);
}

void moments(const float* x, int64_t length, int block, Moments& into) {
  for (int64_t i = 0; i < length; i += kTile) {
    moments_of_tile(x + i, length - i < kTile ? length - i : kTile, block, into);
  }
}

// Each loop works on a copy of its piece: the compiler would read coefficients again after each write of a float.
template <class Act, bool residual, MaskKind kind>
void forward(const NormPiece& piece) {
  const NormPiece p = piece;
  const Vec mean = load(p.mean.value), slope = load(p.slope.value), offset = load(p.offset.value);
  const Vec low = all(p.low), high = all(p.high);
  sweep(p.length, [&](int64_t i, auto at) {
    Vec u = (at.read(p.x + i) - mean) * slope + offset;
    if (residual) u += at.read(p.residual + i);
    at.write(p.out + i, Act::value(u, low, high));
    if constexpr (kind == kMaskBytes) at.write(p.mask + i, Act::mask(u, low, high) & all(1));
    if constexpr (kind == kMaskBits) at.write_bits(p.bits, i, Act::mask(u, low, high));
  });
}

// The rules for du at place i of a piece; `apart` is x minus its mean there.
struct Stored {
  template <class Access>
  INLINE Vec gradient(const NormPiece& p, int64_t i, Access at, Vec) {
    return at.read(static_cast<const float*>(p.du) + i);
  }
};

struct Direct {
  template <class Access>
  INLINE Vec gradient(const NormPiece& p, int64_t i, Access at, Vec) {
    return at.read(p.dy + i);
  }
};

struct Masked {
  template <class Access>
  INLINE Vec gradient(const NormPiece& p, int64_t i, Access at, Vec) {
    return select(at.read(static_cast<const uint8_t*>(p.mask) + i) != Mask{}, at.read(p.dy + i), Vec{});
  }
};

struct MaskedBits {
  template <class Access>
  INLINE Vec gradient(const NormPiece& p, int64_t i, Access at, Vec) {
    return select(at.bits(static_cast<const uint8_t*>(p.bits), i), at.read(p.dy + i), Vec{});
  }
};

template <class Act, bool residual>
struct Recomputed {
  template <class Access>
  INLINE Vec gradient(const NormPiece& p, int64_t i, Access at, Vec apart) {
    Vec u = apart * load(p.slope.value) + load(p.offset.value);
    if (residual) u += at.read(p.residual + i);
    return Act::gradient(at.read(p.dy + i), u, all(p.low), all(p.high));
  }
};

template <class Gradient>
void sums_of_tile(const NormPiece& piece, int64_t start, int64_t length, Sums& into) {
  const NormPiece p = piece;
  const Vec mean = load(p.mean.value);
  const TwoSums found = total<TwoSums, 2>(length, [&](int64_t k, auto at, TwoSums& sums) {
    const int64_t i = start + k;
    const Vec apart = at.keep(at.read(p.x + i) - mean), du = Gradient::gradient(p, i, at, apart);
    if (p.du != nullptr) at.write(p.du + i, du);
    sums.plain += at.keep(du);
    sums.other += at.keep(du) * apart;
  });
  float sums[kLanes], products[kLanes];
  fold(found.plain, p.block, sums);
  fold(found.other, p.block, products);
  for (int c = 0; c < kMaxBlock; ++c) {
    into.plain[c] += sums[c];
    into.centred[c] += products[c];
  }
}

template <class Gradient>
void sums(const NormPiece& p, Sums& into) {
  for (int64_t i = 0; i < p.length; i += kTile) {
    sums_of_tile<Gradient>(p, i, p.length - i < kTile ? p.length - i : kTile, into);
  }
}

template <class Gradient, bool constants, bool more>
void backward(const NormPiece& piece) {
  const NormPiece p = piece;
  const Vec mean = load(p.mean.value), slope = load(p.slope.value);
  const Vec constant = load(p.constant.value), linear = load(p.linear.value);
  sweep(p.length, [&](int64_t i, auto at) {
    const Vec apart = at.read(p.x + i) - mean;
    const Vec du = Gradient::gradient(p, i, at, apart);
    Vec dx = constants ? slope * du : slope * du + constant + apart * linear;
    if (more) dx += at.read(p.more + i);
    at.write(p.out + i, dx);
  });
}

template <class Gradient>
constexpr void put_rule(NormTable& table, int rule) {
  table.sums[rule] = sums<Gradient>;
  table.backward[rule][0][0] = backward<Gradient, false, false>;
  table.backward[rule][0][1] = backward<Gradient, false, true>;
  table.backward[rule][1][0] = backward<Gradient, true, false>;
  table.backward[rule][1][1] = backward<Gradient, true, true>;
}

template <class Act>
void activate(const float* x, float* y, int64_t length, float low, float high) {
  sweep(length, [&](int64_t i, auto at) { at.write(y + i, Act::value(at.read(x + i), all(low), all(high))); });
}

template <class Act>
void differentiate(const float* dy, const float* x, float* dx, int64_t length, float low, float high) {
  sweep(length, [&](int64_t i, auto at) {
    at.write(dx + i, Act::gradient(at.read(dy + i), at.read(x + i), all(low), all(high)));
  });
}

template <class Act>
constexpr void put_forward(NormTable& table) {
  table.forward[Act::kind][0][kNoMask] = forward<Act, false, kNoMask>;
  table.forward[Act::kind][1][kNoMask] = forward<Act, true, kNoMask>;
  table.activate[Act::kind] = activate<Act>;
}

template <class Act>
constexpr void put_activation(NormTable& table) {
  put_forward<Act>(table);
  put_rule<Recomputed<Act, false>>(table, recomputed(Act::kind, false));
  put_rule<Recomputed<Act, true>>(table, recomputed(Act::kind, true));
  table.differentiate[Act::kind] = differentiate<Act>;
}

template <class Act>
constexpr void put_masked(NormTable& table) {
  put_activation<Act>(table);
  table.forward[Act::kind][0][kMaskBytes] = forward<Act, false, kMaskBytes>;
  table.forward[Act::kind][1][kMaskBytes] = forward<Act, true, kMaskBytes>;
  table.forward[Act::kind][0][kMaskBits] = forward<Act, false, kMaskBits>;
  table.forward[Act::kind][1][kMaskBits] = forward<Act, true, kMaskBits>;
}

constexpr NormTable norm_table() {
  NormTable table{};
  table.moments = moments;
  table.join = join;
  put_forward<NoActivation>(table);
  put_masked<Relu>(table);
  put_masked<Clip>(table);
  put_activation<Silu>(table);
  put_activation<HardSwish>(table);
  put_activation<Gelu>(table);
  put_activation<TanhGelu>(table);
  put_rule<Stored>(table, kStored);
  put_rule<Direct>(table, kDirect);
  put_rule<Masked>(table, kMasked);
  put_rule<MaskedBits>(table, kMaskedBits);
  return table;
}

}  // namespace
}  // namespace ttac
