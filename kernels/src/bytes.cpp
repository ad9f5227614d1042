// ByteMoments, ByteNorm and their signed kin: moments and norm of a map of bytes, without a map of floats.
#include <algorithm>
#include <cmath>

#include "dispatch.h"
#include "operator.h"

namespace ttac {
namespace {

constexpr int64_t kRead = 1 << 16, kMapped = 1 << 14;  // bytes of a strip; fewer where each is read and written

// A map [N, ..., C], divided into strips of positions.
struct ByteMap {
  ByteMap(const std::vector<int64_t>& shape, int64_t strip) {
    require(shape.size() >= 2, "input x: not of the shape [N, ..., C]");
    samples = shape.front();
    channels = shape.back();
    positions = 1;
    for (size_t axis = 1; axis + 1 < shape.size(); ++axis) positions *= shape[axis];
    height = std::min(kMostPositions, std::max<int64_t>(1, strip / std::max<int64_t>(1, channels)));
    strips = (positions + height - 1) / height;
  }

  // Call `body(sample, strip, first, piece)` for each strip, in parallel; byte `first` of the map begins the strip.
  template <class Body>
  void each_strip(const Call& call, Body body) const {
    call.parallel(static_cast<size_t>(samples * strips), [&](size_t index) {
      const int64_t sample = static_cast<int64_t>(index) / strips, strip = static_cast<int64_t>(index) % strips;
      BytesPiece piece{};
      piece.positions = std::min(height, positions - strip * height);
      piece.channels = channels;
      body(sample, strip, (sample * positions + strip * height) * channels, piece);
    });
  }

  int64_t samples, channels, positions;
  int64_t height, strips;  // positions of a strip, strips of a sample
};

template <bool is_signed>
class ByteMoments : public Kernel {
  static constexpr int flip = is_signed ? kFlip : 0;

 public:
  explicit ByteMoments(const Attributes&) {}

  void run(const Call& call) const override {
    const Tensor x = call.input(0);
    const ByteMap map(x.shape, kRead);
    const std::vector<int64_t> shape{map.samples, map.channels};
    const Tensor mean = call.output(0, shape), square = call.output(1, shape);
    std::vector<uint32_t> parts(static_cast<size_t>(2 * map.samples * map.strips * map.channels));
    map.each_strip(call, [&](int64_t sample, int64_t strip, int64_t first, BytesPiece& piece) {
      uint32_t* own = parts.data() + 2 * (sample * map.strips + strip) * map.channels;
      piece.x = x.bytes(first);
      instructions().bytes.moments[is_signed](piece, own, own + map.channels);
    });
    const double count = static_cast<double>(map.positions);
    for (int64_t sample = 0; sample < map.samples; ++sample) {
      for (int64_t c = 0; c < map.channels; ++c) {
        double sum = 0, squares = 0;  // sums of integers below 2^53: exact in every order
        for (int64_t strip = 0; strip < map.strips; ++strip) {
          const uint32_t* own = parts.data() + 2 * (sample * map.strips + strip) * map.channels + c;
          sum += own[0];
          squares += own[map.channels];
        }
        squares += flip * (flip * count - 2 * sum);
        const int64_t row = sample * map.channels + c;
        if (mean) mean.floats()[row] = static_cast<float>((sum - flip * count) / count);
        if (square) square.floats()[row] = static_cast<float>(squares / count);
      }
    }
  }
};

template <bool is_signed>
class ByteNorm : public Kernel {
  static constexpr int flip = is_signed ? kFlip : 0;

 public:
  explicit ByteNorm(const Attributes& attributes)
      : epsilon_(attributes.number("epsilon", 1e-5f)),
        step_(attributes.number("step", 1)),
        zero_(static_cast<float>(attributes.integer("zero", 0) + flip)),
        low_(static_cast<float>(attributes.integer("low", -flip) + flip)),
        high_(static_cast<float>(attributes.integer("high", 255 - flip) + flip)) {
    require(step_ > 0, "attribute step: not above 0");
    require(0 <= low_ && low_ <= high_ && high_ <= 255, "attributes low and high: no range of bytes");
  }

  void run(const Call& call) const override {
    const Tensor x = call.input(0), scale = call.input(1), bias = call.input(2);
    const Tensor mean = call.input(3), variance = call.input(4);
    const ByteMap map(x.shape, kMapped);
    const std::vector<int64_t> channels{map.channels};
    require(scale.shape == channels && bias.shape == channels && mean.shape == channels && variance.shape == channels,
            "input scale, bias, mean or variance: not one number for each channel");
    const Tensor y = call.output(0, x.shape);
    std::vector<float> slope(static_cast<size_t>(map.channels)), offset(slope.size());
    for (size_t c = 0; c < slope.size(); ++c) {
      const float factor = scale.floats()[c] / std::sqrt(variance.floats()[c] + epsilon_);
      slope[c] = factor / step_;
      offset[c] = (of_lowest(bias.floats()[c], mean.floats()[c], factor) / step_) + zero_;
    }
    map.each_strip(call, [&](int64_t, int64_t, int64_t first, BytesPiece& piece) {
      piece.x = x.bytes(first);
      piece.y = y.bytes(first);
      piece.slope = slope.data();
      piece.offset = offset.data();
      piece.low = low_;
      piece.high = high_;
      instructions().bytes.map[is_signed](piece);
    });
  }

 private:
  // The norm of a byte that is read as 0: of the value `-flip`.
  static float of_lowest(float bias, float mean, float factor) { return bias - (mean + flip) * factor; }

  float epsilon_, step_, zero_, low_, high_;
};

}  // namespace

// x -> mean, mean of squares
const Operator kByteMoments("ByteMoments", {kBytes}, {kTensor, kTensor}, make_kernel<ByteMoments<false>>);
const Operator kSignedByteMoments("SignedByteMoments", {kSignedBytes}, {kTensor, kTensor},
                                  make_kernel<ByteMoments<true>>);

// x, scale, bias, mean, variance -> y
const Operator kByteNorm("ByteNorm", {kBytes, kTensor, kTensor, kTensor, kTensor}, {kBytes}, make_kernel<ByteNorm<false>>);
const Operator kSignedByteNorm("SignedByteNorm", {kSignedBytes, kTensor, kTensor, kTensor, kTensor}, {kSignedBytes},
                               make_kernel<ByteNorm<true>>);

}  // namespace ttac
