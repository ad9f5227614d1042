// One call of an operator: its tensors, its attributes, and its threads.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine_abi.h"

namespace ttac {

// A tensor; `data` is null where an optional tensor is absent.  The engine has checked the type of the elements.
struct Tensor {
  void* data = nullptr;
  std::vector<int64_t> shape;

  explicit operator bool() const { return data != nullptr; }
  float* floats(int64_t offset = 0) const { return data ? static_cast<float*>(data) + offset : nullptr; }
  uint8_t* bytes(int64_t offset = 0) const { return data ? static_cast<uint8_t*>(data) + offset : nullptr; }
};

// The attributes of a node, read once when the engine makes the kernel.
class Attributes {
 public:
  Attributes(const Slot* api, const KernelInfo* info) : api_(api), info_(info) {}
  int64_t integer(const char* name, int64_t otherwise) const;
  float number(const char* name, float otherwise) const;
  std::string text(const char* name, const char* otherwise) const;
  std::vector<int64_t> integers(const char* name, std::vector<int64_t> otherwise) const;

 private:
  bool absent(Status* status) const;
  const Slot* api_;
  const KernelInfo* info_;
};

// The tensors and threads of one call.  Methods throw std::runtime_error where the engine refuses.
class Call {
 public:
  Call(const Slot* api, KernelContext* context) : api_(api), context_(context) {}
  Tensor input(size_t index) const;
  // The output `index`, without data where the graph does not ask for the output.
  Tensor output(size_t index, const std::vector<int64_t>& shape) const;

  // Run `body(i)` for each i below `total` on the engine's threads.
  template <class Body>
  void parallel(size_t total, Body body) const {
    run(total, [](void* data, size_t index) { (*static_cast<Body*>(data))(index); }, &body);
  }

 private:
  void run(size_t total, void (*body)(void*, size_t), void* data) const;
  void check(Status* status, const char* doing) const;
  const Slot* api_;
  KernelContext* context_;
};

void require(bool condition, const char* message);

}  // namespace ttac
