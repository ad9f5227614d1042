// The files of a bundle: of a folder, or of one file, a zip without compression.  For ttac.cpp only.
#pragma once

#include <cstdio>
#include <filesystem>

#include "safetensors.h"

namespace ttac {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMostMembers = 1000, kLargestArchive = 0xffffffff, kLargestManifest = 64u << 20;
constexpr size_t kLocalHeader = 30, kEntryHeader = 46, kEndRecord = 22;
const char* const kManifest = "manifest.json";
const char* const kWeights = "weights.safetensors";

// ---- zip: APPNOTE 6.3, as docs/bundle.md restricts it ----
uint32_t little(const Bytes& file, size_t at, int width) {
  uint32_t value = 0;
  for (int i = 0; i < width; ++i) value |= uint32_t{file.data[at + i]} << 8 * i;
  return value;
}
uint32_t crc32(const Bytes& bytes) {
  uint32_t crc = ~0u;
  for (size_t i = 0; i < bytes.size; ++i) {
    crc ^= bytes.data[i];
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
  }
  return ~crc;
}
bool is_plain(const std::string& name) {
  try {
    json(name).dump();  // refuses other bytes than UTF-8
  } catch (const json::exception&) {
    return false;
  }
  return !name.empty() && name != "." && name != ".." && name.find_first_of("/\\:") == std::string::npos &&
         std::none_of(name.begin(), name.end(), [](unsigned char c) { return c < 32 || c == 127; });
}

struct Entry {
  std::string name;
  size_t at, header, size;  // places of the entry and of the local header
};
// The entries of the directory, in the order of their local headers.
std::vector<Entry> directory(const Bytes& file, const std::function<void(bool, const std::string&)>& need) {
  need(file.size >= kEndRecord && file.size <= kLargestArchive, "it has " + std::to_string(file.size) + " bytes");
  const size_t end = file.size - kEndRecord, count = little(file, end + 8, 2);
  need(little(file, end, 4) == 0x06054b50 && !little(file, end + 4, 4) && count == little(file, end + 10, 2) && count &&
           count <= kMostMembers && !little(file, end + 20, 2),
       "it does not end with the record of a zip in one part without a comment");
  size_t at = little(file, end + 16, 4);
  need(at + little(file, end + 12, 4) == end, "its directory does not end where the last record begins");
  std::vector<Entry> entries;
  for (size_t i = 0; i < count; ++i) {
    need(end - at >= kEntryHeader && little(file, at, 4) == 0x02014b50 && !little(file, at + 34, 2),
         "its directory is damaged");
    const size_t name = little(file, at + 28, 2), next = at + kEntryHeader + name + little(file, at + 30, 2) +
                                                         little(file, at + 32, 2);
    need(next <= end, "its directory is damaged");
    Entry entry{std::string(file.data + at + kEntryHeader, file.data + at + kEntryHeader + name), at,
                little(file, at + 42, 4), little(file, at + 24, 4)};
    need(is_plain(entry.name), "a name is no plain file name");
    need(!(little(file, at + 8, 2) & ~0x800u), "`" + entry.name + "` is encrypted, or has another flag");
    need(!little(file, at + 10, 2) && little(file, at + 20, 4) == entry.size, "`" + entry.name + "` is compressed");
    const uint32_t kind = little(file, at + 40, 2) & 0170000;
    need(!kind || kind == 0100000, "`" + entry.name + "` is a link or another special file");
    entries.push_back(std::move(entry));
    at = next;
  }
  need(at == end, "its directory has more bytes than entries");
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.header < b.header; });
  return entries;
}
// Name -> bytes of the members of a zip that has only one reading.
std::map<std::string, Bytes> read_archive(const Bytes& file, const std::string& where) {
  auto need = [&](bool holds, const std::string& problem) {
    if (!holds) damaged("the bundle's file is not a plain zip: " + problem, where);
  };
  const std::vector<Entry> entries = directory(file, need);
  const size_t start = little(file, file.size - kEndRecord + 16, 4);
  std::map<std::string, Bytes> members;
  size_t end = 0;
  for (const auto& entry : entries) {
    const size_t at = entry.header, name = entry.name.size();
    need(at == end && start - at >= kLocalHeader + name, "its members overlap, or bytes between them belong to none");
    const uint8_t *local = file.data + at, *listed = file.data + entry.at;
    need(little(file, at, 4) == 0x04034b50 && !std::memcmp(local + 6, listed + 8, 4) &&
             !std::memcmp(local + 14, listed + 16, 14) && !std::memcmp(local + kLocalHeader, entry.name.data(), name),
         "the header of `" + entry.name + "` differs from the directory");
    const size_t data = at + kLocalHeader + name + little(file, at + 28, 2);
    need(data <= start && start - data >= entry.size, "`" + entry.name + "` is cut");
    need(members.insert({entry.name, {file.owner, file.data + data, entry.size}}).second,
         "`" + entry.name + "` is there twice");
    end = data + entry.size;
    if (entry.name == kManifest)
      need(little(file, at + 14, 4) == crc32(members[kManifest]), "`manifest.json` does not have its checksum");
  }
  need(end == start && members.count(kManifest), "its members end before the directory, or it has no `manifest.json`");
  return members;
}

// ---- the graphs of a zip, whose external data moves to a place in the bundle's file ----
uint64_t varint(const std::string& message, size_t& at) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    const uint8_t byte = message.at(at++);
    value |= uint64_t{byte & 0x7fu} << shift;
    if (byte < 0x80) break;
  }
  return value;
}
std::string digits(uint64_t value) {
  std::string text;
  for (; value >= 0x80; value >>= 7) text += static_cast<char>((value & 0x7f) | 0x80);
  return text + static_cast<char>(value);
}
std::string field(uint64_t number, const std::string& content) {
  return digits(number << 3 | 2) + digits(content.size()) + content;
}
using Change = std::function<std::string(const std::string&)>;
// The message with the content of some fields changed, by field number.
std::string edited(const std::string& message, const std::map<uint64_t, Change>& changes) {
  std::string result;
  for (size_t at = 0; at < message.size();) {
    const size_t start = at;
    const uint64_t tag = varint(message, at), length = (tag & 7) == 2 ? varint(message, at) : 0;
    const auto change = (tag & 7) == 2 ? changes.find(tag >> 3) : changes.end();
    if ((tag & 7) == 0) varint(message, at);
    const size_t content = at;
    at += (tag & 7) == 1 ? 8 : (tag & 7) == 5 ? 4 : length;
    if (change == changes.end()) result.append(message, start, at - start);
    else result += field(tag >> 3, change->second(message.substr(content, length)));
  }
  return result;
}
std::string moved_tensor(const std::string& tensor, size_t offset, const std::string& location) {
  bool external = false, placed = false;
  std::string result = edited(tensor, {{13, [&](const std::string& entry) {
                                          std::string key;
                                          edited(entry, {{1, [&](const std::string& text) { return key = text; }}});
                                          external = true;
                                          placed = placed || key == "offset";
                                          return edited(entry, {{2, [&](const std::string& value) {
                                                                   if (key == "location") return location;
                                                                   if (key != "offset") return value;
                                                                   return std::to_string(std::stoull(value) + offset);
                                                                 }}});
                                        }}});
  if (external && !placed) result += field(13, field(1, "offset") + field(2, std::to_string(offset)));
  return result;
}
// A checked graph, with its external data at `offset` of the file `location`.
std::string moved_graph(const Bytes& graph, size_t offset, const std::string& location) {
  const Change tensor = [&](const std::string& body) { return moved_tensor(body, offset, location); };
  const Change attribute = [&](const std::string& body) { return edited(body, {{5, tensor}}); };
  const Change node = [&](const std::string& body) { return edited(body, {{5, attribute}}); };
  return edited(graph.text(), {{7, [&](const std::string& body) { return edited(body, {{1, node}, {5, tensor}}); }}});
}

// ---- a bundle on disk ----
struct Files {
  std::string path;
  Bytes file;  // of a bundle in one file
  std::map<std::string, Bytes> members;

  explicit Files(const std::string& place) : path(place) {
    if (!fs::is_regular_file(place)) return;
    path = fs::canonical(place).string();
    file = map_file(path);
    members = read_archive(file, "`" + place + "`");
  }
  bool packed() const { return !members.empty(); }
  Bytes read(const std::string& name) const {
    const std::string where = "`" + (fs::path(path) / name).string() + "`";
    if (packed() && !members.count(name)) damaged("a file of the bundle is missing", where);
    if (packed()) return members.at(name);
    std::error_code failed;
    const fs::path target = fs::canonical(fs::path(path) / name, failed);
    if (failed) damaged("a file of the bundle is missing", where);
    if (target.parent_path() != fs::canonical(path))
      damaged("`" + name + "` leads out of the bundle's folder", "`" + path + "`");
    return map_file(target.string());
  }
  Bytes manifest() const {
    const fs::path place = fs::path(path) / kManifest;
    if (!packed() && !fs::exists(place))
      throw Error(Kind::usage, "the folder is not a bundle: it has no `manifest.json`", "`" + path + "`",
                  "compile one");
    if (!packed() && fs::is_symlink(place)) damaged("the manifest is a link", "`" + place.string() + "`");
    const Bytes bytes = read(kManifest);
    if (bytes.size > kLargestManifest) damaged("the manifest is larger than 64 MiB", "`" + place.string() + "`");
    return bytes;
  }
  // First byte of a member in the file.
  size_t start(const std::string& name) const { return static_cast<size_t>(members.at(name).data - file.data); }
};

}  // namespace
}  // namespace ttac
