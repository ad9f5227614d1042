// The conformance kit: `ttac-kit FOLDER`.  `python -m benchmarks.conformance_kit FOLDER` writes the folder.

#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <set>

#include "ttac.h"

using nlohmann::json;

namespace {

[[noreturn]] void fail(const std::string& problem) { throw std::logic_error(problem); }

double value(const ttac::Tensor& t, int64_t i) {
  if (t.dtype == "float32") return t.as<float>()[i];
  if (t.dtype == "float64") return t.as<double>()[i];
  if (t.dtype == "int64") return static_cast<double>(t.as<int64_t>()[i]);
  const size_t size = t.bytes() / t.count();  // all others are compared by their bits
  uint32_t bits = 0;
  std::memcpy(&bits, t.as<char>() + i * size, size);
  return bits;
}

double difference(double found, double expected) {
  if (found == expected || (std::isnan(found) && std::isnan(expected))) return 0;
  const double d = std::abs(found - expected) / (1 + std::abs(expected));
  return std::isnan(d) ? INFINITY : d;
}

double difference(const ttac::Tensor& found, const ttac::Tensor& expected) {
  if (found.dtype != expected.dtype || found.shape != expected.shape) return INFINITY;
  double worst = 0;
  for (int64_t i = 0; i < found.count(); ++i) worst = std::max(worst, difference(value(found, i), value(expected, i)));
  return worst;
}

double compare(const ttac::Tensors& found, const json& names, const ttac::Tensors& tensors) {
  if (found.size() != names.size()) return INFINITY;
  double worst = 0;
  for (const auto& [name, key] : names.items()) worst = std::max(worst, difference(found.at(name), tensors.at(key)));
  return worst;
}

double run(ttac::Adapter& adapter, const json& call, const ttac::Tensors& tensors, const std::string& folder) {
  ttac::Tensors inputs, outputs;
  const json given = call.value("inputs", json::object());
  for (const auto& [name, key] : given.items()) inputs[name] = tensors.at(key);
  const std::string kind = call["call"], saved = folder + "/cpp-state.safetensors";
  try {
    if (kind == "step") outputs = adapter.step(inputs);
    if (kind == "predict") outputs = adapter.predict(inputs);
    if (kind == "reset") adapter.reset();
    if (kind == "restore") adapter.restore(folder + "/" + call["file"].get<std::string>());
    if (kind == "save") {
      std::map<std::string, std::string> ours, theirs;
      adapter.save(saved);
      adapter.save(saved);
      ttac::read_safetensors(saved, &ours);
      ttac::read_safetensors(folder + "/" + call["file"].get<std::string>(), &theirs);
      if (ours["bundle"] != theirs["bundle"]) fail("the identity of the bundle differs");
      adapter.restore(saved + ".previous");
      adapter.restore(saved);
      std::remove(saved.c_str());
      std::remove((saved + ".previous").c_str());
    }
  } catch (const ttac::Error&) {
    if (call.contains("refused")) return 0;
    throw;
  }
  if (call.contains("refused")) fail("a call is not refused");
  double worst = compare(adapter.state(), call["state"], tensors);
  if (call.contains("outputs")) worst = std::max(worst, compare(outputs, call["outputs"], tensors));
  ttac::Stats stats = adapter.stats();
  stats.erase("milliseconds");
  if (stats.size() != call["stats"].size()) return INFINITY;
  for (const auto& [name, expected] : call["stats"].items()) {
    const double number = expected.is_string() ? std::stod(expected.get<std::string>()) : expected.get<double>();
    worst = std::max(worst, difference(stats.at(name), number));
  }
  return worst;
}

void check_refusal(const std::string& folder, const json& entry) {
  try {
    ttac::Adapter adapter(folder + "/" + entry["bundle"].get<std::string>());
  } catch (const ttac::Error& error) {
    const bool version = error.kind == ttac::Kind::runtime_missing;
    if (version != (entry["error"] == "runtime-missing")) fail("another error: " + std::string(error.what()));
    return;
  }
  fail("the bundle is not refused");
}

}  // namespace

int main(int count, char** words) {
  if (count != 2) return std::fprintf(stderr, "usage: ttac-kit FOLDER\n"), 2;
  const std::string folder = words[1];
  std::ifstream file(folder + "/kit.json");
  const json kit = json::parse(file);
  std::string where;
  double worst = 0;
  int calls = 0;
  try {
    for (const auto& entry : kit["cases"]) {
      ttac::Adapter adapter(folder + "/" + entry["bundle"].get<std::string>());
      const ttac::Tensors tensors = ttac::read_safetensors(folder + "/" + entry["tensors"].get<std::string>());
      for (size_t i = 0; i < entry["calls"].size(); ++i, ++calls) {
        where = entry["name"].get<std::string>() + ", call " + std::to_string(i);
        const double d = run(adapter, entry["calls"][i], tensors, folder);
        if (!(d <= kit["tolerance"].get<double>())) fail("it differs by " + std::to_string(d));
        worst = std::max(worst, d);
      }
    }
    for (const auto& entry : kit["refused"]) check_refusal(folder, (where = entry["name"], entry));
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "%s: %s\n", where.c_str(), error.what()), 1;
  }
  std::printf("%zu cases, %d calls, %zu bundles refused, largest difference %.1e\n", kit["cases"].size(), calls,
              kit["refused"].size(), worst);
}
