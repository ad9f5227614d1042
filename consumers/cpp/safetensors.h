// Files of a bundle: mapped files, SHA-256, strict JSON, and safetensors.  For ttac.cpp only.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "ttac.h"

namespace ttac {
namespace {

using nlohmann::json;
using Names = std::set<std::string>;
using Shape = std::vector<int64_t>;

constexpr size_t kLargestHeader = 100000000;
const char* const kHint = "copy the bundle again from where it was compiled, or recompile it";

[[noreturn]] void damaged(const std::string& problem, const std::string& where, const std::string& hint = kHint) {
  throw Error(Kind::verification, problem, where, hint);
}

// ---- dtypes ----
struct Dtype {
  const char *name, *stored;
  int element;  // ONNX's and onnxruntime's number
  size_t size;
};
constexpr Dtype kDtypes[] = {{"float16", "F16", 10, 2}, {"float32", "F32", 1, 4}, {"float64", "F64", 11, 8},
                             {"int8", "I8", 3, 1},      {"int16", "I16", 5, 2},   {"int32", "I32", 6, 4},
                             {"int64", "I64", 7, 8},    {"uint8", "U8", 2, 1},    {"uint16", "U16", 4, 2},
                             {"uint32", "U32", 12, 4},  {"bool", "BOOL", 9, 1}};
const Dtype* dtype_by(const std::function<bool(const Dtype&)>& fits) {
  auto found = std::find_if(std::begin(kDtypes), std::end(kDtypes), fits);
  return found == std::end(kDtypes) ? nullptr : found;
}
const Dtype* dtype_named(const std::string& name) {
  return dtype_by([&](const Dtype& d) { return name == d.name; });
}
int64_t product(const Shape& shape, size_t from, size_t to) {
  int64_t result = 1;
  for (size_t axis = from; axis < to; ++axis) result *= shape[axis];
  return result;
}
int64_t product(const Shape& shape) { return product(shape, 0, shape.size()); }
float half(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                     : exponent     ? std::ldexp(1024.0f + fraction, exponent - 25)
                                    : std::ldexp(static_cast<float>(fraction), -24);
  return bits >> 15 ? -size : size;
}
double value_at(const Tensor& t, int64_t i) {
  switch (dtype_named(t.dtype)->element) {
    case 10: return half(t.as<uint16_t>()[i]);
    case 1: return t.as<float>()[i];
    case 11: return t.as<double>()[i];
    case 3: return t.as<int8_t>()[i];
    case 5: return t.as<int16_t>()[i];
    case 6: return t.as<int32_t>()[i];
    case 7: return static_cast<double>(t.as<int64_t>()[i]);
    case 4: return t.as<uint16_t>()[i];
    case 12: return t.as<uint32_t>()[i];
    default: return t.as<uint8_t>()[i];
  }
}
bool is_float(const Tensor& t) { return t.dtype.rfind("float", 0) == 0; }
bool all_finite(const Tensor& t, int64_t from, int64_t to) {
  for (int64_t i = from; is_float(t) && i < to; ++i)
    if (!std::isfinite(value_at(t, i))) return false;
  return true;
}
bool all_finite(const Tensor& t) { return all_finite(t, 0, t.count()); }
std::string text(const Shape& shape) { return json(shape).dump(); }

// ---- SHA-256 (FIPS 180-4) ----
std::string sha256(std::initializer_list<std::pair<const void*, size_t>> pieces) {
  static const std::array<uint32_t, 64> k = [] {  // fractional parts of the cube roots of the first primes
    std::array<uint32_t, 64> table{};
    int n = 0;
    for (int p = 2; n < 64; ++p) {
      bool prime = true;
      for (int d = 2; d * d <= p; ++d) prime = prime && p % d;
      if (prime)
        table[n++] = static_cast<uint32_t>(std::fmod(std::cbrt(static_cast<long double>(p)), 1.0L) * 4294967296.0L);
    }
    return table;
  }();
  std::array<uint32_t, 8> h = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                               0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  auto turn = [](uint32_t x, int n) { return (x >> n) | (x << (32 - n)); };
  auto block = [&](const uint8_t* p) {
    std::array<uint32_t, 64> w;
    for (int i = 0; i < 16; ++i)
      w[i] = uint32_t{p[4 * i]} << 24 | p[4 * i + 1] << 16 | p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 64; ++i) {
      const uint32_t s0 = turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ (w[i - 15] >> 3);
      w[i] = w[i - 16] + s0 + w[i - 7] + (turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ (w[i - 2] >> 10));
    }
    auto v = h;
    for (int i = 0; i < 64; ++i) {
      const uint32_t ch = (v[4] & v[5]) ^ (~v[4] & v[6]), maj = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
      const uint32_t t1 = v[7] + (turn(v[4], 6) ^ turn(v[4], 11) ^ turn(v[4], 25)) + ch + k[i] + w[i];
      const uint32_t t2 = (turn(v[0], 2) ^ turn(v[0], 13) ^ turn(v[0], 22)) + maj;
      v = {t1 + t2, v[0], v[1], v[2], v[3] + t1, v[4], v[5], v[6]};
    }
    for (int i = 0; i < 8; ++i) h[i] += v[i];
  };
  std::vector<uint8_t> rest;
  uint64_t total = 0;
  for (auto [data, size] : pieces) {
    const uint8_t *p = static_cast<const uint8_t*>(data), *end = p + size;
    total += size;
    while (p != end) {
      if (rest.empty() && end - p >= 64) {
        block(p);
        p += 64;
      } else {
        rest.push_back(*p++);
        if (rest.size() == 64) block(rest.data()), rest.clear();
      }
    }
  }
  rest.push_back(0x80);
  while (rest.size() % 64 != 56) rest.push_back(0);
  for (int i = 7; i >= 0; --i) rest.push_back(static_cast<uint8_t>(total * 8 >> 8 * i));
  for (size_t at = 0; at < rest.size(); at += 64) block(rest.data() + at);
  std::string digest;
  for (uint32_t part : h)
    for (int shift = 28; shift >= 0; shift -= 4) digest += "0123456789abcdef"[part >> shift & 15];
  return digest;
}

// ---- files ----
struct Bytes {  // a mapped file
  std::shared_ptr<const void> owner;
  const uint8_t* data = nullptr;
  size_t size = 0;
  std::string text() const { return {reinterpret_cast<const char*>(data), size}; }
};
Bytes map_file(const std::string& path) {
  const int handle = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  struct stat status{};
  const bool file = handle >= 0 && ::fstat(handle, &status) == 0 && S_ISREG(status.st_mode);
  const size_t size = file ? static_cast<size_t>(status.st_size) : 0;
  void* place = size ? ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, handle, 0) : nullptr;
  if (handle >= 0) ::close(handle);
  if (!file || place == MAP_FAILED) damaged("there is no such file", "`" + path + "`");
  std::shared_ptr<const void> owner(place, [size](const void* p) {
    if (p) ::munmap(const_cast<void*>(p), size);
  });
  return {owner, static_cast<const uint8_t*>(place), size};
}

// ---- JSON ----
json parse_json(const Bytes& bytes, const std::string& where) {
  std::vector<Names> keys;
  auto check = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > 200) throw std::runtime_error("it is too deep");
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
      throw std::runtime_error("an object has the same key twice");
    return true;
  };
  try {
    return json::parse(bytes.data, bytes.data + bytes.size, check);
  } catch (const std::exception& error) {
    damaged(std::string("the file is not valid JSON: ") + error.what(), where);
  }
}
// JSON as Python's `json.dumps(value, sort_keys=True)` writes it.
std::string python_json(const json& value, const char* comma = ", ", const char* colon = ": ") {
  if (!value.is_structured()) return value.dump(-1, ' ', true);
  std::string inside;
  for (auto item = value.begin(); item != value.end(); ++item) {
    if (!inside.empty()) inside += comma;
    if (value.is_object()) inside += json(item.key()).dump(-1, ' ', true) + colon;
    inside += python_json(*item, comma, colon);
  }
  return value.is_object() ? "{" + inside + "}" : "[" + inside + "]";
}

// ---- safetensors ----
Tensors parse_tensors(const Bytes& bytes, const std::string& where,
                      std::map<std::string, std::string>* metadata = nullptr) {
  auto fail = [&](const std::string& problem) {
    damaged("the file is not a whole safetensors file: " + problem, where, "copy the file again");
  };
  uint64_t length = 0;
  if (bytes.size >= 8) std::memcpy(&length, bytes.data, 8);
  if (bytes.size < 8 || length > std::min(bytes.size - 8, kLargestHeader)) fail("the header is longer than the file");
  const json header = parse_json({bytes.owner, bytes.data + 8, length}, where);
  if (!header.is_object()) fail("the header is no object");
  const uint64_t room = bytes.size - 8 - length;
  std::vector<std::pair<uint64_t, uint64_t>> spans;
  Tensors tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      for (const auto& item : entry)
        if (!item.is_string()) fail("the metadata is no table of strings");
      if (metadata) *metadata = entry.get<std::map<std::string, std::string>>();
      continue;
    }
    auto whole = [](const json& list) {
      return list.is_array() && std::all_of(list.begin(), list.end(),
                                            [](const json& n) { return n.is_number_unsigned() && n < (1ull << 48); });
    };
    const json none, &stored = entry.is_object() && entry.contains("dtype") ? entry["dtype"] : none;
    const Dtype* type = dtype_by([&](const Dtype& d) { return stored == d.stored; });
    if (!type || entry.size() != 3 || !whole(entry.value("shape", none)) || !whole(entry.value("data_offsets", none)) ||
        entry["data_offsets"].size() != 2)
      fail("a tensor is described by " + entry.dump());
    const auto shape = entry["shape"].get<Shape>();
    const uint64_t start = entry["data_offsets"][0], end = entry["data_offsets"][1];
    uint64_t needed = type->size;
    for (int64_t size : shape)
      if (__builtin_mul_overflow(needed, static_cast<uint64_t>(size), &needed)) fail("a tensor is too large");
    if (end < start || end > room || end - start != needed) fail("a tensor does not have the bytes of its shape");
    spans.emplace_back(start, end);
    const uint8_t* data = bytes.data + 8 + length + start;
    const bool aligned = reinterpret_cast<uintptr_t>(data) % type->size == 0;
    tensors[name] = aligned ? Tensor{type->name, shape, {bytes.owner, data}} : Tensor::copy(type->name, shape, data);
  }
  std::sort(spans.begin(), spans.end());
  uint64_t end = 0;
  for (auto [start, stop] : spans) {
    if (start != end) fail("tensors overlap, or bytes between them belong to none");
    end = stop;
  }
  if (end != room) fail("the tensors do not cover the file");
  return tensors;
}

// The bytes of a safetensors file before its data, and the names of the tensors in the order of the data.
std::pair<std::string, std::vector<std::string>> format_header(const Tensors& tensors, const json& metadata) {
  std::vector<std::string> order;
  for (const auto& item : tensors) order.push_back(item.first);
  std::stable_sort(order.begin(), order.end(), [&](const std::string& a, const std::string& b) {
    return dtype_named(tensors.at(a).dtype)->size > dtype_named(tensors.at(b).dtype)->size;
  });
  nlohmann::ordered_json header = {{"__metadata__", metadata}};
  size_t end = 0;
  for (const auto& name : order) {
    const Tensor& t = tensors.at(name);
    header[name] = {
        {"dtype", dtype_named(t.dtype)->stored}, {"shape", t.shape}, {"data_offsets", {end, end + t.bytes()}}};
    end += t.bytes();
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t length = text.size();
  return {std::string(reinterpret_cast<const char*>(&length), 8) + text, order};
}

}  // namespace
}  // namespace ttac
