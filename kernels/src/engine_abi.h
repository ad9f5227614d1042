// The part of onnxruntime's C interface that the kernels use, as of API version 18.
//
// The engine hands out one long table of functions.  It only ever appends to the table, so a slot keeps its number in
// every later release.  With our own names for these slots the library needs no header of any engine.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ttac {

constexpr uint32_t kApiVersion = 18;  // onnxruntime 1.18, the first release that ttac supports

// Opaque objects of the engine.
struct Status;
struct Value;
struct TypeAndShape;
struct KernelInfo;
struct KernelContext;
struct ShapeContext;
struct SessionOptions;
struct OpDomain;

using Slot = void (*)();

struct ApiBase {
  const Slot* (*get_api)(uint32_t version);
  const char* (*version_text)();
};

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kFloat32 = 1, kUint8 = 2, kInt8 = 3, kInt64 = 7, kBool = 9 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };

// The numbers of the slots, and the type of the function in each.
template <int number, class Function>
struct ApiSlot {
  static Function* of(const Slot* api) { return reinterpret_cast<Function*>(api[number]); }
};

using CreateStatus = ApiSlot<0, Status*(ErrorCode, const char*)>;
using CreateOpDomain = ApiSlot<26, Status*(const char*, OpDomain**)>;
using AddToDomain = ApiSlot<27, Status*(OpDomain*, const struct CustomOp*)>;
using AddDomain = ApiSlot<28, Status*(SessionOptions*, OpDomain*)>;
using MutableData = ApiSlot<51, Status*(Value*, void**)>;
using DimensionCount = ApiSlot<61, Status*(const TypeAndShape*, size_t*)>;
using Dimensions = ApiSlot<62, Status*(const TypeAndShape*, int64_t*, size_t)>;
using ShapeOf = ApiSlot<65, Status*(const Value*, TypeAndShape**)>;
using FloatAttribute = ApiSlot<85, Status*(const KernelInfo*, const char*, float*)>;
using IntAttribute = ApiSlot<86, Status*(const KernelInfo*, const char*, int64_t*)>;
using TextAttribute = ApiSlot<87, Status*(const KernelInfo*, const char*, char*, size_t*)>;
using InputCount = ApiSlot<88, Status*(const KernelContext*, size_t*)>;
using OutputCount = ApiSlot<89, Status*(const KernelContext*, size_t*)>;
using InputOf = ApiSlot<90, Status*(const KernelContext*, size_t, const Value**)>;
using OutputOf = ApiSlot<91, Status*(KernelContext*, size_t, const int64_t*, size_t, Value**)>;
using ReleaseStatus = ApiSlot<93, void(Status*)>;
using ReleaseShape = ApiSlot<99, void(TypeAndShape*)>;
using IntsAttribute = ApiSlot<163, Status*(const KernelInfo*, const char*, int64_t*, size_t*)>;
using ParallelFor = ApiSlot<274, Status*(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>;

// The table of an operator that the engine calls; the order is the engine's.
struct CustomOp {
  uint32_t version = kApiVersion;
  void* (*create_v1)(const CustomOp*, const Slot*, const KernelInfo*) = nullptr;
  const char* (*name)(const CustomOp*) = nullptr;
  const char* (*provider)(const CustomOp*) = nullptr;
  ElementType (*input_type)(const CustomOp*, size_t) = nullptr;
  size_t (*input_count)(const CustomOp*) = nullptr;
  ElementType (*output_type)(const CustomOp*, size_t) = nullptr;
  size_t (*output_count)(const CustomOp*) = nullptr;
  void (*compute_v1)(void*, KernelContext*) = nullptr;
  void (*destroy)(void*) = nullptr;
  Characteristic (*input_characteristic)(const CustomOp*, size_t) = nullptr;
  Characteristic (*output_characteristic)(const CustomOp*, size_t) = nullptr;
  int (*input_memory)(const CustomOp*, size_t) = nullptr;
  int (*variadic_input_count)(const CustomOp*) = nullptr;
  int (*variadic_input_alike)(const CustomOp*) = nullptr;
  int (*variadic_output_count)(const CustomOp*) = nullptr;
  int (*variadic_output_alike)(const CustomOp*) = nullptr;
  Status* (*create)(const CustomOp*, const Slot*, const KernelInfo*, void**) = nullptr;
  Status* (*compute)(void*, KernelContext*) = nullptr;
  Status* (*infer_shapes)(const CustomOp*, ShapeContext*) = nullptr;
  int (*first_version)(const CustomOp*) = nullptr;
  int (*last_version)(const CustomOp*) = nullptr;
  size_t (*may_reuse)(int**, int**) = nullptr;
  void (*release_may_reuse)(int*, int*) = nullptr;
  size_t (*aliases)(int**, int**) = nullptr;
  void (*release_aliases)(int*, int*) = nullptr;
};

}  // namespace ttac
