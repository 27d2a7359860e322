#include "imafs/manifest.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <re2/re2.h>

#include "imafs/bounded_json.h"
#include "imafs/log_entry.h"

namespace imafs {
namespace {

using Json = nlohmann::json;
// Keeps the order in which members were added. Each that is added by name is compared with all before it: not for a tree's files.
using OrderedJson = nlohmann::ordered_json;

// Keylime's LegacyAllowList, which its own tool writes. 0 and 1 say "no policy": such an agent is never asked for its list.
constexpr int kGenerator = 3;

tl::unexpected<Error> bad(const std::string& origin, std::size_t line, const std::string& what) {
  return fail(EINVAL, origin + ":" + std::to_string(line) + ": " + what);
}

// sha256sum(1) escapes backslash, newline and carriage return, and says so by a backslash before the digest.
std::string unescaped(std::string_view text) {
  std::string path;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 1 == text.size()) {
      path += text[i];
      continue;
    }
    const char c = text[++i];
    path += c == 'n' ? '\n' : c == 'r' ? '\r' : c;
  }
  return path;
}

std::string absolute(std::string path) {
  if (path.starts_with("./")) path.erase(0, 2);
  return path.starts_with('/') ? path : "/" + path;
}

struct TaggedLine {
  std::string_view path;
  std::optional<Bytes> digest;
};

// "SHA256 (PATH) = DIGEST", as sha256sum --tag and the BSDs write it.
std::optional<TaggedLine> parse_tagged(std::string_view line) {
  const std::size_t open = line.find(" ("), close = line.rfind(") = ");
  if (open == std::string_view::npos || close == std::string_view::npos || close < open + 3) return std::nullopt;
  const std::string_view tag = line.substr(0, open);
  const auto is_of_tag = [](char c) { return (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '/'; };
  if (tag.empty() || tag[0] < 'A' || tag[0] > 'Z' || !std::all_of(tag.begin(), tag.end(), is_of_tag)) return std::nullopt;
  return TaggedLine{line.substr(open + 2, close - open - 2), from_hex(line.substr(close + 4))};
}

Result<Manifest> parse_sums(std::string_view text, const std::string& origin) {
  Manifest manifest;
  std::size_t number = 0;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    ++number;
    // A line end from elsewhere: sha256sum(1) escapes the carriage return of a name.
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.starts_with('#')) continue;
    const bool escaped = line.starts_with('\\');
    if (escaped) line.remove_prefix(1);
    const auto tagged = parse_tagged(line);
    const std::size_t blank = line.find(' ');
    const auto digest = tagged ? tagged->digest : from_hex(line.substr(0, blank));
    if (!digest || digest->empty()) return bad(origin, number, "no digest in hexadecimal at the beginning, and no 'ALGORITHM (PATH) = DIGEST'");
    if (!tagged && (blank == std::string_view::npos || line.size() < blank + 3 || (line[blank + 1] != ' ' && line[blank + 1] != '*'))) {
      return bad(origin, number, "a digest, two blanks (or a blank and '*') and a path are wanted");
    }
    const std::string_view path = tagged ? tagged->path : line.substr(blank + 2);
    manifest.digests[logged_name_of(absolute(escaped ? unescaped(path) : std::string(path)))].push_back(*digest);
  }
  return manifest;
}

Result<Manifest> parse_keylime(const Json& json, const std::string& origin) {
  Manifest manifest;
  const Json& digests = member(json, "digests");
  if (!digests.is_object()) return fail(EINVAL, origin + ": a runtime policy has an object 'digests'");
  for (const auto& [path, list] : digests.items()) {
    if (!list.is_array()) return fail(EINVAL, origin + ": the digests of '" + path + "' are no list");
    for (const auto& text : list) {
      const auto digest = text.is_string() ? from_hex(text.template get_ref<const std::string&>()) : std::nullopt;
      if (!digest || digest->empty()) return fail(EINVAL, origin + ": '" + path + "' has a digest that is not hexadecimal");
      // Keylime compares names as they are logged.
      manifest.digests[path].push_back(*digest);
    }
  }
  const Json& excludes = member(json, "excludes");
  if (excludes.is_null()) return manifest;
  if (!excludes.is_array()) return fail(EINVAL, origin + ": an exclude is no string, or they are no list");
  for (const auto& text : excludes) {
    if (!text.is_string()) return fail(EINVAL, origin + ": an exclude is no string");
    auto exclude = Exclude::of(text.template get_ref<const std::string&>());
    if (!exclude) return fail(EINVAL, origin + ": " + exclude.error().what);
    manifest.excludes.push_back(std::move(*exclude));
  }
  return manifest;
}

}  // namespace

Result<Exclude> Exclude::of(const std::string& text) {
  re2::RE2::Options options;
  options.set_log_errors(false);
  auto compiled = std::make_shared<const re2::RE2>(text, options);
  if (!compiled->ok()) return fail(EINVAL, "the exclude '" + text + "' is no regular expression: " + compiled->error());
  Exclude exclude;
  exclude.compiled_ = std::move(compiled);
  return exclude;
}

bool Exclude::matches(std::string_view name) const {
  return compiled_->Match(re2::StringPiece(name.data(), name.size()), 0, name.size(), re2::RE2::ANCHOR_START, nullptr, 0);
}

Manifest::Answer Manifest::ask(const std::string& logged_name, const Bytes& digest) const {
  if (std::any_of(excludes.begin(), excludes.end(), [&](const Exclude& exclude) { return exclude.matches(logged_name); })) return Answer::kExcluded;
  const auto found = digests.find(logged_name);
  if (found == digests.end()) return Answer::kUnknownFile;
  return std::find(found->second.begin(), found->second.end(), digest) != found->second.end() ? Answer::kAllowed : Answer::kOtherDigest;
}

std::string logged_name_of(std::string_view path) {
  std::string name = loggable_name(path);
  std::replace(name.begin(), name.end(), ' ', '_');
  return name;
}

Result<Manifest> parse_manifest(std::string_view text, const std::string& origin) {
  if (text.find_first_not_of(" \t\r\n") != std::string_view::npos && text[text.find_first_not_of(" \t\r\n")] == '{') {
    if (!is_shallow_json(text)) return bad(origin, 1, "JSON that is nested too deep");
    try {
      return parse_keylime(Json::parse(text), origin);
    } catch (const Json::parse_error& error) {
      const std::size_t before = std::min<std::size_t>(error.byte, text.size());
      return bad(origin, 1 + static_cast<std::size_t>(std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(before), '\n')), "no JSON from here on");
    } catch (const Json::exception&) {
      return bad(origin, 1, "JSON with a number that cannot be read");
    }
  }
  return parse_sums(text, origin);
}

std::string sum_line(const ManifestFile& file) {
  std::string path;
  for (const char c : file.path) {
    if (c == '\\') path += "\\\\";
    else if (c == '\n') path += "\\n";
    else if (c == '\r') path += "\\r";
    else path += c;
  }
  return (path == file.path ? "" : "\\") + file.hex + "  " + path + "\n";
}

OwnEntries own_entries_of(std::string_view ascii_log) {
  constexpr std::array<std::string_view, 3> names{"start", "policy", "kernel_version"};
  OwnEntries own;
  for (std::size_t number = 0; !ascii_log.empty(); ++number) {
    const std::size_t end = std::min(ascii_log.find('\n'), ascii_log.size());
    std::string_view line = ascii_log.substr(0, end);
    ascii_log.remove_prefix(std::min(end + 1, ascii_log.size()));
    std::array<std::string_view, 5> words;  // PCR, template hash, template, digest, name
    for (std::string_view& word : words) {
      const std::size_t blank = std::min(line.find(' '), line.size());
      word = line.substr(0, blank);
      line.remove_prefix(std::min(blank + 1, line.size()));
    }
    const std::string digest(words[3].substr(words[3].find(':') + 1));
    std::vector<std::string>* list = nullptr;
    if (number == 0 && words[4] == "boot_aggregate") list = &own.boot_aggregate;
    else if (words[2] == "ima-buf" && std::find(names.begin(), names.end(), words[4]) != names.end()) list = &own.data[std::string(words[4])];
    if (list && std::find(list->begin(), list->end(), digest) == list->end()) list->push_back(digest);
  }
  return own;
}

std::string keylime_policy(const std::vector<ManifestFile>& files, const std::vector<std::string>& excludes, const std::string& log_hash,
                           const OwnEntries& own) {
  std::map<std::string, std::vector<std::string>> of_name;
  for (const ManifestFile& file : files) of_name[logged_name_of(file.path)].push_back(file.hex);
  if (!own.boot_aggregate.empty()) {
    std::vector<std::string>& list = of_name["boot_aggregate"];
    list.insert(list.begin(), own.boot_aggregate.begin(), own.boot_aggregate.end());
  }
  const std::vector<std::pair<const std::string, OrderedJson>> members(of_name.begin(), of_name.end());
  const OrderedJson digests = OrderedJson::object_t(members.begin(), members.end());
  const OrderedJson policy{{"meta", {{"version", 1}, {"generator", kGenerator}}},
                           {"release", 0},
                           {"digests", digests},
                           {"excludes", excludes},
                           {"keyrings", OrderedJson::object()},
                           {"ima", {{"ignored_keyrings", OrderedJson::array()}, {"log_hash_alg", log_hash}, {"dm_policy", nullptr}}},
                           {"ima-buf", own.data},
                           {"verification-keys", ""}};
  return policy.dump(1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

}  // namespace imafs
