// The inner loops of the codec `blocks`.  Part of tables.cpp.
#pragma once
#include "norm_loops.h"
#include "sparse_table.h"

namespace ttac {
namespace {

void tile_means(const float* tile, int64_t size, int block, float* means) {
  float sums[kLanes];
  fold(total<Vec, 4>(size * block, [&](int64_t i, auto at, Vec& sum) { sum += at.read(tile + i); }), block, sums);
  for (int lane = 0; lane < kLanes; ++lane) means[lane] = sums[lane] / static_cast<float>(size);
}

// Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits.
constexpr float kRounding = 12582912.0f;

// The scale is NaN where a value is not finite: bytes do not show such values.
void keep_block(const float* from, int64_t size, int stride, float mean, int8_t* values, float* scale) {
  float held[kLargestKept], largest = 0;
  for (int64_t i = 0; i < size; ++i) held[i] = from[i * stride];
  for (int64_t i = 0; i < size; ++i) {
    const float magnitude = held[i] < 0 ? -held[i] : held[i];
    largest = magnitude > largest ? magnitude : largest;
  }
  *scale = (largest * static_cast<float>(1.0 / 127) + 1e-30f) + mean * 0.0f;
  const Vec step = all(*scale);
  sweep(size, [&](int64_t i, auto at) {
    const Vec rounded = at.read(held + i) / step + all(kRounding);
    at.write(reinterpret_cast<uint8_t*>(values) + i, bits_of<Mask>(rounded) & all(255));
  });
}

struct AllOfIt {
  template <class Access>
  INLINE Vec gradient(const SparsePiece& p, int64_t i, Access at) {
    return at.read(p.dy + i);
  }
};

struct WhereBytes {
  template <class Access>
  INLINE Vec gradient(const SparsePiece& p, int64_t i, Access at) {
    return select(at.read(p.mask + i) != Mask{}, at.read(p.dy + i), Vec{});
  }
};

struct WhereBits {
  template <class Access>
  INLINE Vec gradient(const SparsePiece& p, int64_t i, Access at) {
    return select(at.bits(p.bits, i), at.read(p.dy + i), Vec{});
  }
};

// Walks over the tiles of a piece and knows the kept blocks of each.
class Walk {
 public:
  // Without `all_kept`, blocks behind `single` count as not kept.
  Walk(const SparsePiece& p, bool all_kept) : p_(p) {
    for (int c = 0; c < p.block; ++c) {
      next_[c] = p.first[c];
      last_[c] = all_kept || p.last[c] < p.kept.single ? p.last[c] : p.kept.single;
      any_ = any_ || next_[c] < last_[c];
    }
  }

  // The distance of the blocks' means from the norm's mean, for tile `number`; lane by lane.
  Vec level(int64_t number) const {
    float found[kLanes] = {};
    for (int c = 0; c < p_.block; ++c) found[c] = p_.kept.mean[p_.numbers[c] + number] - p_.mean.value[c];
    for (int lane = p_.block; lane < kLanes; ++lane) found[lane] = found[lane % p_.block];
    return load(found);
  }

  // Whether tile `number` has kept blocks.  If so, `apart` gets the distance of x from the norm's mean.
  // Tiles must come in their order.
  bool dense(int64_t number, Vec level, float* apart) {
    if (!any_) return false;
    bool found = false;
    for (int c = 0; c < p_.block; ++c) {
      if (next_[c] >= last_[c] || p_.kept.places[next_[c]] != p_.numbers[c] + number) continue;
      if (!found) sweep(p_.kept.size * p_.block, [&](int64_t i, auto at) { at.write(apart + i, level); });
      found = true;
      read(next_[c]++, c, apart);
    }
    return found;
  }

 private:
  void read(int64_t kept, int lane, float* apart) const {
    const int64_t size = p_.kept.size;
    const int8_t* values = p_.kept.values + kept * size;
    const float scale = p_.kept.scale[kept], mean = p_.mean.value[lane];
    for (int64_t i = 0; i < size; ++i) apart[i * p_.block + lane] = static_cast<float>(values[i]) * scale - mean;
  }

  const SparsePiece& p_;
  int64_t next_[kMaxBlock], last_[kMaxBlock];
  bool any_ = false;
};

template <class Rule>
void sparse_sums(const SparsePiece& p, Sums& into) {
  const int64_t length = p.kept.size * p.block;
  float apart[kLargestKept * kMaxBlock];
  Walk walk(p, true);
  for (int64_t number = 0; number < p.tiles; ++number) {
    const int64_t start = number * length;
    const Vec level = walk.level(number);
    const bool dense = walk.dense(number, level, apart);
    const TwoSums found = total<TwoSums, 2>(length, [&](int64_t k, auto at, TwoSums& sums) {
      const Vec du = Rule::gradient(p, start + k, at);
      if (p.du != nullptr) at.write(p.du + start + k, du);
      sums.plain += at.keep(du);
      if (dense) sums.other += at.keep(du) * at.keep(at.read(apart + k));
    });
    float sums[kLanes], products[kLanes];
    fold(found.plain, p.block, sums);
    if (dense) fold(found.other, p.block, products);
    else Whole::write(products, load(sums) * level);
    for (int c = 0; c < kMaxBlock; ++c) {
      into.plain[c] += sums[c];
      into.centred[c] += products[c];
    }
  }
}

template <class Rule>
void sparse_backward(const SparsePiece& p) {
  const int64_t length = p.kept.size * p.block;
  const Vec slope = load(p.slope.value), constant = load(p.constant.value), linear = load(p.linear.value);
  float apart[kLargestKept * kMaxBlock];
  Walk walk(p, false);
  for (int64_t number = 0; number < p.tiles; ++number) {
    const int64_t start = number * length;
    const Vec level = walk.level(number);
    const bool dense = walk.dense(number, level, apart);
    const Vec same = constant + level * linear;
    sweep(length, [&](int64_t k, auto at) {
      const Vec rest = dense ? constant + at.read(apart + k) * linear : same;
      at.write(p.out + start + k, slope * Rule::gradient(p, start + k, at) + rest);
    });
  }
}

template <class Rule>
constexpr void put_sparse_rule(SparseTable& table, int rule) {
  table.sums[rule] = sparse_sums<Rule>;
  table.backward[rule] = sparse_backward<Rule>;
}

constexpr SparseTable sparse_table() {
  SparseTable table{};
  table.means = tile_means;
  table.keep = keep_block;
  put_sparse_rule<AllOfIt>(table, kAllOfIt);
  put_sparse_rule<WhereBytes>(table, kWhereBytes);
  put_sparse_rule<WhereBits>(table, kWhereBits);
  return table;
}

}  // namespace
}  // namespace ttac
