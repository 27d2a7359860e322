#include "imafs/log_export.h"

#include <array>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

#include "imafs/entry_view.h"

namespace imafs {
namespace {

using Json = nlohmann::ordered_json;

// UTC, to the nanosecond; RFC 3339.
std::string time_text(std::int64_t time_ns) {
  const std::time_t seconds = time_ns / 1'000'000'000;
  struct tm parts {};
  ::gmtime_r(&seconds, &parts);
  std::array<char, 40> text{};
  const std::size_t size = std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(text.data() + size, text.size() - size, ".%09dZ", static_cast<int>(time_ns % 1'000'000'000));
  return text.data();
}

std::string digest_text(const EntryView& view) {
  return view.digest.empty() ? "" : view.algorithm + ":" + to_hex(view.digest);
}

Json to_json(const JournalEntryRead& entry, std::uint64_t index) {
  const EntryView view = view_of(entry.entry);
  Json json{{"index", index}};
  if (entry.origin.time_ns != 0) {
    json["time"] = time_text(entry.origin.time_ns);
    json["pid"] = entry.origin.pid;
    json["uid"] = entry.origin.uid;
    json["comm"] = entry.origin.comm;
    json["size"] = entry.origin.size;
  }
  json["pcr"] = entry.entry.pcr;
  json["template"] = entry.entry.template_name;
  json["violation"] = entry.entry.is_violation;
  json["name"] = view.name;
  json["digest"] = digest_text(view);
  if (!view.signature.empty()) json["signature"] = to_hex(view.signature);
  if (!view.data.empty()) json["data"] = to_hex(view.data);
  Json digests = Json::object();
  for (const auto& [algorithm, value] : entry.digests) digests[std::string(name_of(algorithm))] = to_hex(value);
  json["template_digests"] = std::move(digests);
  return json;
}

// A record of the TCG's Canonical Event Log (v1.0), JSON encoding, content type ima_template.
Json to_cel(const JournalEntryRead& entry, std::uint64_t index) {
  Json digests = Json::array();
  for (const auto& [algorithm, value] : entry.digests) {
    digests.push_back({{"hashAlg", name_of(algorithm)}, {"digest", to_hex(value)}});
  }
  return {{"recnum", index},
          {"pcr", entry.entry.pcr},
          {"digests", std::move(digests)},
          {"content_type", "ima_template"},
          {"content",
           {{"template_name", entry.entry.template_name}, {"template_data", to_hex(template_data(entry.entry))}}}};
}

// RFC 4180, of printable characters only; a spreadsheet would take what begins like a formula for one.
std::string csv_field(std::string_view raw) {
  std::string text = printable(raw);
  if (!text.empty() && std::string_view("=+-@").find(text[0]) != std::string_view::npos) text.insert(0, "'");
  if (text.find_first_of("\",\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + '"';
}

// What a log's own bytes do not say (who opened, and when) is left empty.
std::string origin_fields(const EntryOrigin& origin) {
  if (origin.time_ns == 0) return ",,,,";
  return time_text(origin.time_ns) + ',' + std::to_string(origin.pid) + ',' + std::to_string(origin.uid) + ',' + csv_field(origin.comm) + ',' +
         std::to_string(origin.size);
}

std::string dumped(const Json& json) { return json.dump(-1, ' ', true, Json::error_handler_t::replace); }

}  // namespace

std::string to_csv(const JournalEntryRead& entry, std::uint64_t index) {
  const EntryView view = view_of(entry.entry);
  return std::to_string(index) + ',' + origin_fields(entry.origin) + ',' + std::to_string(entry.entry.pcr) + ',' +
         csv_field(entry.entry.template_name) + ',' + (entry.entry.is_violation ? "1" : "0") + ',' + csv_field(digest_text(view)) + ',' +
         csv_field(view.name) + '\n';
}

std::string to_line(const JournalEntryRead& entry, std::uint64_t index) {
  const EntryView view = view_of(entry.entry);
  std::array<char, 160> head{};
  if (entry.origin.time_ns == 0) {
    std::snprintf(head.data(), head.size(), "%6llu ", static_cast<unsigned long long>(index));
  } else {
    std::snprintf(head.data(), head.size(), "%6llu %s %7u %5u %-15s ", static_cast<unsigned long long>(index),
                  time_text(entry.origin.time_ns).c_str(), entry.origin.pid, entry.origin.uid, printable(entry.origin.comm).c_str());
  }
  return head.data() + (entry.entry.is_violation ? std::string("VIOLATION") : printable(digest_text(view))) + ' ' + printable(view.name) + '\n';
}

std::string to_json_text(const JournalEntryRead& entry, std::uint64_t index) { return dumped(to_json(entry, index)); }
std::string to_cel_text(const JournalEntryRead& entry, std::uint64_t index) { return dumped(to_cel(entry, index)); }

}  // namespace imafs
