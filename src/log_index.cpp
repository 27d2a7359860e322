#include "log_index.h"

#include <algorithm>

namespace imafs {
namespace {

constexpr std::uint8_t kViolationFlag = 1;
constexpr std::uint8_t kPathFlag = 2;  // the real path comes behind the fields

constexpr std::size_t kMaxTemplateName = 256;
constexpr std::size_t kLegacyName = 256;  // with its NUL

// What append_ascii(), append_binary() and template_data() rely on.
bool is_sound(const LogEntry& entry) {
  if (entry.fields.empty() || entry.template_name.empty() || entry.template_name.size() > kMaxTemplateName) return false;
  if (!entry.is_legacy()) return true;
  return entry.fields == std::vector<FieldId>{FieldId::kD, FieldId::kN} && !entry.values[1].empty() && entry.values[1].size() <= kLegacyName;
}

}  // namespace

Bytes encode_journal_entry(const LogEntry& entry, const EntryOrigin& origin, const BankValues& digests) {
  Bytes out;
  const ViewSizes sizes = view_sizes_of(entry);
  append_le32(out, sizes.ascii);
  append_le32(out, sizes.binary);
  append_le64(out, static_cast<std::uint64_t>(origin.time_ns));
  append_le32(out, origin.pid);
  append_le32(out, origin.uid);
  append_le64(out, origin.size);
  const std::string_view comm = std::string_view(origin.comm).substr(0, 15);
  out.push_back(static_cast<std::uint8_t>(comm.size()));
  append(out, as_bytes(comm));
  out.push_back(static_cast<std::uint8_t>((entry.is_violation ? kViolationFlag : 0) | (origin.path.empty() ? 0 : kPathFlag)));
  append_le32(out, entry.pcr);
  append_le16(out, static_cast<std::uint16_t>(entry.template_name.size()));
  append(out, as_bytes(entry.template_name));
  out.push_back(static_cast<std::uint8_t>(entry.fields.size()));
  for (std::size_t i = 0; i < entry.fields.size(); ++i) {
    out.push_back(static_cast<std::uint8_t>(entry.fields[i]));
    append_le32(out, static_cast<std::uint32_t>(entry.values[i].size()));
    append(out, entry.values[i]);
  }
  if (!origin.path.empty()) {
    append_le32(out, static_cast<std::uint32_t>(origin.path.size()));
    append(out, as_bytes(origin.path));
  }
  for (const Bytes& digest : digests) append(out, digest);
  return out;
}

Result<JournalEntry> decode_journal_entry(ByteView payload) {
  JournalEntry result;
  bool whole = true;
  const auto take = [&](std::size_t size) {
    if (payload.size() < size) {
      whole = false;
      return ByteView();
    }
    const ByteView part = payload.first(size);
    payload = payload.subspan(size);
    return part;
  };
  const ByteView sizes = take(8);
  const ByteView head = take(25);
  if (!whole) return fail(EBADMSG, "an entry of the journal is too short");
  result.sizes = {load_le32(sizes), load_le32(sizes.subspan(4))};
  result.origin.time_ns = static_cast<std::int64_t>(load_le64(head));
  result.origin.pid = load_le32(head.subspan(8));
  result.origin.uid = load_le32(head.subspan(12));
  result.origin.size = load_le64(head.subspan(16));
  result.origin.comm = as_text(take(head[24]));
  const ByteView about = take(7);
  if (!whole) return fail(EBADMSG, "an entry of the journal is too short");
  result.entry.is_violation = (about[0] & kViolationFlag) != 0;
  result.entry.pcr = load_le32(about.subspan(1));
  result.entry.template_name = as_text(take(load_le16(about.subspan(5))));
  const ByteView count = take(1);
  for (unsigned i = 0; whole && i < count[0]; ++i) {
    const ByteView field = take(5);
    if (!whole || field[0] > static_cast<std::uint8_t>(FieldId::kXattrValues)) break;
    const ByteView value = take(load_le32(field.subspan(1)));
    result.entry.fields.push_back(static_cast<FieldId>(field[0]));
    result.entry.values.emplace_back(value.begin(), value.end());
  }
  if (whole && (about[0] & kPathFlag) != 0) {
    const ByteView size = take(4);
    if (whole) result.origin.path = as_text(take(load_le32(size)));
  }
  if (!whole || result.entry.fields.size() != count[0] || !is_sound(result.entry)) return fail(EBADMSG, "an entry of the journal is malformed");
  result.digests = payload;
  return result;
}

LogIndex::Key LogIndex::key_of(ByteView template_digest, std::uint32_t pcr) {
  Key key{};
  constexpr std::size_t digest_part = 28;
  std::copy_n(template_digest.begin(), std::min(template_digest.size(), digest_part), key.begin());
  for (std::size_t i = 0; i < 4; ++i) key[digest_part + i] = static_cast<std::uint8_t>(pcr >> (8 * i));
  return key;
}

ViewSizes view_sizes_of(const LogEntry& entry) {
  thread_local std::string text;
  thread_local Bytes record;
  text.clear();
  record.clear();
  append_ascii(text, entry, {});
  append_binary(record, entry, {});
  return {static_cast<std::uint32_t>(text.size()), static_cast<std::uint32_t>(record.size())};
}

void LogIndex::add(std::uint64_t frame, ViewSizes sizes) {
  Place place = end_;
  place.frame = frame;
  places_.push_back(place);
  end_.ascii += sizes.ascii;
  end_.binary += sizes.binary;
}

std::uint64_t LogIndex::view_size(LogView::Form form, std::size_t digest_size) const {
  return form == LogView::Form::kAscii ? end_.ascii + size() * 2 * digest_size : end_.binary + size() * digest_size;
}

std::uint64_t LogIndex::view_offset(LogView::Form form, std::size_t digest_size, std::uint64_t entry) const {
  const Place& place = places_[entry];
  return form == LogView::Form::kAscii ? place.ascii + entry * 2 * digest_size : place.binary + entry * digest_size;
}

std::uint64_t LogIndex::entry_at(LogView::Form form, std::size_t digest_size, std::uint64_t offset) const {
  std::uint64_t low = 0, high = size();
  while (high - low > 1) {
    const std::uint64_t middle = low + (high - low) / 2;
    (view_offset(form, digest_size, middle) <= offset ? low : high) = middle;
  }
  return low;
}

}  // namespace imafs
