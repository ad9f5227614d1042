// Random shapes of every operator, for sanitizers: `sanitize SHAPES`.
//
// Each case runs with one thread and with four, and both must make the same bits.  NumPy checks the numbers elsewhere.
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

int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }
bool often() { return pick(0, 9) < 6; }

float number() {
  constexpr float kOdd[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity(), 1e-40f, 0.0f};
  if (pick(0, 999) == 0) return kOdd[pick(0, 4)];
  return std::normal_distribution<float>()(generator);
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
  constexpr const char* kActivations[] = {"none", "relu", "clip", "silu", "hardswish", "gelu"};
  Node node;
  node.op_type = op_type;
  node.integers["block"] = block;
  node.texts["act"] = kActivations[pick(0, 5)];
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
  node.outputs = {true, often(), often(), has_mask(node) && often()};
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

// Whether two runs made the same bits.
bool same(const Arrays& a, const Arrays& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] != nullptr && std::memcmp(a[i]->data.get(), b[i]->data.get(), a[i]->bytes()) != 0) return false;
  }
  return true;
}

int run(int shapes) {
  Arrays (*const kMakers[])(Node&) = {random_norm_forward, random_norm_backward, random_pool_forward,
                                      random_pool_backward, random_interleave};
  for (const auto maker : kMakers) {
    Node node;
    for (int seed = 0; seed < shapes; ++seed) {
      generator.seed(static_cast<unsigned>(seed));
      node = Node{};
      const Arrays arrays = maker(node);
      feed(node, arrays);
      if (!same(run_node(node, 1), run_node(node, 4))) {
        std::printf("%s case %d: the number of threads changes the result\n", node.op_type.c_str(), seed);
        return 1;
      }
    }
    std::printf("%s: %d shapes\n", node.op_type.c_str(), shapes);
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
