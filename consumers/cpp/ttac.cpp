#include "ttac.h"

#include <chrono>
#include <fstream>

#include "archive.h"
#include "manifest.h"

// The engine's `OrtApi` is a table of functions whose places never change; the names of the places are below.
extern "C" struct OrtApiBase {
  void (*const* (*GetApi)(uint32_t))();
  const char* (*GetVersionString)();
};
extern "C" const OrtApiBase* OrtGetApiBase();

namespace ttac {
namespace {

// ---- graphs, as protobuf with the fields that ttac writes and no others ----
struct Message {
  std::map<int, std::vector<Message>> fields;
  uint64_t number = 0;
  std::string bytes;
  const std::vector<Message>& all(int field) const {
    static const std::vector<Message> none;
    return fields.count(field) ? fields.at(field) : none;
  }
  const Message& one(int field) const {
    static const Message none;
    return all(field).empty() ? none : all(field)[0];
  }
};
// Message -> fields: i(nt), b(ytes), 4 or 8 bytes, or a message; `*` may repeat.
const std::map<std::string, const char*> kSchema = {
    {"model", "1i 2b 3b 4b 5i 6b 7graph 8opset* 14entry*"},
    {"opset", "1b 2i"},
    {"entry", "1b 2b"},
    {"graph", "2b 10b 1node* 5tensor* 11value* 12value* 13value* 14note* 16entry*"},
    {"node", "3b 4b 6b 7b 1b* 2b* 5attribute* 9entry*"},
    {"attribute", "1b 2four 3i 4b 5tensor 13b 20i 7four* 8i* 9b*"},
    {"tensor", "2i 8b 9b 12b 14i 1i* 4four* 5i* 7i* 10eight* 11i* 13entry* 16entry*"},
    {"value", "1b 2type 3b 4entry*"},
    {"type", "1kind 6b"},
    {"kind", "1i 2shape"},
    {"shape", "1size*"},
    {"size", "1i 2b 3b"},
    {"note", "1b 2entry*"}};

using Fields = std::map<uint64_t, std::pair<std::string, bool>>;
const std::map<std::string, Fields>& schema() {
  static const auto table = [] {
    std::map<std::string, Fields> found;
    for (const auto& [kind, text] : kSchema) {
      std::istringstream words(text);
      uint64_t number;
      std::string content;
      while (words >> number >> content) {
        const bool many = content.back() == '*';
        found[kind][number] = {many ? content.substr(0, content.size() - 1) : content, many};
      }
    }
    return found;
  }();
  return table;
}

class Reader {
 public:
  explicit Reader(const Bytes& bytes) : data_(bytes.data) {}
  Message message(size_t at, size_t end, const std::string& kind) {
    Message result;
    while (at < end) {
      const uint64_t tag = varint(at, end);
      const auto field = schema().at(kind).find(tag >> 3);
      if (tag >> 32 || field == schema().at(kind).end()) fail("a " + kind + " has an unknown field");
      const auto& [content, many] = field->second;
      auto& values = result.fields[static_cast<int>(tag >> 3)];
      if (!values.empty() && !many) fail("a " + kind + " has a repeated field");
      const int wire = tag & 7, width = content == "four" ? 4 : content == "eight" ? 8 : 0;
      if (wire == 0 && content == "i") {
        values.push_back({{}, varint(at, end), ""});
      } else if (wire == 2) {
        const uint64_t length = varint(at, end);
        if (length > end - at) fail("a field is longer than its message");
        const size_t stop = at + length;
        if (content == "b") values.push_back({{}, 0, std::string(data_ + at, data_ + stop)});
        else if (kSchema.count(content)) values.push_back(message(at, stop, content));
        else if (!many || (width && length % width)) fail("packed numbers are not whole");
        else
          for (size_t p = at; p < stop; p += width) values.push_back({{}, width ? 0 : varint(p, stop), ""});
        at = stop;
      } else if (width && wire == (width == 4 ? 5 : 1) && end - at >= static_cast<size_t>(width)) {
        values.emplace_back();
        at += width;
      } else {
        fail("a field has another wire type");
      }
      if (++fields_ > kMostFields) fail("it has too many fields");
    }
    return result;
  }
  [[noreturn]] static void fail(const std::string& problem) { throw std::runtime_error(problem); }

 private:
  uint64_t varint(size_t& at, size_t end) {
    uint64_t value = 0;
    for (int i = 0; i < 10 && at < end; ++i) {
      const uint8_t byte = data_[at++];
      if (i == 9 && byte > 1) break;
      value |= uint64_t{byte & 0x7fu} << 7 * i;
      if (byte < 0x80) return value;
    }
    fail("a number is cut or longer than 64 bits");
  }
  const uint8_t* data_;
  int64_t fields_ = 0;
};

struct Ports {
  std::vector<Spec> inputs, outputs;
};
int64_t size_product(const std::vector<Message>& sizes, int64_t item) {
  for (const auto& size : sizes)
    if (size.number >> 31 || __builtin_mul_overflow(item, static_cast<int64_t>(size.number), &item))
      Reader::fail("a shape is too large");
  return item;
}
void check_tensor(const Message& t, size_t weights) {
  static const std::map<uint64_t, int> sizes = {{1, 4}, {2, 1},  {3, 1},  {4, 2},  {5, 2},  {6, 4}, {7, 8},
                                                {9, 1}, {10, 2}, {11, 8}, {12, 4}, {13, 8}, {16, 2}};
  if (!sizes.count(t.one(2).number)) Reader::fail("a tensor has an unknown type");
  const int64_t item = sizes.at(t.one(2).number), needed = size_product(t.all(1), item);
  size_t typed = 0;
  for (int number : {4, 5, 7, 10, 11}) typed += t.all(number).size();
  if (t.one(14).number != 1) {
    const size_t stored = t.all(9).empty() ? item * typed : t.one(9).bytes.size();
    if (!t.all(13).empty() || t.one(14).number || stored != static_cast<size_t>(needed))
      Reader::fail("the data of a tensor does not fit its shape");
    return;
  }
  std::map<std::string, std::string> entries = {
      {"offset", "0"}, {"length", std::to_string(needed)}, {"checksum", ""}, {"location", ""}};
  for (const auto& entry : t.all(13)) {
    if (!entries.count(entry.one(1).bytes)) Reader::fail("external data is described by unknown words");
    entries[entry.one(1).bytes] = entry.one(2).bytes;
  }
  for (const auto& number : {entries["offset"], entries["length"]})
    if (number.empty() || number.size() > 18 || number.find_first_not_of("0123456789") != std::string::npos)
      Reader::fail("external data has no place");
  const int64_t offset = std::stoll(entries["offset"]), length = std::stoll(entries["length"]);
  if (length != needed || typed || !t.all(9).empty()) Reader::fail("external data does not fit its tensor");
  if (entries["location"] != kWeights || offset + length > static_cast<int64_t>(weights))
    Reader::fail("external data lies outside `weights.safetensors`");
}
Spec port(const Message& value) {
  const Message& type = value.one(2).one(1);
  const Dtype* found = dtype_by([&](const Dtype& d) { return static_cast<uint64_t>(d.element) == type.one(1).number; });
  Spec spec{value.one(1).bytes, found ? found->name : "", {}, -1, {}};
  for (const auto& size : type.one(2).all(1))
    spec.shape.push_back(size.all(1).empty() ? -2 : static_cast<int64_t>(size.one(1).number));
  return spec;
}
// Check an ONNX file strictly; `weights` is the size of the weights file.
Ports check_graph(const Bytes& bytes, const std::string& where, size_t weights) try {
  const Message graph = Reader(bytes).message(0, bytes.size, "model").one(7);
  Names initial;
  std::map<std::string, Message> constants;
  for (const auto& tensor : graph.all(5)) check_tensor(tensor, weights), constants[tensor.one(8).bytes] = tensor;
  for (const auto& tensor : graph.all(5)) initial.insert(tensor.one(8).bytes);
  static const std::map<std::string, size_t> shaped = {
      {"ConstantOfShape", 0}, {"Expand", 1}, {"Tile", 1}, {"Resize", 3}, {"Pad", 1}, {"Range", 1}, {"OneHot", 1}};
  for (const auto& node : graph.all(1)) {
    for (const auto& attribute : node.all(5))
      for (const auto& tensor : attribute.all(5)) check_tensor(tensor, weights), constants[node.one(2).bytes] = tensor;
    const std::string& domain = node.one(7).bytes;
    if (!Names{"", "ai.onnx", "com.microsoft"}.count(domain))
      Reader::fail("a node is of the operator domain `" + domain + "`");
  }
  for (const auto& node : graph.all(1)) {
    const auto found = shaped.find(node.one(4).bytes);
    if (found == shaped.end() || node.all(1).size() <= found->second) continue;
    const auto constant = constants.find(node.all(1)[found->second].bytes);
    if (constant == constants.end() || constant->second.one(2).number != 7 ||
        size_product(constant->second.all(1), 1) > 64)
      continue;
    std::vector<int64_t> sizes;
    for (const auto& value : constant->second.all(7)) sizes.push_back(static_cast<int64_t>(value.number));
    const std::string& raw = constant->second.one(9).bytes;
    if (!raw.empty()) sizes.resize(raw.size() / 8), std::memcpy(sizes.data(), raw.data(), sizes.size() * 8);
    int64_t elements = 1;
    for (int64_t size : sizes)
      if (size > 0 && (__builtin_mul_overflow(elements, size, &elements) || elements > kLargestElements))
        Reader::fail("a node makes a tensor that is too large");
  }
  Ports ports;
  for (const auto& value : graph.all(11))
    if (!initial.count(value.one(1).bytes)) ports.inputs.push_back(port(value));
  for (const auto& value : graph.all(12)) ports.outputs.push_back(port(value));
  return ports;
} catch (const std::runtime_error& error) {
  damaged(std::string("the graph is not a whole ONNX file of ttac: ") + error.what(), where);
}

// ---- engine ----
enum Slot {
  kGetErrorMessage = 2,
  kCreateEnv = 3,
  kCreateSession = 7,
  kCreateFromBytes = 8,
  kRun = 9,
  kCreateSessionOptions = 10,
  kDisableMemPattern = 17,
  kLogLevel = 22,
  kLevel = 23,
  kThreads = 24,
  kCreateTensor = 49,
  kData = 51,
  kElementType = 60,
  kDimensionsCount = 61,
  kDimensions = 62,
  kShapeInfo = 65,
  kMemoryInfo = 69,
  kReleaseStatus = 93,
  kReleaseSession = 95,
  kReleaseValue = 96,
  kReleaseShapeInfo = 99,
  kReleaseOptions = 100,
  kConfigEntry = 130,
  kRegisterAllocator = 144,
  kReleaseArena = 157,
  kCreateArena = 164,
  kFilesInMemory = 279
};
void (*const* api())() {
  static void (*const* const table)() = OrtGetApiBase()->GetApi(18);
  if (!table)
    throw Error(Kind::runtime_missing,
                std::string("onnxruntime ") + OrtGetApiBase()->GetVersionString() + " is older than 1.18", "the engine",
                "link a newer one");
  return table;
}
void release(Slot slot, void* object) { reinterpret_cast<void (*)(void*)>(api()[slot])(object); }
template <typename... A>
void call(Slot slot, const std::string& where, A... arguments) {
  void* status = reinterpret_cast<void* (*)(A...)>(api()[slot])(arguments...);
  if (!status) return;
  const std::string message = reinterpret_cast<const char* (*)(void*)>(api()[kGetErrorMessage])(status);
  release(kReleaseStatus, status);
  throw Error(Kind::runtime_missing, "onnxruntime failed: " + message, "`" + where + "`",
              "use another version of the engine");
}
struct Engine {  // one for the process: its environment, the place of tensors, and the arena that all sessions share
  void *env = nullptr, *place = nullptr;
  Engine() {
    call(kCreateEnv, "the engine", 4, "ttac", &env);
    call(kMemoryInfo, "the engine", 1, 0, &place);
    const char* keys[] = {"arena_extend_strategy", "max_dead_bytes_per_chunk", "initial_chunk_size_bytes"};
    const size_t values[] = {0, 1 << 16, 1 << 30};
    void* arena = nullptr;
    call(kCreateArena, "the engine", static_cast<const char* const*>(keys), static_cast<const size_t*>(values),
         size_t{3}, &arena);
    call(kRegisterAllocator, "the engine", env, static_cast<const void*>(place), static_cast<const void*>(arena));
    release(kReleaseArena, arena);
  }
};
Engine& engine() {
  static Engine one;
  return one;
}
// The graph for a session of `options`.  1.21 and later map its weights in the bundle's file; older engines copy them.
std::string packed_graph(const Files& files, const std::string& name, void* options) {
  const Bytes graph = files.read(name);
  if (!files.members.count(kWeights)) return graph.text();
  const Bytes weights = files.read(kWeights);
  int minor = 0;
  if (std::sscanf(OrtGetApiBase()->GetVersionString(), "1.%d", &minor) == 1 && minor < 21) {
    const char* names[] = {kWeights};
    char* data[] = {reinterpret_cast<char*>(const_cast<uint8_t*>(weights.data))};
    const size_t sizes[] = {weights.size};
    call(kFilesInMemory, name, options, static_cast<const char* const*>(names), static_cast<char* const*>(data),
         static_cast<const size_t*>(sizes), size_t{1});
    return graph.text();
  }
  const std::string folder = fs::path(files.path).parent_path().string();
  call(kConfigEntry, name, options, "session.model_external_initializers_file_folder_path", folder.c_str());
  return moved_graph(graph, files.start(kWeights), fs::path(files.path).filename().string());
}
std::shared_ptr<void> open_session(const Files& files, const Graph& graph, int threads) {
  void *options = nullptr, *session = nullptr;
  call(kCreateSessionOptions, graph.file, &options);
  const std::shared_ptr<void> owner(options, [](void* p) { release(kReleaseOptions, p); });
  call(kDisableMemPattern, graph.file, options);
  call(kLogLevel, graph.file, options, 4);
  call(kLevel, graph.file, options, graph.level == "basic" ? 1 : graph.level == "extended" ? 2 : 99);
  call(kThreads, graph.file, options, threads);
  for (const auto& [key, value] : std::map<std::string, std::string>{
           {"session.use_env_allocators", "1"},
           {"session.intra_op.allow_spinning", "0"},
           {"optimization.disable_specified_optimizers", "MatMul_BatchNormalization_Fusion;SkipLayerNormFusion"}})
    call(kConfigEntry, graph.file, options, key.c_str(), value.c_str());
  if (files.packed()) {
    const std::string bytes = packed_graph(files, graph.file, options);
    call(kCreateFromBytes, graph.file, engine().env, static_cast<const void*>(bytes.data()), bytes.size(),
         static_cast<const void*>(options), &session);
  } else {
    const std::string path = (fs::path(files.path) / graph.file).string();
    call(kCreateSession, graph.file, engine().env, path.c_str(), static_cast<const void*>(options), &session);
  }
  return {session, [](void* p) { release(kReleaseSession, p); }};
}
std::shared_ptr<void> engine_value(const Tensor& t) {
  static char nothing;
  void* value = nullptr;
  void* data = t.bytes() ? const_cast<void*>(t.data.get()) : &nothing;
  call(kCreateTensor, "a tensor", static_cast<const void*>(engine().place), data, t.bytes(), t.shape.data(),
       t.shape.size(), dtype_named(t.dtype)->element, &value);
  return {value, [](void* p) { release(kReleaseValue, p); }};
}
Tensor from_engine(void* value) {
  const std::shared_ptr<void> owner(value, [](void* p) { release(kReleaseValue, p); });
  void *info = nullptr, *data = nullptr;
  call(kShapeInfo, "a tensor", static_cast<const void*>(value), &info);
  const std::shared_ptr<void> shape(info, [](void* p) { release(kReleaseShapeInfo, p); });
  int element = 0;
  size_t axes = 0;
  call(kElementType, "a tensor", static_cast<const void*>(info), &element);
  call(kDimensionsCount, "a tensor", static_cast<const void*>(info), &axes);
  Tensor result;
  result.shape.resize(axes);
  call(kDimensions, "a tensor", static_cast<const void*>(info), result.shape.data(), axes);
  call(kData, "a tensor", value, &data);
  const Dtype* type = dtype_by([&](const Dtype& d) { return d.element == element; });
  if (!type) damaged("a graph gave a tensor of an unknown type", "the program");
  result.dtype = type->name;
  result.data = {owner, data};
  return result;
}
std::vector<Tensor> run_graph(const Graph& graph, const std::vector<Tensor>& feed,
                              const std::vector<std::string>& fetch) {
  std::vector<const char*> in, out;
  std::vector<std::shared_ptr<void>> owners;
  std::vector<const void*> values;
  std::vector<void*> results(fetch.size());
  for (const auto& name : graph.inputs) in.push_back(name.c_str());
  for (const auto& name : fetch) out.push_back(name.c_str());
  for (const auto& t : feed) owners.push_back(engine_value(t)), values.push_back(owners.back().get());
  call(kRun, graph.file, graph.session.get(), static_cast<const void*>(nullptr), in.data(), values.data(), in.size(),
       out.data(), out.size(), results.data());
  std::vector<Tensor> tensors;
  for (void* value : results) tensors.push_back(from_engine(value));
  return tensors;
}

// ---- samples that are not finite ----
Tensor rows_of(const Tensor& t, int axis, const std::vector<int64_t>& rows) {
  Shape shape = t.shape;
  shape[axis] = static_cast<int64_t>(rows.size());
  const int64_t outer = product(shape, 0, axis);
  const size_t inner = dtype_named(t.dtype)->size * product(shape, axis + 1, shape.size());
  std::vector<char> data(outer * rows.size() * inner + 1);
  for (int64_t block = 0; block < outer; ++block)
    for (size_t i = 0; i < rows.size(); ++i)
      std::memcpy(data.data() + (block * rows.size() + i) * inner,
                  t.as<char>() + (block * t.shape[axis] + rows[i]) * inner, inner);
  return Tensor::copy(t.dtype, shape, data.data());
}
std::vector<char> blank_data(const Dtype& type, int64_t count) {  // NaN, or 0 in integers
  std::vector<char> data(type.size * count);
  const uint16_t half_nan = 0x7e00;
  const float nan = NAN;
  const double wide_nan = NAN;
  const void* one = type.element == 10  ? static_cast<const void*>(&half_nan)
                    : type.element == 1 ? static_cast<const void*>(&nan)
                                        : &wide_nan;
  const bool floats = type.element == 10 || type.element == 1 || type.element == 11;
  for (int64_t i = 0; floats && i < count; ++i) std::memcpy(data.data() + i * type.size, one, type.size);
  return data;
}
Tensor spread(const Tensor& t, const Spec& spec, const std::vector<int64_t>& finite, int64_t samples) {
  if (spec.batch_axis < 0) return t;
  Shape shape = t.shape;
  const int64_t given = shape[spec.batch_axis];
  shape[spec.batch_axis] = samples;
  const Dtype& type = *dtype_named(t.dtype);
  const int64_t outer = product(shape, 0, spec.batch_axis);
  const size_t inner = type.size * product(shape, spec.batch_axis + 1, shape.size());
  std::vector<char> data = blank_data(type, product(shape));
  for (int64_t block = 0; block < outer; ++block)
    for (size_t i = 0; i < finite.size(); ++i)
      std::memcpy(data.data() + (block * samples + finite[i]) * inner, t.as<char>() + (block * given + i) * inner,
                  inner);
  return Tensor::copy(t.dtype, shape, data.data());
}
}  // namespace

// ---- the adapter ----
struct Adapter::Parts {
  Manifest m;
  std::map<std::string, Words> programs;
  Tensors weights, initial, state;
  Stats stats;
  int rejected_in_a_row = 0;

  struct Pass {
    Tensors values, pending;
    Stats reported;
  };
  std::map<std::string, int> axes;  // input -> axis of its samples, -1 for an input that all samples share
  const Tensor& find(const Pass& pass, const std::string& name) const {
    for (const Tensors* place : {&pass.values, &pass.pending, &state})
      if (place->count(name)) return place->at(name);
    return weights.at(name);
  }
  void take(const Tensors& tensors) { state = tensors, rejected_in_a_row = 0, count(m, state, stats); }
  double scalar(const Tensor& t) const {
    if (!t.count()) damaged("a graph gave an empty tensor as a scalar", "the program");
    return value_at(t, 0);
  }
  // Do the words; whether they returned, with the values in `returned`.
  bool perform(Pass& pass, const Words& words, std::vector<Tensor>& returned) const {
    for (const auto& word : words) {
      if (word.kind == Word::run) {
        run(pass, word);
      } else if (word.kind == Word::when) {
        if (perform(pass, scalar(find(pass, word.name)) > 0 ? word.first : word.second, returned)) return true;
      } else if (word.kind == Word::repeat) {
        for (int64_t i = 0; i < word.number; ++i) perform(pass, word.first, returned);
      } else if (word.kind == Word::reset) {
        for (const auto& name : word.names) pass.pending[name] = initial.at(name);
      } else {
        for (const auto& name : word.names) returned.push_back(find(pass, name));
        return true;
      }
    }
    return false;
  }
  void run(Pass& pass, const Word& word) const {
    const Graph& graph = m.graphs.at(word.name);
    if (!word.fetch.empty()) {
      std::vector<Tensor> feed;
      for (const auto& name : graph.inputs) {
        feed.push_back(find(pass, word.feed.count(name) ? word.feed.at(name) : name));
        const int axis = axes.count(name) ? axes.at(name) : -1;
        if (!word.number || axis < 0 || feed.back().shape[axis] <= word.number) continue;
        std::vector<int64_t> rows(word.number);
        std::iota(rows.begin(), rows.end(), 0);
        feed.back() = rows_of(feed.back(), axis, rows);
      }
      const std::vector<Tensor> outputs = run_graph(graph, feed, word.fetch);
      for (size_t i = 0; i < outputs.size(); ++i) {
        const std::string& name = word.fetch[i];
        if (graph.state.count(name)) pass.pending[graph.state.at(name)] = outputs[i];
        if (graph.stats.count(name)) pass.reported[graph.stats.at(name)] = scalar(outputs[i]);
        pass.values[name] = outputs[i];
      }
    }
    for (auto item = pass.values.begin(); item != pass.values.end();)
      item = word.keep.count(item->first) ? std::next(item) : pass.values.erase(item);
  }
  int64_t samples_of(const Tensors& given) const {
    for (const auto& spec : m.inputs)
      if (spec.batch_axis >= 0 && static_cast<size_t>(spec.batch_axis) < given.at(spec.name).shape.size())
        return given.at(spec.name).shape[spec.batch_axis];
    return 0;
  }
  void check_inputs(const Tensors& given) const {
    auto wrong = [](const std::string& problem) {
      throw Error(Kind::usage, problem, "the input", "pass a batch as the manifest describes it");
    };
    if (given.size() != m.inputs.size()) wrong("the model has " + std::to_string(m.inputs.size()) + " inputs");
    for (const auto& spec : m.inputs)
      if (!given.count(spec.name)) wrong("the input `" + spec.name + "` is missing");
    for (const auto& spec : m.inputs) {
      const Tensor& t = given.at(spec.name);
      Shape shape = spec.shape;
      const bool ranked = t.shape.size() == shape.size();
      if (ranked && spec.batch_axis >= 0) shape[spec.batch_axis] = samples_of(given);
      for (const auto& item : spec.open)
        if (ranked) shape[item.first] = t.shape[item.first];
      if (t.dtype != spec.dtype || t.shape != shape || samples_of(given) < m.smallest || samples_of(given) > m.planned)
        wrong("the input `" + spec.name + "` is " + t.dtype + " " + text(t.shape) + "; the bundle takes " + spec.dtype +
              " and " + std::to_string(m.smallest) + " to " + std::to_string(m.planned) + " samples");
    }
    if (const std::string problem = misfit(m, given); !problem.empty()) wrong(problem);
  }
  // Run on the finite samples.  `learns`: whether enough are left.
  Tensors go(const Tensors& given, bool step, Pass& pass, bool& learns, int64_t& dropped) const {
    check_inputs(given);
    const int64_t samples = samples_of(given);
    std::vector<int64_t> finite;
    for (int64_t row = 0; row < samples; ++row)
      if (std::all_of(given.begin(), given.end(), [&](const auto& item) {
            const int axis = axes.at(item.first);
            return all_finite(axis < 0 || !is_float(item.second) ? item.second : rows_of(item.second, axis, {row}));
          }))
        finite.push_back(row);
    dropped = samples - static_cast<int64_t>(finite.size());
    learns = !dropped || static_cast<int64_t>(finite.size()) >= m.smallest;
    Tensors outputs;
    if (finite.empty()) {
      for (const auto& spec : m.outputs) {
        Shape shape;
        for (int64_t size : spec.shape) shape.push_back(size == -1 ? samples : size == -2 ? 1 : size);
        outputs[spec.name] =
            Tensor::copy(spec.dtype, shape, blank_data(*dtype_named(spec.dtype), product(shape)).data());
      }
      return outputs;
    }
    std::vector<int64_t> chosen = finite;
    while (static_cast<int64_t>(chosen.size()) < m.smallest) chosen.push_back(finite.back());
    for (const auto& [name, tensor] : given)
      pass.values[name] = dropped && axes.at(name) >= 0 ? rows_of(tensor, axes.at(name), chosen) : tensor;
    std::vector<Tensor> returned;
    perform(pass, programs.at(step && learns ? "step" : "predict"), returned);
    for (size_t i = 0; i < m.outputs.size(); ++i) {
      const Spec& spec = m.outputs[i];
      Shape shape = returned[i].shape;
      for (size_t axis = 0; axis < std::min(shape.size(), spec.shape.size()); ++axis)
        if (spec.shape[axis] == -2) shape[axis] = -2;
        else if (spec.shape[axis] == -1 && shape[axis] == static_cast<int64_t>(chosen.size())) shape[axis] = -1;
      if (shape != spec.shape || returned[i].dtype != spec.dtype)
        damaged("`" + spec.name + "` is " + returned[i].dtype + " " + text(returned[i].shape) + ", unlike the manifest",
                "the program");
      outputs[spec.name] = dropped ? spread(returned[i], spec, finite, samples) : returned[i];
    }
    return outputs;
  }
  bool commit(const Tensors& pending) {
    for (const auto& [name, t] : pending)
      if (t.dtype != m.state.at(name).dtype || t.shape != m.state.at(name).shape)
        damaged("a graph made state `" + name + "` " + t.dtype + " " + text(t.shape) + ", unlike the state table",
                "the program");
    if (!std::all_of(pending.begin(), pending.end(), [](const auto& item) { return all_finite(item.second); }))
      return false;
    for (const auto& [name, t] : pending) state[name] = t;
    return true;
  }
};

Adapter::Adapter(const std::string& path, int threads) : parts_(new Parts) {
  Parts& p = *parts_;
  json raw;
  const Files source(path);
  p.m = parse_manifest(source.manifest(), raw);
  std::map<std::string, Bytes> files;
  for (const auto& [name, digest] : p.m.files) {
    files[name] = source.read(name);
    if (sha256({{files[name].data, files[name].size}}) != digest)
      damaged("a file of the bundle is not the one the manifest was written for", "`" + name + "`");
  }
  std::map<std::string, Spec> declared = p.m.state;
  for (const auto& spec : p.m.inputs) declared[spec.name] = spec, p.axes[spec.name] = spec.batch_axis;
  const size_t size = files.count(kWeights) ? files[kWeights].size : 0;
  for (auto& [name, graph] : p.m.graphs) {
    const Ports ports = check_graph(files[graph.file], "`" + graph.file + "`", size);
    for (const auto& input : ports.inputs) {
      graph.inputs.push_back(input.name);
      if (!declared.count(input.name)) continue;
      const Spec& other = declared[input.name];
      bool fits = input.dtype == other.dtype && input.shape.size() == other.shape.size();
      for (size_t axis = 0; fits && axis < input.shape.size(); ++axis)
        fits = input.shape[axis] < 0 || input.shape[axis] == other.shape[axis];
      if (!fits)
        damaged("the graph takes `" + input.name + "` in another dtype or shape than the manifest has",
                "`" + graph.file + "`");
    }
    for (const auto& output : ports.outputs) graph.outputs.push_back(output.name);
    for (const auto& table : {graph.state, graph.stats})
      for (const auto& item : table)
        if (!std::count(graph.outputs.begin(), graph.outputs.end(), item.first))
          damaged("the manifest reads output `" + item.first + "`, which the graph lacks", "`" + graph.file + "`");
  }
  p.initial =
      checked_state(parse_tensors(files[p.m.state_file], "`" + p.m.state_file + "`"), p.m, "`" + p.m.state_file + "`");
  if (size) p.weights = parse_tensors(files[kWeights], std::string("`") + kWeights + "`");
  Names known, used;
  for (const auto& item : declared) known.insert(item.first);
  for (const auto& item : p.weights) known.insert(item.first);
  for (const char* name : {"step", "predict"}) {
    const std::string where = std::string("programs.") + name;
    Words& words = p.programs[name] = parse_words(raw["programs"][name], where, p.m, kDeepest);
    if (!always_returns(words)) refuse(where, "does not end with `return` on every path");
    if (count_words(words) > kMostWords) refuse(where, "does more than 10000 words");
    Names names = known, closed, after;
    check_names(words, p.m, names, closed, where);
    bind_words(words, p.m, after);
    std::function<void(const Words&)> collect = [&](const Words& list) {
      for (const auto& word : list) {
        if (word.kind == Word::run) used.insert(word.name);
        collect(word.first), collect(word.second);
      }
    };
    collect(words);
  }
  for (const auto& name : used)
    p.m.graphs[name].session = open_session(source, p.m.graphs[name], threads < 0 ? p.m.threads : threads);
  reset();
}
Adapter::Adapter(Adapter&&) noexcept = default;
Adapter::~Adapter() = default;

Tensors Adapter::step(const Tensors& inputs) {
  const auto start = std::chrono::steady_clock::now();
  Parts& p = *parts_;
  Parts::Pass pass;
  bool learns = false;
  int64_t dropped = 0;
  Tensors outputs = p.go(inputs, true, pass, learns, dropped);
  const bool adapted = !learns || p.commit(pass.pending);
  p.rejected_in_a_row = adapted ? 0 : p.rejected_in_a_row + 1;
  const bool stuck = p.rejected_in_a_row >= kRejectedInARow;
  p.stats["steps"] += 1;
  p.stats["samples"] += static_cast<double>(p.samples_of(inputs));
  p.stats["rejected"] += !adapted;
  p.stats["resets"] += stuck;
  p.stats["not_finite"] += static_cast<double>(dropped);
  p.stats["milliseconds"] = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  for (const auto& [name, value] : pass.reported) p.stats[name] = value;
  if (stuck) p.take(p.initial);
  return outputs;
}
Tensors Adapter::predict(const Tensors& inputs) {
  Parts::Pass pass;
  bool learns = false;
  int64_t dropped = 0;
  return parts_->go(inputs, false, pass, learns, dropped);
}
void Adapter::reset() {
  parts_->stats = {{"steps", 0},  {"samples", 0},    {"rejected", 0},
                   {"resets", 0}, {"not_finite", 0}, {"milliseconds", 0}};
  parts_->take(parts_->initial);
}
void Adapter::save(const std::string& path) const {
  const Parts& p = *parts_;
  auto [header, order] =
      format_header(p.state, {{"format", kStateFormat}, {"bundle", p.m.identity}, {"checksum", kBlank}});
  std::string data;
  for (const auto& name : order) data.append(p.state.at(name).as<char>(), p.state.at(name).bytes());
  header.replace(header.find(kBlank), kBlank.size(),
                 sha256({{header.data(), header.size()}, {data.data(), data.size()}}));
  header += data;
  const std::string temporary = path + "." + std::to_string(::getpid()) + ".tmp", second = temporary + "2";
  const int file = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  bool done = file >= 0 && ::write(file, header.data(), header.size()) == static_cast<ssize_t>(header.size()) &&
              ::fsync(file) == 0;
  if (file >= 0) ::close(file);
  if (done && ::link(path.c_str(), second.c_str()) == 0)
    done = ::rename(second.c_str(), (path + ".previous").c_str()) == 0;
  ::unlink(second.c_str());
  if (!done || ::rename(temporary.c_str(), path.c_str()) != 0) {
    ::unlink(temporary.c_str());
    throw Error(Kind::usage, "cannot write the file", "`" + path + "`",
                "give a path in a writable folder with free space");
  }
}
void Adapter::restore(const std::string& path) {
  const std::string where = "`" + path + "`";
  if (!fs::is_regular_file(path)) throw Error(Kind::usage, "there is no such state", where, "`save` writes one");
  const Bytes bytes = map_file(path);
  std::map<std::string, std::string> metadata;
  const Tensors tensors = parse_tensors(bytes, where, &metadata);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data, 8);
  std::string header = bytes.text().substr(0, 8 + length);
  const std::string& checksum = metadata["checksum"];
  const size_t at = checksum.size() == kBlank.size() ? header.find(checksum) : std::string::npos;
  if (at != std::string::npos) header.replace(at, kBlank.size(), kBlank);
  const bool whole =
      at != std::string::npos &&
      sha256({{header.data(), header.size()}, {bytes.data + header.size(), bytes.size - header.size()}}) == checksum;
  if (metadata["format"] == kStateFormat && !whole)
    damaged("the state is damaged: its content does not match its checksum", where, "copy the file again");
  if (metadata["bundle"] != parts_->m.identity || metadata["format"] != kStateFormat)
    throw Error(Kind::usage, "the state belongs to another model, method, settings or version", where,
                "restore it into the bundle it was saved from");
  Tensors own;
  for (const auto& [name, t] : checked_state(tensors, parts_->m, where))
    own[name] = Tensor::copy(t.dtype, t.shape, t.data.get());
  parts_->take(own);
}
const Tensors& Adapter::state() const { return parts_->state; }
const Stats& Adapter::stats() const { return parts_->stats; }
const std::string& Adapter::manifest() const { return parts_->m.text; }

Error::Error(Kind k, const std::string& problem, const std::string& where, const std::string& hint)
    : std::runtime_error(problem + "; at " + where + "; hint: " + hint), kind(k) {}
int64_t Tensor::count() const { return product(shape); }
size_t Tensor::bytes() const { return static_cast<size_t>(count()) * dtype_named(dtype)->size; }
Tensor Tensor::copy(const std::string& dtype, const std::vector<int64_t>& shape, const void* source) {
  Tensor t{dtype, shape, nullptr};
  const auto data = std::make_shared<std::vector<std::max_align_t>>(t.bytes() / sizeof(std::max_align_t) + 1);
  if (t.bytes()) std::memcpy(data->data(), source, t.bytes());
  t.data = {data, data->data()};
  return t;
}
Tensors read_safetensors(const std::string& path, std::map<std::string, std::string>* metadata) {
  return parse_tensors(map_file(path), "`" + path + "`", metadata);
}
}  // namespace ttac
