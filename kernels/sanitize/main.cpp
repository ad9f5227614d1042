// Random shapes of every operator, for sanitizers: `sanitize SHAPES`.
//
// Each case runs with one thread and with four, and both must make the same bits.  NumPy checks the numbers elsewhere.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>

#include "engine.h"

namespace ttac {
namespace {

std::mt19937 generator;

// The distributions of <random> differ between libraries; these make the same cases on every machine.
int64_t pick(int64_t low, int64_t high) { return low + static_cast<int64_t>(generator()) % (high - low + 1); }
bool often() { return pick(0, 9) < 6; }

float number() {
  constexpr float kOdd[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity(), 1e-40f, 0.0f};
  if (pick(0, 999) == 0) return kOdd[pick(0, 4)];
  return static_cast<float>(pick(-4000, 4000)) / 2000.0f;
}

std::unique_ptr<Array> floats(std::vector<int64_t> shape) {
  auto made = std::make_unique<Array>(kFloat32, std::move(shape));
  for (size_t i = 0; i < made->elements(); ++i) made->floats()[i] = number();
  return made;
}

// Bytes below `end`.
std::unique_ptr<Array> bytes(ElementType type, std::vector<int64_t> shape, int64_t end) {
  auto made = std::make_unique<Array>(type, std::move(shape));
  for (size_t i = 0; i < made->bytes(); ++i) made->data[i] = static_cast<unsigned char>(pick(0, end - 1));
  return made;
}

std::vector<int64_t> sides() {
  std::vector<int64_t> found(static_cast<size_t>(pick(0, 2)));
  for (int64_t& side : found) side = pick(0, 19) == 0 ? 100 : pick(1, 12);
  return found;
}

Node norm_node(const char* op_type, int64_t block) {
  constexpr const char* kActivations[] = {"none", "relu", "clip", "silu", "hardswish", "gelu", "tanhgelu"};
  Node node;
  node.op_type = op_type;
  node.integers["block"] = block;
  node.texts["act"] = kActivations[pick(0, 6)];
  node.numbers = {{"low", -0.5f}, {"high", 1.0f}, {"epsilon", 1e-3f}};
  if (!often()) node.texts["statistics"] = "given";
  return node;
}

bool has_mask(const Node& node) { return node.texts.at("act") == "relu" || node.texts.at("act") == "clip"; }

using Arrays = std::vector<std::unique_ptr<Array>>;

void feed(Node& node, const Arrays& arrays) {
  for (const auto& array : arrays) node.inputs.push_back(array.get());
}

Arrays random_norm_forward(Node& node) {
  const int64_t block = int64_t{1} << pick(0, 4), channels = block * pick(1, 3);
  node = norm_node("NormForward", block);
  std::vector<int64_t> shape{pick(1, 4), channels};
  for (int64_t side : sides()) shape.push_back(side);
  Arrays arrays;
  arrays.push_back(floats(shape));
  for (int i : {1, 2}) arrays.push_back(floats({channels + 0 * i}));
  arrays.push_back(often() ? floats(shape) : nullptr);
  for (int i : {4, 5}) arrays.push_back(floats({channels + 0 * i}));
  const bool masked = has_mask(node) && often(), bits = masked && often();
  node.outputs = {true, often(), often(), masked && !bits, bits};
  return arrays;
}

Arrays random_norm_backward(Node& node) {
  const int64_t block = int64_t{1} << pick(0, 4), channels = block * pick(1, 3);
  node = norm_node("NormBackward", block);
  std::vector<int64_t> shape{pick(1, 4), channels};
  for (int64_t side : sides()) shape.push_back(side);
  Arrays arrays;
  for (int i = 0; i < 2; ++i) arrays.push_back(floats(shape));
  for (int i = 0; i < 4; ++i) arrays.push_back(floats({channels}));
  arrays.push_back(often() ? bytes(kBool, shape, 2) : nullptr);
  arrays.push_back(often() ? floats(shape) : nullptr);
  int64_t run = block;
  for (size_t axis = 2; axis < shape.size(); ++axis) run *= shape[axis];
  arrays.push_back(often() ? bytes(kUint8, {shape[0], channels / block * ((run + 7) / 8)}, 256) : nullptr);
  arrays.push_back(often() ? floats(shape) : nullptr);
  node.outputs = {often(), often(), often(), often()};
  return arrays;
}

// The attributes of a pool, and the sizes of its input and its output.
struct Pool {
  int64_t block = int64_t{1} << pick(0, 4), samples = pick(1, 3), channels = block * pick(1, 3);
  std::vector<int64_t> kernel{pick(1, 4), pick(1, 4)}, strides{pick(1, 3), pick(1, 3)}, pads, sizes, outs;
  Pool() {
    for (int axis : {0, 1, 0, 1}) pads.push_back(pick(0, kernel[axis] - 1));
    for (int axis : {0, 1}) {
      sizes.push_back(pick(kernel[axis], kernel[axis] + 20));
      outs.push_back((sizes[axis] + pads[axis] + pads[axis + 2] - kernel[axis]) / strides[axis] + 1);
    }
  }
  Node node(const char* op_type) const {
    Node made;
    made.op_type = op_type;
    made.integers["block"] = block;
    made.lists = {{"kernel_shape", kernel}, {"strides", strides}, {"pads", pads}, {"sizes", sizes}};
    return made;
  }
};

Arrays random_pool_forward(Node& node) {
  const Pool pool;
  node = pool.node("MaxPoolForward");
  node.outputs = {true, often()};
  Arrays arrays;
  arrays.push_back(floats({pool.samples, pool.channels, pool.sizes[0], pool.sizes[1]}));
  return arrays;
}

Arrays random_pool_backward(Node& node) {
  const Pool pool;
  node = pool.node("MaxPoolBackward");
  node.outputs = {true};
  const std::vector<int64_t> shape{pool.samples, pool.channels, pool.outs[0], pool.outs[1]};
  Arrays arrays;
  arrays.push_back(floats(shape));
  arrays.push_back(bytes(kUint8, shape, 256));  // taps beyond the window must do no harm
  return arrays;
}

Arrays random_interleave(Node& node) {
  const int64_t block = int64_t{1} << pick(0, 4), samples = pick(1, 3), channels = block * pick(1, 3);
  const int64_t height = pick(2, 30), width = pick(2, 30);
  node.op_type = "Interleave";
  node.integers["block"] = block;
  node.lists["sizes"] = {height, width};
  node.outputs = {true};
  Arrays arrays;
  for (int i = 0; i < 4; ++i) {
    arrays.push_back(often() ? floats({samples, channels, (height + 1 - i / 2) / 2, (width + 1 - i % 2) / 2}) : nullptr);
  }
  arrays.push_back(floats({samples, channels, height, width}));
  return arrays;
}

// The shapes of the input and the output of a depthwise convolution.
struct Depthwise : Pool {
  std::vector<int64_t> whole{samples, channels, sizes[0], sizes[1]}, half{samples, channels, outs[0], outs[1]};
  std::vector<int64_t> weights{channels, 1, kernel[0], kernel[1]}, each{channels};
  Node chain(const char* op_type) const {
    Node made = node(op_type);
    for (const char* number : {"1", "2"}) {
      const std::string suffix(number);
      made.texts["act" + suffix] = norm_node(op_type, block).texts["act"];
      made.numbers["low" + suffix] = -0.5f;
      made.numbers["high" + suffix] = 1.0f;
    }
    return made;
  }
};

Arrays arrays_of(const std::vector<std::vector<int64_t>>& shapes) {
  Arrays arrays;
  for (const auto& shape : shapes) arrays.push_back(floats(shape));
  return arrays;
}

Arrays random_input_gradient(Node& node) {
  const Depthwise at;
  node = at.node("DepthwiseInputGrad");
  node.outputs = {true};
  return arrays_of({at.half, at.weights});
}

Arrays random_depthwise_forward(Node& node) {
  const Depthwise at;
  node = at.chain("DepthwiseForward");
  node.outputs = std::vector<bool>(6, true);
  Arrays arrays = arrays_of({at.whole, at.each, at.each, at.weights, at.each, at.each, at.each});
  if (often()) arrays[4] = nullptr;
  return arrays;
}

Arrays random_depthwise_backward(Node& node) {
  const Depthwise at;
  node = at.chain("DepthwiseBackward");
  node.outputs = {true, often(), often(), often(), often()};
  std::vector<std::vector<int64_t>> shapes{at.half, at.half, at.whole, at.weights};
  shapes.resize(12, at.each);
  return arrays_of(shapes);
}

// A map whose channels consist of `tiles` blocks of `size` elements.
struct Blocks {
  int64_t block = int64_t{1} << pick(0, 4), samples = pick(1, 3), channels = block * pick(1, 3);
  int64_t size = pick(8, 128), tiles = pick(1, 5), count = samples * channels * tiles;
  std::vector<int64_t> shape{samples, channels, tiles, size};
  Node node(const char* op_type) const {
    Node made;
    made.op_type = op_type;
    made.integers = {{"block", block}, {"size", size}};
    return made;
  }
};

Arrays random_keep_blocks(Node& node) {
  const Blocks at;
  node = at.node("KeepBlocks");
  node.lists["layers"] = {pick(0, 1), 1};
  node.outputs = std::vector<bool>(4, true);
  Arrays arrays = arrays_of({at.shape, {2}});
  for (int i : {0, 1}) arrays[1]->floats()[i] = static_cast<float>(pick(0, 20)) / 20.0f;
  return arrays;
}

std::unique_ptr<Array> integers(const std::vector<int64_t>& values) {
  auto made = std::make_unique<Array>(kInt64, std::vector<int64_t>{static_cast<int64_t>(values.size())});
  if (!values.empty()) std::memcpy(made->data.get(), values.data(), made->bytes());
  return made;
}

Arrays random_sparse_backward(Node& node) {
  const Blocks at;
  node = at.node("SparseNormBackward");
  std::vector<int64_t> places;
  for (int64_t i = 0; i < at.count; ++i) {
    if (!often()) places.push_back(i);
  }
  const int64_t kept = static_cast<int64_t>(places.size());
  Arrays arrays;
  arrays.push_back(floats(at.shape));
  arrays.push_back(bytes(kInt8, {kept, at.size}, 256));
  arrays.push_back(floats({kept}));
  arrays.push_back(integers(places));
  arrays.push_back(floats({at.count}));
  arrays.push_back(integers({often() ? 0 : kept}));
  for (int i = 0; i < 3; ++i) arrays.push_back(floats({at.channels}));
  const bool bits = often();
  const int64_t run = at.block * at.tiles * at.size;
  arrays.push_back(!bits && often() ? bytes(kBool, at.shape, 2) : nullptr);
  arrays.push_back(bits ? bytes(kUint8, {at.samples, at.channels / at.block * ((run + 7) / 8)}, 256) : nullptr);
  node.outputs = {often(), often(), often(), often()};
  return arrays;
}

// The shape of x, and the attributes of a layer norm; the last block of maps may have padding.
struct Layer {
  bool maps = often();
  int64_t block = int64_t{1} << pick(0, 4), width = maps ? block * pick(1, 4) : pick(1, 70);
  int64_t channels = maps ? width - pick(0, block - 1) : width;
  std::vector<int64_t> shape{pick(1, 4)}, statistics{shape};
  Layer() {
    for (int64_t side : sides()) statistics.push_back(side);
    shape.insert(shape.end(), statistics.begin() + 1, statistics.end());
    shape.insert(maps ? shape.begin() + 1 : shape.end(), width);
  }
  Node node(const char* op_type) const {
    Node made;
    made.op_type = op_type;
    made.integers = {{"block", block}, {"axis", maps ? 1 : -1}, {"channels", channels}};
    return made;
  }
};

Arrays random_layer_forward(Node& node) {
  const Layer at;
  node = at.node("LayerNormForward");
  Arrays arrays = arrays_of({at.shape, {at.width}, {at.width}});
  const bool residual = often();
  arrays.push_back(residual ? floats(at.shape) : nullptr);
  node.outputs = {true, often(), often(), residual};
  return arrays;
}

Arrays random_layer_backward(Node& node) {
  const Layer at;
  node = at.node("LayerNormBackward");
  Arrays arrays = arrays_of({at.shape, at.shape, {at.width}, at.statistics, at.statistics});
  arrays.push_back(often() ? floats(at.shape) : nullptr);
  node.outputs = {often(), often(), often()};
  return arrays;
}

Arrays random_rows(Node& node, const char* op_type, int tensors) {
  node = norm_node(op_type, 1);
  if (node.texts["act"] == "none") node.texts["act"] = "silu";
  node.outputs = {true};
  std::vector<int64_t> shape = sides();
  shape.push_back(pick(1, 300));
  return arrays_of(std::vector<std::vector<int64_t>>(static_cast<size_t>(tensors), shape));
}

Arrays random_activation_forward(Node& node) { return random_rows(node, "ActivationForward", 1); }
Arrays random_activation_backward(Node& node) { return random_rows(node, "ActivationBackward", 2); }
Arrays random_softmax_backward(Node& node) { return random_rows(node, "SoftmaxBackward", 2); }

Arrays random_weight_gradient(Node& node) {
  const Pool pool;
  node = pool.node("ConvWeightGrad");
  const bool narrow = !often(), whole = !often();
  const int64_t group = whole ? pick(1, 3) : 1, step = narrow ? 1 : pool.block;
  const int64_t most = group * pool.block <= 16 ? 16 : 3;  // sets of outputs, and of inputs
  const int64_t wide = group * pool.block * pick(1, most), deep = step * pick(1, most + 2);
  node.integers["x_block"] = step;
  node.integers["group"] = group;
  node.lists["shape"] = {wide - (whole ? 0 : pick(0, pool.block - 1)), deep - (whole ? 0 : pick(0, step - 1))};
  node.outputs = {true};
  return arrays_of({{pool.samples, group * deep, pool.sizes[0], pool.sizes[1]},
                    {pool.samples, wide, pool.outs[0], pool.outs[1]}});
}

Arrays random_reorder_weights(Node& node) {
  const int64_t groups = pick(0, 3);
  node.op_type = "ReorderWeights";
  node.integers = {{"block", int64_t{1} << pick(0, 4)}, {"groups", groups}, {"inputs_in_blocks", pick(0, 1)}};
  const std::vector<int64_t> shape{std::max<int64_t>(1, groups) * pick(1, 20), pick(1, 40), pick(1, 4), pick(1, 4)};
  if (often()) node.lists = {{"rows", {pick(0, shape[2] - 1)}}, {"columns", {shape[3] - 1, 0}}};
  node.outputs = {true};
  return arrays_of({shape});
}

Arrays random_quantize_rows(Node& node) {
  const Blocks at;
  node = at.node("QuantizeRows");
  node.outputs = {true, true, true};
  return arrays_of({at.shape});
}

Arrays random_dequantize_rows(Node& node) {
  const Blocks at;
  node = at.node("DequantizeRows");
  node.outputs = {true};
  const int64_t rows = at.samples * at.channels;
  Arrays arrays;
  arrays.push_back(bytes(kUint8, at.shape, 256));
  arrays.push_back(floats({rows}));
  arrays.push_back(bytes(kUint8, {rows}, 256));
  return arrays;
}

Arrays random_restore_blocks(Node& node) {
  const Blocks at;
  node = at.node("RestoreBlocks");
  node.lists["sizes"] = {at.channels, at.tiles, at.size};
  std::vector<int64_t> places;
  for (int64_t i = 0; i < at.count; ++i) {
    if (!often()) places.push_back(i);
  }
  const int64_t kept = static_cast<int64_t>(places.size());
  Arrays arrays;
  arrays.push_back(bytes(kInt8, {kept, at.size}, 256));
  arrays.push_back(floats({kept}));
  arrays.push_back(integers(places));
  arrays.push_back(floats({at.count}));
  node.outputs = {true};
  return arrays;
}

Arrays random_adam_step(Node& node) {
  node.op_type = "AdamStep";
  const std::vector<int64_t> shape{pick(1, 3), pick(1, 300)}, flat{shape[0] * shape[1]};
  node.outputs = {true, true, true};
  return arrays_of({shape, shape, flat, flat, {}, {1}});
}

// Bytes of both kinds, with the channels last.
Arrays random_byte_moments(Node& node) {
  const bool is_signed = !often();
  node.op_type = is_signed ? "SignedByteMoments" : "ByteMoments";
  node.outputs = {true, often()};
  std::vector<int64_t> shape = sides();
  shape.insert(shape.begin(), pick(1, 3));
  shape.push_back(pick(1, 50));
  Arrays arrays;
  arrays.push_back(bytes(is_signed ? kInt8 : kUint8, shape, 256));
  return arrays;
}

Arrays random_byte_norm(Node& node) {
  Arrays arrays = random_byte_moments(node);
  const bool is_signed = arrays[0]->type == kInt8;
  node.op_type = is_signed ? "SignedByteNorm" : "ByteNorm";
  const int64_t lowest = is_signed ? -128 : 0, low = pick(lowest, lowest + 255);
  node.numbers = {{"epsilon", 1e-3f}, {"step", 0.02f}};
  node.integers = {{"zero", pick(lowest, lowest + 255)}, {"low", low}, {"high", pick(low, lowest + 255)}};
  node.outputs = {true};
  const std::vector<int64_t> channels{arrays[0]->shape.back()};
  for (int i = 0; i < 4; ++i) arrays.push_back(floats(channels));
  return arrays;
}

// Whether two runs made the same bits.
bool same(const Arrays& a, const Arrays& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] != nullptr && std::memcmp(a[i]->data.get(), b[i]->data.get(), a[i]->bytes()) != 0) return false;
  }
  return true;
}

// Sum of the magnitudes of the finite numbers, to compare two machines.
double size_of(const Arrays& arrays) {
  double sum = 0;
  for (const auto& array : arrays) {
    if (array == nullptr || array->type != kFloat32) continue;
    for (size_t i = 0; i < array->elements(); ++i) {
      const double value = std::fabs(array->floats()[i]);
      if (value < 1e6) sum += value;
    }
  }
  return sum;
}

int run(int shapes) {
  Arrays (*const kMakers[])(Node&) = {random_norm_forward, random_norm_backward, random_pool_forward,
                                      random_pool_backward, random_interleave,
                                      random_input_gradient, random_depthwise_forward, random_depthwise_backward, random_keep_blocks,
                                      random_sparse_backward, random_layer_forward, random_layer_backward, random_activation_forward,
                                      random_activation_backward, random_softmax_backward,
                                      random_weight_gradient, random_reorder_weights, random_quantize_rows,
                                      random_dequantize_rows, random_restore_blocks, random_adam_step,
                                      random_byte_moments, random_byte_norm};
  for (const auto maker : kMakers) {
    Node node;
    double sum = 0;
    for (int seed = 0; seed < shapes; ++seed) {
      generator.seed(static_cast<unsigned>(seed));
      node = Node{};
      const Arrays arrays = maker(node);
      feed(node, arrays);
      const Arrays found = run_node(node, 1);
      sum += size_of(found);
      if (!same(found, run_node(node, 4))) {
        std::printf("%s case %d: the number of threads changes the result\n", node.op_type.c_str(), seed);
        return 1;
      }
    }
    std::printf("%s: %d shapes, magnitudes %.6g\n", node.op_type.c_str(), shapes, sum);
  }
  return 0;
}

}  // namespace
}  // namespace ttac

int main(int count, char** arguments) {
  try {
    return ttac::run(count > 1 ? std::atoi(arguments[1]) : 1000);
  } catch (const std::exception& error) {
    std::printf("error: %s\n", error.what());
    return 1;
  }
}
