// An engine of a few lines, which runs the operators without onnxruntime: for sanitizers, which must see every thread
// and every allocation.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../src/engine_abi.h"

namespace ttac {

// A tensor whose memory is exactly as long as its elements, so that a read behind them is an error.
struct Array {
  Array(ElementType type_, std::vector<int64_t> shape_);
  size_t elements() const;
  size_t bytes() const { return elements() * (type == kFloat32 ? 4 : type == kInt64 ? 8 : 1); }
  float* floats() const { return reinterpret_cast<float*>(data.get()); }
  ElementType type;
  std::vector<int64_t> shape;
  std::unique_ptr<unsigned char[]> data;
};

struct Node {
  std::string op_type;
  std::map<std::string, int64_t> integers;
  std::map<std::string, float> numbers;
  std::map<std::string, std::string> texts;
  std::map<std::string, std::vector<int64_t>> lists;
  std::vector<const Array*> inputs;  // null where absent
  std::vector<bool> outputs;         // false where the graph does not ask for the output
};

// The outputs of a node, null where absent.  Throws std::runtime_error with the operator's own message.
std::vector<std::unique_ptr<Array>> run_node(const Node& node, unsigned threads);

}  // namespace ttac
