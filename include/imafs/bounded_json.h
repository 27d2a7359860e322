// JSON that somebody else wrote: parsed without exceptions, of bounded depth, and read by type.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "imafs/result.h"

namespace imafs {

inline constexpr std::size_t kMaxJsonDepth = 64;

// Whether brackets outside of strings nest no deeper than kMaxJsonDepth. Says nothing about the rest of the grammar.
inline bool is_shallow_json(std::string_view text) {
  std::size_t depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      else if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxJsonDepth) return false;
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  return true;
}

// An object at the top, or EBADMSG "ORIGIN is no JSON object". Throws nothing but bad_alloc.
template <class Json = nlohmann::json>
Result<Json> parse_json_object(std::string_view text, const std::string& origin) {
  if (!is_shallow_json(text)) return fail(EBADMSG, origin + " is nested too deep for JSON of ours");
  Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return fail(EBADMSG, origin + " is no JSON object");
  return json;
}

// What stands at `key`, or null; null too if `json` is no object. Lives as long as `json`.
template <class Json>
const Json& member(const Json& json, const char* key) {
  static const Json null;
  if (!json.is_object()) return null;
  const auto found = json.find(key);
  return found == json.end() ? null : *found;
}

// The value at `key` if it has that type, else `otherwise`.
template <class Json>
std::string text_at(const Json& json, const char* key, std::string otherwise = "") {
  const Json& value = member(json, key);
  return value.is_string() ? value.template get<std::string>() : std::move(otherwise);
}
template <class Json>
std::uint64_t count_at(const Json& json, const char* key) {
  const Json& value = member(json, key);
  return value.is_number_unsigned() ? value.template get<std::uint64_t>() : 0;
}
template <class Json>
bool flag_at(const Json& json, const char* key, bool otherwise = false) {
  const Json& value = member(json, key);
  return value.is_boolean() ? value.template get<bool>() : otherwise;
}

}  // namespace imafs
