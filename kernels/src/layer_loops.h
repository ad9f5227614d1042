// The inner loops of layer norms and of the gradient of a softmax.  Part of tables.cpp.
#pragma once
#include "layer_table.h"
#include "runs.h"

namespace ttac {
namespace {

// Access to all channels of a vector.
template <int lanes>
struct AllChannels : Memory<lanes> {
  template <class Floats>
  INLINE Floats keep(Floats value) {
    return value;
  }
};

// Access to a vector whose last channels are padding: they are zero.
template <int lanes>
struct SomeChannels : Memory<lanes> {
  int count;
  template <class Floats>
  Floats keep(Floats value) const {
    float held[lanes];
    Memory<lanes>::write(held, value);
    for (int lane = count; lane < lanes; ++lane) held[lane] = 0;
    return Memory<lanes>::read(held);
  }
  template <class Floats>
  void write(float* to, Floats value) const {
    Memory<lanes>::write(to, keep(value));
  }
};

// The channels of positions in memory: neighbours in rows, or blocks of channels.
struct RowChannels {
  static constexpr int lanes = kLanes;
  using Last = Part;
};

template <int block>
struct BlockChannels {
  static constexpr int lanes = block;
  using Last = SomeChannels<block>;
};

// Call `body(i, channel, access)` for each vector of channels of a position; i is its place from the position on.
template <class Channels, class Body>
INLINE void each_vector(const LayerPiece& p, Body body) {
  constexpr int lanes = Channels::lanes;
  const int64_t whole = p.channels / lanes;
  for (int64_t v = 0; v < whole; ++v) body(v * p.stride, v * lanes, AllChannels<lanes>{});
  if (whole < p.vectors) {
    typename Channels::Last last{};
    last.count = static_cast<int>(p.channels - whole * lanes);
    body(whole * p.stride, whole * lanes, last);
  }
}

template <int lanes, class Floats>
INLINE float across(Floats value) {
  float held[lanes];
  Memory<lanes>::write(held, value);
  for (int half = lanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) held[lane] += held[lane + half];
  }
  return held[0];
}

// Mean and reciprocal deviation of a position, in two passes; the rounding error of the mean corrects both.
template <class Channels>
INLINE void moments_of_position(const LayerPiece& p, const float* x, float& mean, float& reciprocal) {
  constexpr int lanes = Channels::lanes;
  using Floats = typename Memory<lanes>::Floats;
  const float count = static_cast<float>(p.channels);
  Floats total{};
  each_vector<Channels>(p, [&](int64_t i, int64_t, auto at) { total += at.read(x + i); });
  const float first = across<lanes>(total) / count;
  const Floats centre = Memory<lanes>::all(first);
  Floats rest{}, squares{};
  each_vector<Channels>(p, [&](int64_t i, int64_t, auto at) {
    const Floats apart = at.keep(at.read(x + i) - centre);
    rest += apart;
    squares += apart * apart;
  });
  const float correction = across<lanes>(rest) / count;
  const float variance = across<lanes>(squares) / count - correction * correction;
  mean = first + correction;
  reciprocal = 1.0f / __builtin_sqrtf((variance < 0 ? 0 : variance) + p.epsilon);
}

template <class Channels>
void layer_forward(const LayerPiece& p) {
  constexpr int lanes = Channels::lanes;
  using Floats = typename Memory<lanes>::Floats;
  for (int64_t position = 0; position < p.positions; ++position) {
    const int64_t start = position * p.step;
    const float* x = p.x + start;
    if (p.residual != nullptr) {
      each_vector<Channels>(p, [&](int64_t i, int64_t, auto at) {
        at.write(p.sum + start + i, at.read(x + i) + at.read(p.residual + start + i));
      });
      x = p.sum + start;
    }
    float mean, reciprocal;
    moments_of_position<Channels>(p, x, mean, reciprocal);
    if (p.mean != nullptr) p.mean[position] = mean;
    if (p.reciprocal != nullptr) p.reciprocal[position] = reciprocal;
    const Floats centre = Memory<lanes>::all(mean), slope = Memory<lanes>::all(reciprocal);
    each_vector<Channels>(p, [&](int64_t i, int64_t channel, auto at) {
      const Floats hat = (at.read(x + i) - centre) * slope;
      at.write(p.out + start + i, hat * at.read(p.scale + channel) + at.read(p.bias + channel));
    });
  }
}

// With g = dy * scale and xhat = (x - mean) * reciprocal:
// dx = reciprocal * (g - mean of g - xhat * mean of g * xhat) + more.
template <class Channels>
void layer_backward(const LayerPiece& p) {
  constexpr int lanes = Channels::lanes;
  using Lane = Memory<lanes>;
  using Floats = typename Lane::Floats;
  const float count = static_cast<float>(p.channels);
  for (int64_t position = 0; position < p.positions; ++position) {
    const int64_t start = position * p.step;
    const float *x = p.x + start, *dy = p.dy + start;
    const Floats centre = Lane::all(p.mean[position]), slope = Lane::all(p.reciprocal[position]);
    Floats plain{}, along{};
    each_vector<Channels>(p, [&](int64_t i, int64_t channel, auto at) {
      const Floats hat = at.keep((at.read(x + i) - centre) * slope), d = at.read(dy + i);
      const Floats g = d * at.read(p.scale + channel), product = d * hat;
      plain += at.keep(g);
      along += at.keep(g * hat);
      Lane::write(p.dscale + channel, Lane::read(p.dscale + channel) + at.keep(product));
      Lane::write(p.dbias + channel, Lane::read(p.dbias + channel) + at.keep(d));
    });
    if (p.out == nullptr) continue;
    const Floats shift = Lane::all(across<lanes>(plain) / count), linear = Lane::all(across<lanes>(along) / count);
    each_vector<Channels>(p, [&](int64_t i, int64_t channel, auto at) {
      const Floats hat = (at.read(x + i) - centre) * slope, g = at.read(dy + i) * at.read(p.scale + channel);
      Floats dx = slope * (g - shift - hat * linear);
      if (p.more != nullptr) dx += at.read(p.more + start + i);
      at.write(p.out + start + i, dx);
    });
  }
}

void softmax_backward(const float* dy, const float* y, float* dx, int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; ++row, dy += width, y += width, dx += width) {
    const Vec products = total<Vec, 2>(width, [&](int64_t i, auto at, Vec& sum) { sum += at.read(dy + i) * at.read(y + i); });
    const Vec dot = all(across<kLanes>(products));
    sweep(width, [&](int64_t i, auto at) { at.write(dx + i, at.read(y + i) * (at.read(dy + i) - dot)); });
  }
}

template <int block>
constexpr void put_layer(LayerTable& table) {
  table.forward[block_index(block)] = layer_forward<BlockChannels<block>>;
  table.backward[block_index(block)] = layer_backward<BlockChannels<block>>;
}

constexpr LayerTable layer_table() {
  LayerTable table{};
  table.forward_rows = layer_forward<RowChannels>;
  table.backward_rows = layer_backward<RowChannels>;
  put_layer<1>(table);
  put_layer<2>(table);
  put_layer<4>(table);
  put_layer<8>(table);
  put_layer<16>(table);
  table.softmax_backward = softmax_backward;
  return table;
}

}  // namespace
}  // namespace ttac
