#include "operator.h"

#include <exception>
#include <utility>

namespace ttac {
namespace {

struct Made {
  const Slot* api;
  std::unique_ptr<Kernel> kernel;
};

const Operator& self(const CustomOp* op) { return *static_cast<const Operator*>(op); }

// No exception may cross into the engine; it becomes a status with the same text.
template <class Body>
Status* guarded(const Slot* api, Body body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return CreateStatus::of(api)(kFail, error.what());
  }
}

Status* create(const CustomOp* op, const Slot* api, const KernelInfo* info, void** made) {
  return guarded(api, [&] { *made = new Made{api, self(op).make(Attributes(api, info))}; });
}

Status* compute(void* kernel, KernelContext* context) {
  const Made& made = *static_cast<Made*>(kernel);
  return guarded(made.api, [&] { made.kernel->run(Call(made.api, context)); });
}

}  // namespace

Operator::Operator(const char* name_, std::vector<Port> inputs_, std::vector<Port> outputs_,
                   std::unique_ptr<Kernel> (*make_)(const Attributes&))
    : op_name(name_), inputs(std::move(inputs_)), outputs(std::move(outputs_)), make(make_) {
  name = [](const CustomOp* op) { return self(op).op_name; };
  provider = [](const CustomOp*) -> const char* { return nullptr; };
  input_count = [](const CustomOp* op) { return self(op).inputs.size(); };
  output_count = [](const CustomOp* op) { return self(op).outputs.size(); };
  input_type = [](const CustomOp* op, size_t index) { return self(op).inputs[index].type; };
  output_type = [](const CustomOp* op, size_t index) { return self(op).outputs[index].type; };
  input_characteristic = [](const CustomOp* op, size_t index) { return self(op).inputs[index].characteristic; };
  output_characteristic = [](const CustomOp* op, size_t index) { return self(op).outputs[index].characteristic; };
  input_memory = [](const CustomOp*, size_t) { return 0; };
  first_version = last_version = [](const CustomOp*) { return 1; };
  create = ttac::create;
  compute = ttac::compute;
  destroy = [](void* kernel) { delete static_cast<Made*>(kernel); };
}

}  // namespace ttac
