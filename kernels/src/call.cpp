#include "call.h"

namespace ttac {

void require(bool condition, const char* message) {
  if (!condition) throw std::runtime_error(message);
}

// An absent attribute is an error of the engine; the operators have defaults for all of them.
bool Attributes::absent(Status* status) const {
  if (status == nullptr) return false;
  ReleaseStatus::of(api_)(status);
  return true;
}

int64_t Attributes::integer(const char* name, int64_t otherwise) const {
  int64_t found = 0;
  return absent(IntAttribute::of(api_)(info_, name, &found)) ? otherwise : found;
}

float Attributes::number(const char* name, float otherwise) const {
  float found = 0;
  return absent(FloatAttribute::of(api_)(info_, name, &found)) ? otherwise : found;
}

std::string Attributes::text(const char* name, const char* otherwise) const {
  size_t size = 0;
  absent(TextAttribute::of(api_)(info_, name, nullptr, &size));
  std::string found(size, '\0');
  if (size == 0 || absent(TextAttribute::of(api_)(info_, name, &found[0], &size))) return otherwise;
  found.resize(size - 1);  // the engine counts the closing zero
  return found;
}

std::vector<int64_t> Attributes::integers(const char* name, std::vector<int64_t> otherwise) const {
  size_t size = 0;
  absent(IntsAttribute::of(api_)(info_, name, nullptr, &size));
  std::vector<int64_t> found(size);
  if (size == 0 || absent(IntsAttribute::of(api_)(info_, name, found.data(), &size))) return otherwise;
  return found;
}

void Call::check(Status* status, const char* doing) const {
  if (status == nullptr) return;
  ReleaseStatus::of(api_)(status);
  throw std::runtime_error(std::string("the engine fails to ") + doing);
}

Tensor Call::input(size_t index) const {
  size_t count = 0;
  check(InputCount::of(api_)(context_, &count), "count the inputs");
  const Value* value = nullptr;
  if (index < count) check(InputOf::of(api_)(context_, index, &value), "find an input");
  if (value == nullptr) return {};
  TypeAndShape* info = nullptr;
  check(ShapeOf::of(api_)(value, &info), "find the shape of an input");
  size_t rank = 0;
  Status* status = DimensionCount::of(api_)(info, &rank);
  Tensor found;
  found.shape.resize(rank);
  if (status == nullptr) status = Dimensions::of(api_)(info, found.shape.data(), rank);
  ReleaseShape::of(api_)(info);
  check(status, "find the shape of an input");
  check(MutableData::of(api_)(const_cast<Value*>(value), &found.data), "read an input");
  return found;
}

Tensor Call::output(size_t index, const std::vector<int64_t>& shape) const {
  size_t count = 0;
  check(OutputCount::of(api_)(context_, &count), "count the outputs");
  Tensor made;
  made.shape = shape;
  Value* value = nullptr;
  if (index < count) {
    check(OutputOf::of(api_)(context_, index, shape.data(), shape.size(), &value), "allocate an output");
  }
  if (value == nullptr) return made;
  check(MutableData::of(api_)(value, &made.data), "write an output");
  return made;
}

void Call::run(size_t total, void (*body)(void*, size_t), void* data) const {
  check(ParallelFor::of(api_)(context_, body, total, 0, data), "run a loop on its threads");
}

}  // namespace ttac
