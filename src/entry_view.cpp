#include "imafs/entry_view.h"

#include <algorithm>

namespace imafs {
namespace {

// "sha256:" NUL digest, or "ima:sha256:" NUL digest. Whether it is one.
bool take_digest(EntryView& view, ByteView value, bool has_type) {
  const auto end = std::find(value.begin(), value.end(), std::uint8_t{0});
  std::string_view head = as_text(value.first(static_cast<std::size_t>(end - value.begin())));
  if (head.size() + 1 > value.size()) return false;
  view.digest.assign(end + 1, value.end());
  const bool has_colon = head.ends_with(':');
  if (has_colon) head.remove_suffix(1);
  const std::size_t prefix = head.find(':');
  view.is_verity = prefix != std::string_view::npos && head.substr(0, prefix) == "verity";
  view.algorithm = prefix == std::string_view::npos ? head : head.substr(prefix + 1);
  const bool is_typed = view.is_verity || (prefix != std::string_view::npos && head.substr(0, prefix) == "ima");
  const auto algorithm = hash_algorithm_named(view.algorithm);
  return has_colon && is_typed == has_type && algorithm && digest_size(*algorithm) == view.digest.size();
}

bool take_plain_digest(EntryView& view, const Bytes& value) {
  const bool is_md5 = value.size() == digest_size(HashAlgorithm::kMd5);
  view.digest = value;
  view.algorithm = is_md5 ? "md5" : "sha1";
  return is_md5 || value.size() == digest_size(HashAlgorithm::kSha1);
}

// Up to the NUL, which is the last byte.
bool take_name(EntryView& view, const Bytes& value) {
  const auto end = std::find(value.begin(), value.end(), std::uint8_t{0});
  view.name = std::string(value.begin(), end);
  return end != value.end() && end + 1 == value.end();
}

bool is_name(FieldId field) { return field == FieldId::kN || field == FieldId::kNNg; }
bool is_digest(FieldId field) { return field == FieldId::kD || field == FieldId::kDNg || field == FieldId::kDNgV2; }

// What the entry is about: the digests and names that it begins with, of each kind the first; a plain digest yields to another
// one. The fields that follow may hold whatever the file's owner chose (a signature, extended attributes): they are believed
// to be neither, unless there is no better. Whether there was one of each, and both were well-formed.
bool take_subject(EntryView& view, const LogEntry& entry) {
  bool fits = true, leads = true, has_name = false, has_plain = false, has_digest = false;
  for (std::size_t i = 0; i < entry.fields.size(); ++i) {
    const FieldId field = entry.fields[i];
    const Bytes& value = entry.values[i];
    if (!is_name(field) && !is_digest(field)) leads = false;
    if (is_name(field) && !has_name) {
      fits = take_name(view, value) && fits && leads;
      has_name = true;
    } else if (field == FieldId::kD && !has_plain && !has_digest) {
      fits = take_plain_digest(view, value) && fits && leads;
      has_plain = true;
    } else if (is_digest(field) && field != FieldId::kD && !has_digest && (leads || !has_plain)) {
      fits = take_digest(view, value, field == FieldId::kDNgV2) && fits && leads;
      has_digest = true;
    }
  }
  return fits && has_name && (has_digest || has_plain);
}

bool is_of_its_data(const EntryView& view) {
  const auto algorithm = hash_algorithm_named(view.algorithm);
  if (!algorithm || !can_compute(*algorithm) || view.name.starts_with('/')) return false;
  const Digest digest = hash_of(*algorithm, view.data);
  return std::ranges::equal(digest.bytes(), view.digest);
}

}  // namespace

EntryView view_of(const LogEntry& entry) {
  EntryView view;
  view.is_sound = take_subject(view, entry);
  for (std::size_t i = 0; i < entry.fields.size(); ++i) {
    if (entry.fields[i] == FieldId::kSig) view.signature = entry.values[i];
    if (entry.fields[i] == FieldId::kBuf) view.data = entry.values[i];
  }
  const std::vector<FieldId> buffer{FieldId::kDNg, FieldId::kNNg, FieldId::kBuf};
  view.is_data = view.is_sound && entry.fields == buffer && is_of_its_data(view);
  return view;
}

}  // namespace imafs
