// The manifest of a bundle and its programs, parsed strictly: format 3 of docs/bundle.md.  For ttac.cpp only.
#pragma once

#include "safetensors.h"

namespace ttac {
namespace {

constexpr int kFormat = 3, kMostWords = 10000, kDeepest = 16, kRejectedInARow = 10, kMostThreads = 1024;
constexpr int64_t kLargestCount = 2147483647, kLargestElements = 1 << 28, kMostFields = 4000000;
const char* const kStateFormat = "ttac-state-2";
const std::string kBlank(64, '0');

[[noreturn]] void refuse(const std::string& where, const std::string& problem) {
  damaged("the manifest is not valid: `" + where + "` " + problem, "`manifest.json`");
}

// ---- values of the manifest ----
bool is_name(const json& v) {
  if (!v.is_string() || v.get_ref<const std::string&>().empty()) return false;
  const auto& s = v.get_ref<const std::string&>();
  return std::none_of(s.begin(), s.end(), [](unsigned char c) { return c < 32 || c == 127; });
}
std::string a_name(const json& v, const std::string& where) {
  if (!is_name(v)) refuse(where, "is not a name");
  return v;
}
int64_t a_count(const json& v, const std::string& where, int64_t low, int64_t high = kLargestCount) {
  if (!v.is_number_integer() || (v.is_number_unsigned() && v > high) || v < low || v > high)
    refuse(where, "is not a whole number from " + std::to_string(low));
  return v;
}
const json& a_list(const json& v, const std::string& where) {
  if (!v.is_array()) refuse(where, "is not a list");
  return v;
}
// `v` with all keys of `needs`; with `exact`, no keys beyond `needs` and `also`.
const json& an_object(const json& v, const std::string& where, const Names& needs = {}, bool exact = false,
                      const Names& also = {}) {
  if (!v.is_object()) refuse(where, "is not an object");
  for (const auto& key : needs)
    if (!v.contains(key)) refuse(where, "lacks `" + key + "`");
  if (exact)
    for (const auto& item : v.items())
      if (!needs.count(item.key()) && !also.count(item.key()))
        refuse(where, "has the unknown key `" + item.key() + "`");
  return v;
}
std::string a_digest(const json& v, const std::string& where) {
  if (!is_name(v) || v.get<std::string>().size() != 64 ||
      v.get<std::string>().find_first_not_of("0123456789abcdef") != std::string::npos)
    refuse(where, "is not a SHA-256 in lower-case hexadecimal");
  return v;
}
std::string a_file(const json& v, const std::string& where) {
  if (!is_name(v) || v == "." || v == ".." || v.get<std::string>().find_first_of("/\\:") != std::string::npos)
    refuse(where, "names a path, not a plain file inside the folder");
  return v;
}
std::string one_of(const json& v, const std::string& where, const Names& words) {
  if (!v.is_string() || !words.count(v)) refuse(where, "is an unknown word");
  return v;
}

// ---- manifest ----
struct Spec {
  std::string name, dtype;
  Shape shape;          // -1: the samples; -2: a size that a run decides
  int batch_axis = -1;  // axis of the samples
  std::map<size_t, std::string> open;  // axis -> name of the size, where the shape has -2
};
struct Size {
  int64_t largest, multiple, smallest;
};
struct Graph {
  std::string file, level;
  std::map<std::string, std::string> state, stats;
  std::vector<std::string> inputs, outputs;
  std::shared_ptr<void> session;
};
struct Manifest {
  std::string text, identity, state_file;
  int threads = 0;
  std::map<std::string, std::string> files;
  std::vector<Spec> inputs, outputs;
  std::map<std::string, Size> sizes;  // open sizes of the inputs
  std::map<std::string, Spec> state;
  int64_t planned = 0, smallest = 0;
  std::map<std::string, Graph> graphs;
  json programs;
};

Spec a_spec(const json& v, const std::string& where, const Names& more = {}, bool symbolic = true) {
  Names keys = {"name", "dtype", "shape"};
  keys.insert(more.begin(), more.end());
  an_object(v, where, keys, true);
  Spec spec{a_name(v["name"], where + ".name"), "", {}, -1, {}};
  if (!v["dtype"].is_string() || !dtype_named(v["dtype"])) refuse(where + ".dtype", "is not a dtype");
  spec.dtype = v["dtype"];
  for (const auto& size : a_list(v["shape"], where + ".shape")) {
    const bool open = symbolic && size.is_string() && size != "", samples = open && size == "N";
    if (samples && spec.batch_axis >= 0) refuse(where + ".shape", "has `N` twice");
    if (samples) spec.batch_axis = static_cast<int>(spec.shape.size());
    if (open && !samples) spec.open[spec.shape.size()] = size;
    spec.shape.push_back(samples ? -1 : open ? -2 : a_count(size, where + ".shape", 0));
  }
  return spec;
}
std::vector<Spec> specs(const json& v, const std::string& where, const Names& more = {}, bool symbolic = true) {
  std::vector<Spec> found;
  Names names;
  for (const auto& entry : a_list(v, where)) {
    found.push_back(a_spec(entry, where, more, symbolic));
    if (!names.insert(found.back().name).second) refuse(where, "has `" + found.back().name + "` twice");
  }
  return found;
}

std::map<std::string, Size> open_sizes(const json& v) {
  std::map<std::string, Size> found;
  for (const auto& entry : a_list(v, "sizes")) {
    an_object(entry, "sizes", {"name", "largest", "multiple"}, true, {"smallest"});
    const int64_t largest = a_count(entry["largest"], "sizes.largest", 1);
    const int64_t multiple = a_count(entry["multiple"], "sizes.multiple", 1);
    const int64_t smallest = a_count(entry.value("smallest", entry["multiple"]), "sizes.smallest", 1);
    if (largest % multiple) refuse("sizes.largest", "is no multiple of `multiple`");
    if (smallest % multiple || smallest > largest) refuse("sizes.smallest", "is no multiple of `multiple` up to `largest`");
    const std::string name = a_name(entry["name"], "sizes.name");
    if (name == "N" || !found.insert({name, {largest, multiple, smallest}}).second) refuse("sizes", "has a name twice, or `N`");
  }
  return found;
}
// The input with an open size that is too small or too large, no multiple, or different in two inputs; empty without.
std::string misfit(const Manifest& m, const Tensors& given) {
  std::map<std::string, int64_t> seen;
  for (const auto& spec : m.inputs)
    for (const auto& [axis, name] : spec.open) {
      const int64_t size = given.at(spec.name).shape[axis];
      const auto& [largest, multiple, smallest] = m.sizes.at(name);
      if (size < smallest || size > largest || size % multiple || seen.insert({name, size}).first->second != size)
        return "the size `" + name + "` of the input `" + spec.name + "` is " + std::to_string(size) +
               ", not from " + std::to_string(smallest) + " to " + std::to_string(largest) + ", a multiple of " + std::to_string(multiple) +
               ", and equal in all inputs";
    }
  return "";
}

void check_mask(const json& v, const std::vector<Spec>& inputs) {
  an_object(v, "head.mask", {"input", "counts"}, true);
  if (!v["counts"].is_boolean()) refuse("head.mask.counts", "is neither true nor false");
  if (std::none_of(inputs.begin(), inputs.end(), [&](const Spec& s) { return v["input"] == s.name && !s.batch_axis; }))
    refuse("head.mask.input", "is no input with the samples first");
}

void check_head(const json& v, const std::vector<Spec>& inputs, const std::vector<Spec>& outputs) {
  if (v.is_null()) return;
  an_object(v, "head", {"output", "kind", "axis", "values"}, true, {"first", "count", "ignored", "objectness", "mask", "boxes"});
  if (!v.value("objectness", json(false)).is_boolean()) refuse("head.objectness", "is not true or false");
  one_of(v["kind"], "head.kind", {"classes", "binary", "dense", "detection", "ctc"});
  one_of(v["values"], "head.values", {"logits", "probabilities", "log_probabilities"});
  auto output = std::find_if(outputs.begin(), outputs.end(), [&](const Spec& s) { return v["output"] == s.name; });
  if (output == outputs.end() || output->batch_axis < 0) refuse("head.output", "is not an output with `N`");
  if (v["axis"].is_null() && v["kind"] == "classes")
    refuse("head.axis", "is null, and a head of classes has an axis of them");
  const int64_t axis = v["axis"].is_null() ? -1 : a_count(v["axis"], "head.axis", 0);
  if (axis >= static_cast<int64_t>(output->shape.size()) || axis == output->batch_axis)
    refuse("head.axis", "is no axis of classes");
  int64_t end = 0;
  for (const char* key : {"first", "count", "ignored"})
    if (v.contains(key) && !v[key].is_null()) end += a_count(v[key], "head", 0) * (std::string(key) != "ignored");
  if (v.contains("objectness") && !v["objectness"].is_boolean()) refuse("head.objectness", "is neither true nor false");
  if (v.contains("mask")) check_mask(v["mask"], inputs);
  const auto holds = [&](const Spec& s) { return v["boxes"] == s.name; };
  if (v.contains("boxes") && std::none_of(outputs.begin(), outputs.end(), holds)) refuse("head.boxes", "is no output");
  const int64_t size = axis < 0 ? 1 : output->shape[axis];
  if (size >= 0 && end > size) refuse("head.count", "is above the numbers of the axis");
}

void check_preprocessing(const json& v) {
  if (v.is_null()) return;
  an_object(v, "preprocessing");
  if (v.contains("layout")) one_of(v["layout"], "preprocessing.layout", {"NCHW", "NHWC"});
  for (const std::string key : {"mean", "std", "range"}) {
    if (!v.contains(key)) continue;
    const json& list = a_list(v[key], "preprocessing." + key);
    for (const auto& n : list)
      if (!n.is_number() || !std::isfinite(n.get<double>()) || (key == "std" && n <= 0))
        refuse("preprocessing." + key, "has a number that does not fit");
    if (list.empty() || (key == "range" && (list.size() != 2 || list[0] >= list[1])))
      refuse("preprocessing." + key, "has too few numbers, or not the lower first");
  }
}

void check_informative(const json& raw) {
  a_name(raw["ttac"], "ttac");
  a_name(an_object(raw["method"], "method", {"name", "settings"})["name"], "method.name");
  an_object(raw["method"]["settings"], "method.settings");
  const json& target = an_object(raw["target"], "target", {"name", "engine", "opset", "ir_version", "threads"});
  a_name(target["name"], "target.name");
  one_of(target["engine"], "target.engine", {"onnxruntime"});
  a_name(an_object(raw["source"], "source", {"file", "sha256"})["file"], "source.file");
  a_digest(raw["source"]["sha256"], "source.sha256");
  check_preprocessing(raw["preprocessing"]);
  for (const auto& [list, needs] :
       std::map<std::string, Names>{{"sites", {"name", "kind", "statistics"}}, {"executed_on", {"package", "version"}}})
    for (const auto& entry : a_list(raw[list], list))
      for (const auto& key : needs) a_name(an_object(entry, list, needs)[key], list + "." + key);
  an_object(raw["memory"], "memory");
  an_object(raw["verified"], "verified");
}

std::string graph_file(const json& v, const std::string& where, const Manifest& m) {
  const std::string file = a_file(v, where);
  if (!m.files.count(file) || file.size() < 5 || file.substr(file.size() - 5) != ".onnx")
    refuse(where, "is not an `.onnx` file in `files`");
  return file;
}

void check_forms(const json& v, const Manifest& m) {
  Names names = {"portable"};
  for (const auto& form : a_list(v, "forms")) {
    an_object(form, "forms", {"name", "block", "probe", "graphs", "weights"}, true, {"kernels"});
    a_count(form.value("kernels", json(0)), "forms.kernels", 0);
    if (!names.insert(a_name(form["name"], "forms.name")).second) refuse("forms", "has a name twice");
    a_count(form["block"], "forms.block", 1);
    graph_file(form["probe"], "forms.probe", m);
    for (const auto& [name, file] : an_object(form["graphs"], "forms.graphs").items()) {
      if (!m.graphs.count(name)) refuse("forms.graphs", "has `" + name + "`, which `graphs` lacks");
      graph_file(file, "forms.graphs", m);
    }
    for (const auto& weight : an_object(form["weights"], "forms.weights")) {
      a_name(an_object(weight, "forms.weights", {"of", "order"}, true, {"taps", "groups"})["of"], "forms.weights.of");
      one_of(weight["order"], "forms.weights.order", {"OIHWBiBo", "OIHWBo"});
      const json taps = weight.value("taps", json::array());
      if (a_list(taps, "forms.weights.taps").size() % 2 || taps.size() > 2)
        refuse("forms.weights.taps", "has not 2 axes");
      for (const auto& line : taps)
        for (const auto& tap : a_list(line, "forms.weights.taps")) a_count(tap, "forms.weights.taps", 0);
      a_count(weight.value("groups", json(0)), "forms.weights.groups", 0);
    }
  }
}

Graph a_graph(const std::string& name, const json& v, const Manifest& m) {
  const std::string where = "graphs." + a_name(json(name), "graphs");
  an_object(v, where, {"file", "state", "stats"}, true, {"optimization"});
  Graph graph;
  graph.file = graph_file(v["file"], where + ".file", m);
  Names moved;
  for (const auto& [output, into] : an_object(v["state"], where + ".state").items()) {
    graph.state[output] = a_name(into, where + ".state");
    if (!m.state.count(into) || !moved.insert(into).second)
      refuse(where + ".state", "names `" + into.get<std::string>() + "`, which the state table lacks, or twice");
  }
  for (const auto& [output, reported] : an_object(v["stats"], where + ".stats").items()) {
    graph.stats[output] = a_name(reported, where + ".stats");
    if (Names{"steps", "samples", "rejected", "resets", "not_finite", "milliseconds", "form", "form_reason"}.count(
            reported))
      refuse(where + ".stats", "takes a name that the reader counts itself");
  }
  if (v.contains("optimization") && v["optimization"] != "")
    graph.level = one_of(v["optimization"], where + ".optimization", {"basic", "extended", "all"});
  return graph;
}

Manifest parse_manifest(const Bytes& bytes, json& raw) {
  raw = parse_json(bytes, "`manifest.json`");
  if (!raw.is_object() || !raw.contains("format") || !raw["format"].is_number_integer() || raw["format"] < 1)
    refuse("format", "is not 3");
  if (raw["format"] != kFormat)
    throw Error(Kind::runtime_missing, "the bundle has format " + raw["format"].dump() + ", this reader reads format 3",
                "`manifest.json`", raw["format"] > kFormat ? "use a newer reader" : "recompile the model");
  an_object(raw, "the top level",
            {"format", "ttac", "method", "target", "source", "files", "inputs", "outputs", "head", "batch",
             "preprocessing", "state", "sites", "graphs", "programs", "memory", "verified", "executed_on"},
            true, {"forms", "sizes"});
  check_informative(raw);
  Manifest m;
  m.text = bytes.text();
  m.threads = static_cast<int>(a_count(raw["target"]["threads"], "target.threads", 0, kMostThreads));
  for (const auto& [name, digest] : an_object(raw["files"], "files").items())
    m.files[a_file(json(name), "files")] = a_digest(digest, "files");
  if (m.files.count("manifest.json")) refuse("files", "lists `manifest.json` itself");
  m.inputs = specs(raw["inputs"], "inputs");
  m.outputs = specs(raw["outputs"], "outputs");
  m.sizes = open_sizes(raw.value("sizes", json::array()));
  for (const auto& spec : m.inputs)
    for (const auto& item : spec.open)
      if (!m.sizes.count(item.second)) refuse("inputs", "has the size `" + item.second + "`, which `sizes` lacks");
  if (std::all_of(m.inputs.begin(), m.inputs.end(), [](const Spec& s) { return s.batch_axis < 0; }))
    refuse("inputs", "has no shape with `N`");
  check_head(raw["head"], m.inputs, m.outputs);
  if (m.inputs.empty() || m.outputs.empty()) refuse("inputs", "or `outputs` is empty");
  const json& batch = an_object(raw["batch"], "batch", {"planned", "smallest"}, true);
  m.planned = a_count(batch["planned"], "batch.planned", 1);
  m.smallest = a_count(batch["smallest"], "batch.smallest", 1, m.planned);
  an_object(raw["state"], "state", {"file", "tensors"}, true);
  for (const auto& spec : specs(raw["state"]["tensors"], "state.tensors", {"role"}, false)) m.state[spec.name] = spec;
  for (const auto& entry : raw["state"]["tensors"])
    one_of(entry["role"], "state.tensors.role", {"parameter", "optimizer", "statistic", "counter", "sparsity"});
  m.state_file = a_file(raw["state"]["file"], "state.file");
  if (!m.files.count(m.state_file)) refuse("state.file", "is not in `files`");
  for (const auto& [name, entry] : an_object(raw["graphs"], "graphs").items()) m.graphs[name] = a_graph(name, entry, m);
  an_object(raw["programs"], "programs", {"step", "predict"}, true);
  check_forms(raw.value("forms", json::array()), m);
  std::vector<std::string> table;
  for (const auto& entry : raw["state"]["tensors"]) table.push_back(python_json(entry));
  std::sort(table.begin(), table.end());
  const json facts = {raw["source"]["sha256"], raw["method"]["name"], raw["method"]["settings"], table,
                      m.files[m.state_file]};
  const std::string identity = python_json(facts, ",", ":");
  m.identity = sha256({{identity.data(), identity.size()}});
  return m;
}

Tensors checked_state(Tensors tensors, const Manifest& m, const std::string& where) {
  for (const auto& item : tensors)
    if (!m.state.count(item.first)) damaged("the state has `" + item.first + "`, beyond the state table", where);
  for (const auto& [name, spec] : m.state) {
    if (!tensors.count(name)) damaged("the state lacks `" + name + "`", where);
    const Tensor& t = tensors[name];
    if (t.dtype != spec.dtype || t.shape != spec.shape)
      damaged("`" + name + "` is " + t.dtype + " " + text(t.shape) + ", unlike the state table", where);
    if (!all_finite(t)) damaged("`" + name + "` is not finite", where);
    const bool variance = (name.size() > 3 && name.substr(name.size() - 4) == ".var") || name == "adam.v" ||
                          name.rfind("adam.v/", 0) == 0;
    for (int64_t i = 0; variance && i < t.count(); ++i)
      if (value_at(t, i) < 0) damaged("the variance `" + name + "` is negative", where);
  }
  return tensors;
}

// Put the reports that the state has before the graphs run among `stats`; a negative value is unknown.
void count(const Manifest& m, const Tensors& state, Stats& stats) {
  for (const auto& item : m.graphs)
    for (const auto& [output, name] : item.second.stats) {
      const auto own = item.second.state.find(output);
      if (own == item.second.state.end() || !state.at(own->second).count()) continue;
      const double value = value_at(state.at(own->second), 0);
      if (value >= 0) stats[name] = value;
    }
}

// ---- programs ----
struct Word {
  enum { run, when, repeat, reset, give } kind = run;
  std::string name;                         // of the graph, or of the condition
  int64_t number = 0;                       // rows, or repetitions
  bool limited = false, deferred = false;   // has `only`; has `deferred`
  std::map<std::string, std::string> feed;  // graph input -> value
  std::vector<std::string> names;           // `only`, `reset` or `return`
  std::vector<Word> first, second;          // `then` or `do`; `otherwise`
  std::vector<std::string> fetch;           // outputs to compute
  Names keep;                               // values that later words read
};
using Words = std::vector<Word>;

bool always_returns(const Words& words) {
  if (words.empty()) return false;
  const Word& last = words.back();
  return last.kind == Word::when ? always_returns(last.first) && always_returns(last.second) : last.kind == Word::give;
}
int64_t count_words(const Words& words) {
  int64_t sum = 0;
  for (const auto& word : words) {
    const int64_t one = count_words(word.first), two = count_words(word.second);
    sum = std::min<int64_t>(sum + 1 + (word.kind == Word::repeat ? word.number * one : std::max(one, two)),
                            kLargestCount);
  }
  return sum;
}
std::vector<std::string> name_list(const json& v, const std::string& where) {
  std::vector<std::string> found;
  for (const auto& name : a_list(v, where)) found.push_back(a_name(name, where));
  return found;
}
Words parse_words(const json& list, const std::string& where, const Manifest& m, int depth, bool repeated = false);

Word parse_word(const json& v, const std::string& at, const Manifest& m, int depth, bool repeated) {
  std::vector<std::string> kinds;
  for (const char* kind : {"run", "when", "repeat", "reset", "return"})
    if (an_object(v, at).contains(kind)) kinds.emplace_back(kind);
  if (kinds.size() != 1)
    throw Error(Kind::runtime_missing, "this reader does not know the program word " + v.dump().substr(0, 80),
                "`manifest.json`, `" + at + "`", "use a newer reader, or recompile the bundle");
  Word word;
  const json empty = json::array();
  if (kinds[0] == "run") {
    an_object(v, at, {"run"}, true, {"rows", "feed", "only", "deferred"});
    word.name = a_name(v["run"], at);
    if (!m.graphs.count(word.name)) refuse(at, "runs a graph that `graphs` lacks");
    if (v.contains("rows")) word.number = a_count(v["rows"], at + ".rows", 1);
    if ((word.limited = v.contains("only"))) word.names = name_list(v["only"], at + ".only");
    if (v.contains("feed"))
      for (const auto& [input, value] : an_object(v["feed"], at + ".feed").items())
        word.feed[a_name(json(input), at)] = a_name(value, at);
    word.deferred = v.contains("deferred");
    if (word.deferred && (v["deferred"] != true || word.limited || repeated))
      refuse(at + ".deferred", "is not `true`, has `only`, or is inside `repeat`");
  } else if (kinds[0] == "when") {
    an_object(v, at, {"when", "then"}, true, {"otherwise"});
    word.kind = Word::when;
    word.name = a_name(v["when"], at);
    word.first = parse_words(v["then"], at + ".then", m, depth - 1, repeated);
    word.second = parse_words(v.value("otherwise", empty), at + ".otherwise", m, depth - 1, repeated);
  } else if (kinds[0] == "repeat") {
    an_object(v, at, {"repeat", "do"}, true);
    word.kind = Word::repeat;
    word.number = a_count(v["repeat"], at, 1);
    word.first = parse_words(v["do"], at + ".do", m, depth - 1, true);
  } else if (kinds[0] == "reset") {
    an_object(v, at, {"reset"}, true);
    word.kind = Word::reset;
    if (v["reset"] != "all") word.names = name_list(v["reset"], at);
    for (const auto& name : word.names)
      if (!m.state.count(name)) refuse(at, "resets `" + name + "`, which the state table lacks");
    if (v["reset"] == "all")
      for (const auto& item : m.state) word.names.push_back(item.first);
  } else {
    an_object(v, at, {"return"}, true);
    word.kind = Word::give;
    word.names = name_list(v["return"], at);
    if (word.names.size() != m.outputs.size() || repeated)
      refuse(at, "returns another number of values than `outputs` has, or inside `repeat`");
  }
  return word;
}
Words parse_words(const json& list, const std::string& where, const Manifest& m, int depth, bool repeated) {
  if (depth == 0) refuse(where, "is more than 16 levels deep");
  Words words;
  for (const auto& entry : a_list(list, where)) {
    if (always_returns(words)) refuse(where, "goes on after a `return`");
    words.push_back(parse_word(entry, where + "[" + std::to_string(words.size()) + "]", m, depth, repeated));
  }
  return words;
}

// The names that a word itself reads or writes, without the words inside.
Names reads(const Word& word, const Manifest& m) {
  Names found;
  if (word.kind == Word::when) found.insert(word.name);
  if (word.kind == Word::give) found.insert(word.names.begin(), word.names.end());
  if (word.kind == Word::run)
    for (const auto& input : m.graphs.at(word.name).inputs)
      found.insert(word.feed.count(input) ? word.feed.at(input) : input);
  return found;
}
Names writes(const Word& word, const Manifest& m) {
  if (word.kind != Word::run) return word.kind == Word::reset ? Names(word.names.begin(), word.names.end()) : Names();
  const Graph& graph = m.graphs.at(word.name);
  Names found(graph.outputs.begin(), graph.outputs.end());
  for (const auto& move : graph.state) found.insert(move.second);
  return found;
}
// Check every name; `known` gets the names that all paths provide, `closed` those that deferred runs update.
void check_names(const Words& words, const Manifest& m, Names& known, Names& closed, const std::string& where) {
  for (const auto& word : words) {
    const Names read = reads(word, m), written = writes(word, m);
    for (const auto& name : read)
      if (!known.count(name)) refuse(where, "reads `" + name + "`, and nothing provides it");
    for (const auto& names : {read, written})
      for (const auto& name : names)
        if (closed.count(name)) refuse(where, "touches `" + name + "`, and a deferred run updates it");
    if (word.kind == Word::run) {
      const Graph& graph = m.graphs.at(word.name);
      const Names inputs(graph.inputs.begin(), graph.inputs.end()), outputs(graph.outputs.begin(), graph.outputs.end());
      for (const auto& name : word.names)
        if (!outputs.count(name)) refuse(where, "wants `" + name + "`, which is no output");
      for (const auto& item : word.feed)
        if (!inputs.count(item.first)) refuse(where, "feeds `" + item.first + "`, which is no input");
      for (const auto& name : outputs)
        if (word.deferred && !graph.state.count(name)) refuse(where, "defers `" + name + "`, which is no state");
      if (word.limited) known.insert(word.names.begin(), word.names.end());
      else known.insert(outputs.begin(), outputs.end());
      if (word.deferred) closed.insert(written.begin(), written.end());
    } else if (word.kind == Word::repeat) {
      check_names(word.first, m, known, closed, where);
    } else if (word.kind == Word::when) {
      Names one = known, two = known, other = closed;
      check_names(word.first, m, one, closed, where);
      check_names(word.second, m, two, other, where);
      closed.insert(other.begin(), other.end());
      known.clear();
      std::set_intersection(one.begin(), one.end(), two.begin(), two.end(), std::inserter(known, known.end()));
    }
  }
}
void all_reads(const Words& words, const Manifest& m, Names& found) {
  for (const auto& word : words) {
    found.merge(reads(word, m));
    all_reads(word.first, m, found);
    all_reads(word.second, m, found);
  }
}
// Fill in `fetch` and `keep` of every run, last word first; `after` are the names that later words read.
void bind_words(Words& words, const Manifest& m, Names& after) {
  for (auto word = words.rbegin(); word != words.rend(); ++word) {
    if (word->kind == Word::run) {
      const Graph& graph = m.graphs.at(word->name);
      for (const auto& name : word->limited ? word->names : graph.outputs)
        if (after.count(name) || graph.state.count(name) || graph.stats.count(name)) word->fetch.push_back(name);
      word->keep = after;
      for (const auto& name : word->fetch) after.erase(name);
    } else if (word->kind == Word::when) {
      Names other = after;
      bind_words(word->first, m, after);
      bind_words(word->second, m, other);
      after.merge(other);
    } else if (word->kind == Word::repeat) {
      all_reads(word->first, m, after);
      Names inside = after;
      bind_words(word->first, m, inside);
    }
    after.merge(reads(*word, m));
  }
}

}  // namespace
}  // namespace ttac
