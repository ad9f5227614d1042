#include "engine.h"

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <thread>

extern "C" ttac::Status* RegisterCustomOps(ttac::SessionOptions*, const ttac::ApiBase*);

namespace ttac {

struct Status {
  std::string message;
};
struct Value {
  Array* array;
};
struct TypeAndShape {
  std::vector<int64_t> shape;
};
struct KernelInfo {
  const Node* node;
};
struct KernelContext {
  const CustomOp* op;
  const Node* node;
  unsigned threads;
  std::vector<Value> inputs, outputs;
  std::vector<std::unique_ptr<Array>> made;
};
struct OpDomain {
  std::map<std::string, const CustomOp*> ops;
};
struct SessionOptions {
  OpDomain* domain = nullptr;
};

namespace {

template <class Map, class Put>
Status* attribute(const Map& map, const char* name, Put put) {
  const auto found = map.find(name);
  if (found == map.end()) return new Status{"no such attribute"};
  put(found->second);
  return nullptr;
}

Status* text_attribute(const KernelInfo* info, const char* name, char* out, size_t* size) {
  return attribute(info->node->texts, name, [&](const std::string& text) {
    if (out != nullptr) std::memcpy(out, text.c_str(), text.size() + 1);
    *size = text.size() + 1;
  });
}

Status* ints_attribute(const KernelInfo* info, const char* name, int64_t* out, size_t* size) {
  return attribute(info->node->lists, name, [&](const std::vector<int64_t>& list) {
    if (out != nullptr) std::memcpy(out, list.data(), 8 * list.size());
    *size = list.size();
  });
}

Status* output_of(KernelContext* context, size_t index, const int64_t* dims, size_t rank, Value** out) {
  *out = nullptr;
  if (!context->node->outputs[index]) return nullptr;
  context->made[index] =
      std::make_unique<Array>(context->op->output_type(context->op, index), std::vector<int64_t>(dims, dims + rank));
  context->outputs[index].array = context->made[index].get();
  *out = &context->outputs[index];
  return nullptr;
}

Status* parallel_for(const KernelContext* context, void (*body)(void*, size_t), size_t total, size_t, void* data) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t index = next++; index < total; index = next++) body(data, index);
  };
  std::vector<std::thread> others;
  for (unsigned i = 1; i < context->threads; ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  return nullptr;
}

// The table of functions; a slot that the library should not need stays null.
std::vector<Slot> make_api() {
  std::vector<Slot> api(300, nullptr);
  const auto put = [&](int number, auto function) { api[number] = reinterpret_cast<Slot>(+function); };
  put(0, [](ErrorCode, const char* text) { return new Status{text}; });
  put(26, [](const char*, OpDomain** out) -> Status* { return *out = new OpDomain, nullptr; });
  put(27, [](OpDomain* domain, const CustomOp* op) -> Status* { return domain->ops[op->name(op)] = op, nullptr; });
  put(28, [](SessionOptions* options, OpDomain* domain) -> Status* { return options->domain = domain, nullptr; });
  put(51, [](Value* value, void** out) -> Status* { return *out = value->array->data.get(), nullptr; });
  put(61, [](const TypeAndShape* info, size_t* out) -> Status* { return *out = info->shape.size(), nullptr; });
  put(62, [](const TypeAndShape* info, int64_t* out, size_t rank) -> Status* {
    if (rank > 0) std::memcpy(out, info->shape.data(), 8 * rank);  // the data of an empty shape may be null
    return nullptr;
  });
  put(65, [](const Value* value, TypeAndShape** out) -> Status* {
    return *out = new TypeAndShape{value->array->shape}, nullptr;
  });
  put(85, [](const KernelInfo* info, const char* name, float* out) {
    return attribute(info->node->numbers, name, [&](float found) { *out = found; });
  });
  put(86, [](const KernelInfo* info, const char* name, int64_t* out) {
    return attribute(info->node->integers, name, [&](int64_t found) { *out = found; });
  });
  put(87, text_attribute);
  put(88, [](const KernelContext* at, size_t* out) -> Status* { return *out = at->inputs.size(), nullptr; });
  put(89, [](const KernelContext* at, size_t* out) -> Status* { return *out = at->outputs.size(), nullptr; });
  put(90, [](const KernelContext* at, size_t index, const Value** out) -> Status* {
    return *out = at->inputs[index].array == nullptr ? nullptr : &at->inputs[index], nullptr;
  });
  put(91, output_of);
  put(93, [](Status* status) { delete status; });
  put(99, [](TypeAndShape* info) { delete info; });
  put(163, ints_attribute);
  put(274, parallel_for);
  return api;
}

const std::vector<Slot>& api() {
  static const std::vector<Slot> made = make_api();
  return made;
}

const CustomOp* op_named(const std::string& name) {
  static const ApiBase base{[](uint32_t) { return api().data(); }, [] { return "0"; }};
  SessionOptions options;
  if (RegisterCustomOps(&options, &base) != nullptr) throw std::runtime_error("the operators cannot be registered");
  return options.domain->ops.at(name);
}

void check(Status* status) {
  if (status == nullptr) return;
  const std::string message = status->message;
  delete status;
  throw std::runtime_error(message);
}

}  // namespace

Array::Array(ElementType type_, std::vector<int64_t> shape_) : type(type_), shape(std::move(shape_)) {
  data.reset(new unsigned char[bytes()]);
}

size_t Array::elements() const {
  size_t count = 1;
  for (int64_t size : shape) count *= static_cast<size_t>(size);
  return count;
}

std::vector<std::unique_ptr<Array>> run_node(const Node& node, unsigned threads) {
  const CustomOp* op = op_named(node.op_type);
  const KernelInfo info{&node};
  void* kernel = nullptr;
  check(op->create(op, api().data(), &info, &kernel));
  KernelContext context{op, &node, threads, {}, std::vector<Value>(node.outputs.size()), {}};
  for (const Array* input : node.inputs) context.inputs.push_back({const_cast<Array*>(input)});
  context.made.resize(node.outputs.size());
  Status* status = op->compute(kernel, &context);
  op->destroy(kernel);
  check(status);
  return std::move(context.made);
}

}  // namespace ttac
