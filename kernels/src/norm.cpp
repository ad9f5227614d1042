// NormForward and NormBackward: batch normalisation with an activation and a residual, and its gradient.
#include <algorithm>
#include <cmath>

#include "dispatch.h"
#include "operator.h"
#include "pieces.h"

namespace ttac {
namespace {

constexpr const char* kNames[] = {"none", "relu", "clip", "silu", "hardswish", "gelu"};

Activation activation_of(const std::string& name) {
  for (int kind = 0; kind < kActivations; ++kind) {
    if (name == kNames[kind]) return static_cast<Activation>(kind);
  }
  throw std::runtime_error("attribute act: there is no activation " + name);
}

// The attributes that both operators have.
struct Settings {
  explicit Settings(const Attributes& from)
      : block(static_cast<int>(from.integer("block", 1))),
        epsilon(from.number("epsilon", 1e-5f)),
        act(activation_of(from.text("act", "none"))),
        low(from.number("low", 0)),
        high(from.number("high", 0)),
        given(from.text("statistics", "batch") == "given") {
    require(block == 1 || block == 2 || block == 4 || block == 8 || block == 16, "attribute block: not 1, 2, 4, 8 or 16");
  }
  int block;
  float epsilon;
  Activation act;
  float low, high;
  bool given;
};

void require_channels(const Tensor& tensor, const Layout& at, const char* message) {
  require(tensor && tensor.shape.size() == 1 && tensor.shape[0] == at.channels, message);
}

// A pointer to a piece of a tensor, or null where the tensor is absent.
float* at(const Tensor& tensor, int64_t offset) { return tensor ? tensor.data + offset : nullptr; }

// The tensors of one call; the two operators share the names.
struct Norm {
  Norm(const Settings& settings_, const Tensor& x_) : settings(settings_), layout(x_.shape, settings_.block), x(x_) {}
  const Settings& settings;
  Layout layout;
  Tensor x, residual, y, dy, scale, bias, mean, variance, out, du, dscale, dbias;

  // A smooth activation costs more than a place for du, and dx has the same place.
  const Tensor& spare_du() const { return settings.act >= kSilu ? out : du; }

  float deviation(int64_t channel) const {
    return std::sqrt(static_cast<float>(static_cast<double>(variance.data[channel]) + settings.epsilon));
  }

  // Everything that the pieces of one block of channels have in common.
  NormPiece block_piece(int64_t block) const {
    NormPiece piece{};
    piece.block = settings.block;
    piece.low = settings.low;
    piece.high = settings.high;
    for (int lane = 0; lane < kMaxBlock; ++lane) {
      const int64_t channel = block * settings.block + lane % settings.block;
      piece.mean.value[lane] = mean.data[channel];
      piece.slope.value[lane] = scale.data[channel] / deviation(channel);
      piece.offset.value[lane] = bias.data[channel];
    }
    return piece;
  }

  void place(NormPiece& piece, const Stretch& stretch) const {
    piece.x = at(x, stretch.offset);
    piece.residual = at(residual, stretch.offset);
    piece.y = at(y, stretch.offset);
    piece.dy = at(dy, stretch.offset);
    piece.out = at(out, stretch.offset);
    piece.du = at(du ? du : spare_du(), stretch.offset);
    piece.length = stretch.length;
  }
};

// ---- forward ----

struct ForwardSteps {
  using Partial = Moments;
  Norm& norm;

  void partial(int64_t, const Stretch& stretch, Moments& into) const {
    instructions().norm.moments(norm.x.data + stretch.offset, stretch.length, norm.settings.block, into);
  }

  void join(const Moments& part, Moments& into) const { instructions().norm.join(part, into); }

  void finish(int64_t block, const Moments& found) const {
    const int64_t first = block * norm.settings.block;
    for (int c = 0; c < norm.settings.block; ++c) {
      norm.mean.data[first + c] = static_cast<float>(found.mean[c]);
      norm.variance.data[first + c] = static_cast<float>(found.squares[c] / found.count);
    }
  }

  void apply(int64_t block, const Stretch& stretch) const {
    NormPiece piece = norm.block_piece(block);
    norm.place(piece, stretch);
    instructions().norm.forward[norm.settings.act][norm.residual ? 1 : 0](piece);
  }
};

class NormForward : public Kernel {
 public:
  explicit NormForward(const Attributes& attributes) : settings_(attributes) {}

  void run(const Call& call) const override {
    const Tensor x = call.input(0);
    Norm norm(settings_, x);
    norm.scale = call.input(1);
    norm.bias = call.input(2);
    norm.residual = call.input(3);
    require_channels(norm.scale, norm.layout, "input scale: not one number for each channel");
    require_channels(norm.bias, norm.layout, "input bias: not one number for each channel");
    require(!norm.residual || norm.residual.shape == x.shape, "input residual: not of the shape of x");
    norm.out = call.output(0, x.shape);
    if (settings_.given) {
      run_given(call, norm);
    } else {
      run_batch(call, norm);
    }
  }

 private:
  void run_batch(const Call& call, Norm& norm) const {
    std::vector<float> spare(2 * norm.layout.channels);  // for outputs that the graph does not ask for
    norm.mean = call.output(1, {norm.layout.channels});
    norm.variance = call.output(2, {norm.layout.channels});
    if (!norm.mean) norm.mean.data = spare.data();
    if (!norm.variance) norm.variance.data = spare.data() + norm.layout.channels;
    reduce_then_apply(call, norm.layout, ForwardSteps{norm});
  }

  void run_given(const Call& call, Norm& norm) const {
    norm.mean = call.input(4);
    norm.variance = call.input(5);
    require_channels(norm.mean, norm.layout, "input mean: not one number for each channel");
    require_channels(norm.variance, norm.layout, "input variance: not one number for each channel");
    for (size_t index : {1, 2}) {
      const Tensor& from = index == 1 ? norm.mean : norm.variance;
      Tensor copy = call.output(index, from.shape);
      if (copy) std::copy_n(from.data, norm.layout.channels, copy.data);
    }
    apply_all(call, norm.layout, ForwardSteps{norm});
  }

  Settings settings_;
};

// ---- backward ----

struct BackwardSteps {
  using Partial = Sums;
  Norm& norm;
  Source source;  // of u in the first pass

  void partial(int64_t block, const Stretch& stretch, Sums& into) const {
    NormPiece piece = norm.block_piece(block);
    norm.place(piece, stretch);
    instructions().norm.sums[norm.settings.act][source](piece, into);
  }

  void join(const Sums& part, Sums& into) const {
    for (int c = 0; c < kMaxBlock; ++c) {
      into.plain[c] += part.plain[c];
      into.centred[c] += part.centred[c];
    }
  }

  void finish(int64_t block, const Sums& found) const {
    const int64_t first = block * norm.settings.block;
    for (int c = 0; c < norm.settings.block; ++c) {
      norm.dbias.data[first + c] = static_cast<float>(found.plain[c]);
      norm.dscale.data[first + c] = static_cast<float>(found.centred[c] / norm.deviation(first + c));
    }
  }

  void apply(int64_t block, const Stretch& stretch) const {
    NormPiece piece = norm.block_piece(block);
    norm.place(piece, stretch);
    const float count = static_cast<float>(norm.layout.samples * norm.layout.positions);
    for (int lane = 0; lane < kMaxBlock; ++lane) {
      const int64_t channel = block * norm.settings.block + lane % norm.settings.block;
      const float slope = piece.slope.value[lane];
      piece.constant.value[lane] = -slope * norm.dbias.data[channel] / count;
      piece.linear.value[lane] = -slope * norm.dscale.data[channel] / (count * norm.deviation(channel));
    }
    const Source again = piece.du != nullptr ? kGradient : source;
    instructions().norm.backward[norm.settings.act][again][norm.settings.given](piece);
  }
};

class NormBackward : public Kernel {
 public:
  explicit NormBackward(const Attributes& attributes) : settings_(attributes) {}

  void run(const Call& call) const override {
    const Tensor x = call.input(1);
    Norm norm(settings_, x);
    read(call, norm);
    std::vector<float> spare(2 * norm.layout.channels);  // for outputs that the graph does not ask for
    norm.out = call.output(0, x.shape);
    norm.dscale = call.output(1, {norm.layout.channels});
    norm.dbias = call.output(2, {norm.layout.channels});
    norm.du = call.output(3, x.shape);
    if (!norm.dscale) norm.dscale.data = spare.data();
    if (!norm.dbias) norm.dbias.data = spare.data() + norm.layout.channels;
    reduce_then_apply(call, norm.layout, BackwardSteps{norm, source(norm)});
  }

 private:
  static void read(const Call& call, Norm& norm) {
    const Tensor& x = norm.x;
    norm.dy = call.input(0);
    norm.y = call.input(2);
    norm.scale = call.input(3);
    norm.bias = call.input(4);
    norm.mean = call.input(5);
    norm.variance = call.input(6);
    norm.residual = call.input(7);
    require(norm.dy.shape == x.shape, "input dy: not of the shape of x");
    require(!norm.y || norm.y.shape == x.shape, "input y: not of the shape of x");
    require(!norm.residual || norm.residual.shape == x.shape, "input residual: not of the shape of x");
    for (const Tensor* each : {&norm.scale, &norm.bias, &norm.mean, &norm.variance}) {
      require_channels(*each, norm.layout, "input scale, bias, mean or variance: not one number for each channel");
    }
  }

  // Reading y or the residual takes the time of one tensor; without them, u comes from x, which is read anyway.
  Source source(const Norm& norm) const {
    const bool sign_is_enough = settings_.act == kRelu || settings_.act == kClip;
    if (norm.y && sign_is_enough) return kFromOutput;
    return norm.residual ? kFromResidual : kFromInput;
  }

  Settings settings_;
};

}  // namespace

const Operator kNormForward("NormForward", 6, 3, 3, 1, make_kernel<NormForward>);
const Operator kNormBackward("NormBackward", 8, 2, 4, 1, make_kernel<NormBackward>);

}  // namespace ttac
