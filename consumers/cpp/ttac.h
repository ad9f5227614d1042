// Runs ttac bundles on onnxruntime's C ABI.  No header of the engine is needed; link any libonnxruntime from 1.18.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace ttac {

enum class Kind { usage, verification, runtime_missing };

// An error with a place and a way out.  usage: bad input.  verification: damaged content.  runtime_missing: another
// reader or another engine is needed.
struct Error : std::runtime_error {
  Error(Kind kind, const std::string& problem, const std::string& where, const std::string& hint);
  Kind kind;
};

// A dense tensor that cannot be written; copies share the memory.  `dtype` is numpy's name, such as "float32".
struct Tensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::shared_ptr<const void> data;

  // Copies `shape` elements from `source`.
  static Tensor copy(const std::string& dtype, const std::vector<int64_t>& shape, const void* source);
  int64_t count() const;
  size_t bytes() const;
  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data.get());
  }
};

using Tensors = std::map<std::string, Tensor>;
using Stats = std::map<std::string, double>;

// A bundle, ready to run.  One thread at a time may use an adapter.
class Adapter {
 public:
  // Open and verify the bundle at `path`, a folder or one file.  `threads`: -1 is the count of the bundle, 0 is the
  // choice of the engine.
  explicit Adapter(const std::string& path, int threads = -1);
  Adapter(Adapter&&) noexcept;
  ~Adapter();

  // Predict and adapt.  The state changes only if the whole step succeeds and all new values are finite.
  Tensors step(const Tensors& inputs);
  // Predict with the adapted state; change neither state nor stats.
  Tensors predict(const Tensors& inputs);
  // Set the state to its compiled values, and all counters to zero.
  void reset();
  // Write the state, whole or not at all; the file before stays as `<path>.previous`.
  void save(const std::string& path) const;
  // Set the state to a saved one; the counters go on.
  void restore(const std::string& path);
  // The adapted state.
  const Tensors& state() const;
  // steps, samples, rejected, resets, not_finite, milliseconds, and the last scalars of the graphs.
  const Stats& stats() const;
  // The text of the manifest.
  const std::string& manifest() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

// The tensors of a safetensors file, and its metadata.
Tensors read_safetensors(const std::string& path, std::map<std::string, std::string>* metadata = nullptr);

}  // namespace ttac
