#include "imafs/log_codec.h"

#include <algorithm>
#include <array>

namespace imafs {
namespace {

constexpr std::size_t kKexecHeaderSize = 24;
constexpr std::size_t kKexecNameLimit = 69;  // the kernel refuses names of that length or more
constexpr std::size_t kSha1Size = 20;
constexpr std::size_t kMd5Size = 16;
constexpr std::size_t kLegacyNameLimit = 255;
constexpr std::uint32_t kNameLimit = 256;  // longest template name we take for one

void append_u32(Bytes& out, std::size_t value, ByteOrder order) {
  const auto word = static_cast<std::uint32_t>(value);
  order == ByteOrder::kLittle ? append_le32(out, word) : append_be32(out, word);
}

std::uint32_t load_u32(ByteView bytes, ByteOrder order) {
  return order == ByteOrder::kLittle ? load_le32(bytes) : load_be32(bytes);
}

// Takes a record apart; every step says whether the bytes were there.
class Reader {
 public:
  Reader(ByteView bytes, ByteOrder order) : rest_(bytes), order_(order) {}

  bool take(std::size_t size, ByteView& out) {
    if (rest_.size() < size) return false;
    out = rest_.first(size);
    rest_ = rest_.subspan(size);
    return true;
  }
  bool take_u32(std::uint32_t& value) {
    ByteView bytes;
    if (!take(4, bytes)) return false;
    value = load_u32(bytes, order_);
    return true;
  }
  std::size_t left() const { return rest_.size(); }

 private:
  ByteView rest_;
  ByteOrder order_;
};

tl::unexpected<Error> cut_short() { return fail(ENODATA, "the record is cut short"); }
tl::unexpected<Error> malformed(const std::string& what) { return fail(EBADMSG, what); }

const std::vector<FieldId>* fields_of(std::string_view name, Template& custom) {
  for (const Template& form : builtin_templates()) {
    if (form.name == name) return &form.fields;
  }
  auto parsed = parse_template_format(name);
  if (!parsed) return nullptr;
  custom = std::move(*parsed);
  return &custom.fields;
}

Result<std::size_t> decode_legacy(ByteView bytes, std::size_t digest_size, ByteOrder order, DecodedRecord& record) {
  Reader reader(bytes, order);
  ByteView digest, name;
  std::uint32_t size = 0;
  if (!reader.take(digest_size, digest) || !reader.take_u32(size)) return cut_short();
  if (size > kLegacyNameLimit) return malformed("a legacy name of " + std::to_string(size) + " bytes");
  if (!reader.take(size, name)) return cut_short();
  if (std::find(name.begin(), name.end(), 0) != name.end()) return malformed("a NUL in a legacy name");
  record.entry.values.emplace_back(digest.begin(), digest.end());
  record.entry.values.emplace_back(name.begin(), name.end());
  record.entry.values.back().push_back(0);
  return bytes.size() - reader.left();
}

Result<std::size_t> decode_fields(ByteView bytes, ByteOrder order, DecodedRecord& record) {
  Reader reader(bytes, order);
  std::uint32_t size = 0;
  ByteView data;
  if (!reader.take_u32(size)) return cut_short();
  if (!reader.take(size, data)) return cut_short();
  Reader inside(data, order);
  for (std::size_t i = 0; i < record.entry.fields.size(); ++i) {
    std::uint32_t length = 0;
    ByteView value;
    if (!inside.take_u32(length) || !inside.take(length, value)) return malformed("a field runs beyond the record's data");
    const FieldId field = record.entry.fields[i];
    if ((field == FieldId::kN || field == FieldId::kNNg) && length > kMaxLoggedName) return malformed("a name of " + std::to_string(length) + " bytes");
    record.entry.values.emplace_back(value.begin(), value.end());
  }
  if (inside.left() != 0) return malformed("bytes after the last field");
  return bytes.size() - reader.left();
}

void append_decimal(std::string& out, const Bytes& value, ByteOrder order) {
  Bytes little(value);
  if (order == ByteOrder::kBig) std::reverse(little.begin(), little.end());
  little.resize(4);
  out += std::to_string(load_le32(little));
}

// "sha256:" NUL digest, or with a type before it: the text up to the NUL, then hex.
void append_named_digest(std::string& out, const Bytes& value) {
  const auto nul = std::find(value.begin(), value.end(), 0);
  out.append(value.begin(), nul);
  if (nul != value.end()) append_hex(out, ByteView(value).subspan(static_cast<std::size_t>(nul - value.begin()) + 1));
}

void append_field(std::string& out, FieldId field, const Bytes& value, ByteOrder order) {
  switch (field) {
    case FieldId::kN:
    case FieldId::kNNg:
    case FieldId::kXattrNames: out.append(value.begin(), std::find(value.begin(), value.end(), 0)); break;
    case FieldId::kDNg:
    case FieldId::kDNgV2:
    case FieldId::kDModsig: append_named_digest(out, value); break;
    case FieldId::kIuid:
    case FieldId::kIgid:
    case FieldId::kImode: append_decimal(out, value, order); break;
    default: append_hex(out, value); break;
  }
}

}  // namespace

void append_binary(Bytes& out, const LogEntry& entry, ByteView template_digest, ByteOrder order) {
  append_u32(out, entry.pcr, order);
  append(out, template_digest);
  append_u32(out, entry.template_name.size(), order);
  append(out, as_bytes(entry.template_name));
  if (entry.is_legacy()) {
    append(out, entry.values[0]);
    append_u32(out, entry.values[1].size() - 1, order);
    append(out, ByteView(entry.values[1]).first(entry.values[1].size() - 1));
    return;
  }
  std::size_t size = 0;
  for (const Bytes& value : entry.values) size += 4 + value.size();
  append_u32(out, size, order);
  for (const Bytes& value : entry.values) {
    append_u32(out, value.size(), order);
    append(out, value);
  }
}

void append_ascii(std::string& out, const LogEntry& entry, ByteView template_digest, ByteOrder order) {
  if (entry.pcr < 10) out += ' ';
  out += std::to_string(entry.pcr);
  out += ' ';
  append_hex(out, template_digest);
  out += ' ';
  out += entry.template_name;
  for (std::size_t i = 0; i < entry.fields.size(); ++i) {
    out += ' ';
    if (!entry.values[i].empty()) append_field(out, entry.fields[i], entry.values[i], order);
  }
  out += '\n';
}

Result<DecodedRecord> decode_record(ByteView log, std::size_t digest_bytes, ByteOrder order) {
  Reader reader(log, order);
  DecodedRecord record;
  ByteView digest, name;
  std::uint32_t name_size = 0;
  if (!reader.take_u32(record.entry.pcr) || !reader.take(digest_bytes, digest) || !reader.take_u32(name_size)) {
    return cut_short();
  }
  if (name_size == 0 || name_size > kNameLimit) return malformed("a template name of " + std::to_string(name_size) + " bytes");
  if (!reader.take(name_size, name)) return cut_short();
  record.template_digest.assign(digest.begin(), digest.end());
  record.entry.template_name = as_text(name);
  record.entry.is_violation = std::all_of(digest.begin(), digest.end(), [](std::uint8_t byte) { return byte == 0; });
  Template custom;
  const std::vector<FieldId>* const fields = fields_of(record.entry.template_name, custom);
  if (!fields) return malformed("an unknown template");
  record.entry.fields = *fields;

  const ByteView rest = log.subspan(log.size() - reader.left());
  Result<std::size_t> used = fail(EBADMSG, "");
  if (record.entry.is_legacy()) {
    used = decode_legacy(rest, kSha1Size, order, record);
    if (!used) {
      record.entry.values.clear();
      auto as_md5 = decode_legacy(rest, kMd5Size, order, record);
      if (as_md5) used = as_md5;
    }
  } else {
    used = decode_fields(rest, order, record);
  }
  if (!used) return fail(used.error());
  record.size = log.size() - reader.left() + *used;
  return record;
}

Result<std::vector<DecodedRecord>> decode_log(ByteView log, std::size_t digest_bytes, ByteOrder order) {
  std::vector<DecodedRecord> records;
  std::size_t offset = 0;
  while (offset < log.size()) {
    auto record = decode_record(log.subspan(offset), digest_bytes, order);
    if (!record) {
      return fail(record.error().code, "entry " + std::to_string(records.size()) + " at byte " + std::to_string(offset) +
                                           ": " + record.error().what);
    }
    offset += record->size;
    records.push_back(std::move(*record));
  }
  return records;
}

Result<std::size_t> guess_digest_size(ByteView log) {
  constexpr std::array<std::size_t, 4> sizes{20, 32, 48, 64};
  for (const std::size_t size : sizes) {
    std::size_t offset = 0;
    bool fits = true;
    while (fits && offset < log.size()) {
      const auto record = decode_record(log.subspan(offset), size);
      fits = record.has_value();
      if (fits) offset += record->size;
    }
    if (fits) return size;
  }
  // Nothing fits to the end: the one whose first record at least makes sense.
  for (const std::size_t size : sizes) {
    if (decode_record(log, size)) return size;
  }
  return fail(EBADMSG, "not a binary measurement log");
}

Bytes encode_kexec_blob(const std::vector<LogEntry>& entries) {
  const std::vector<Bank> sha1{Bank::of(HashAlgorithm::kSha1)};
  Bytes records;
  for (const LogEntry& entry : entries) append_binary(records, entry, template_digests(entry, sha1)[0]);
  Bytes blob;
  append_le16(blob, 1);
  append_le16(blob, 0);
  append_le32(blob, 0);
  append_le64(blob, kKexecHeaderSize + records.size());
  append_le64(blob, entries.size());
  append(blob, records);
  return blob;
}

bool is_kexec_blob(ByteView blob) {
  return blob.size() >= kKexecHeaderSize && load_le16(blob) == 1 && load_le16(blob.subspan(2)) == 0 &&
         load_le32(blob.subspan(4)) == 0 && load_le64(blob.subspan(8)) <= blob.size();
}

Result<std::vector<DecodedRecord>> decode_kexec_blob(ByteView blob) {
  if (!is_kexec_blob(blob)) return fail(EINVAL, "not a kexec measurement list of version 1");
  const std::uint64_t size = load_le64(blob.subspan(8));
  const std::uint64_t count = load_le64(blob.subspan(16));
  if (size < kKexecHeaderSize) return fail(EINVAL, "the list is smaller than its header");
  auto records = decode_log(blob.subspan(kKexecHeaderSize, size - kKexecHeaderSize), kSha1Size);
  if (!records) return fail(EINVAL, records.error().what);
  if (records->size() != count) {
    return fail(EINVAL, "the list says " + std::to_string(count) + " entries and has " + std::to_string(records->size()));
  }
  for (const DecodedRecord& record : *records) {
    if (record.entry.is_legacy()) return fail(EINVAL, "a record of template ima cannot be carried over");
    if (record.entry.template_name.size() >= kKexecNameLimit) return fail(EINVAL, "a template name too long to be carried over");
  }
  return records;
}

}  // namespace imafs
