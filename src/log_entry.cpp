#include "imafs/log_entry.h"

#include <algorithm>
#include <array>

#include "imafs/check.h"

namespace imafs {
namespace {

constexpr std::array<std::string_view, 16> kFieldNames{
    "d",      "n",      "d-ng",  "d-ngv2", "n-ng",  "sig",        "buf",          "d-modsig",
    "modsig", "evmsig", "iuid",  "igid",   "imode", "xattrnames", "xattrlengths", "xattrvalues",
};

constexpr std::size_t kMaxFields = 15;
constexpr std::size_t kMaxFieldIdSize = 16;
constexpr std::size_t kLegacyNameSize = 255;  // bytes, without the NUL

std::optional<std::vector<FieldId>> parse_fields(std::string_view format) {
  std::vector<FieldId> fields;
  for (;;) {
    const std::size_t bar = format.find('|');
    const std::string_view id = format.substr(0, bar);
    const auto found = std::find(kFieldNames.begin(), kFieldNames.end(), id);
    if (found == kFieldNames.end() || id.size() > kMaxFieldIdSize || fields.size() == kMaxFields) return std::nullopt;
    fields.push_back(static_cast<FieldId>(found - kFieldNames.begin()));
    if (bar == std::string_view::npos) return fields;
    format.remove_prefix(bar + 1);
  }
}

void append_u32(Bytes& out, std::uint32_t value, ByteOrder order) {
  order == ByteOrder::kLittle ? append_le32(out, value) : append_be32(out, value);
}

// The name as it is stored: blanks replaced, one NUL at its end.
Bytes stored_name(std::string_view name) {
  Bytes value(name.begin(), name.end());
  std::replace(value.begin(), value.end(), std::uint8_t{' '}, std::uint8_t{'_'});
  value.push_back(0);
  return value;
}

Bytes legacy_name(const EntryFacts& facts) {
  std::string_view name = facts.name;
  if (name.size() > kLegacyNameSize && facts.last_component) name = *facts.last_component;
  return stored_name(name.substr(0, kLegacyNameSize));
}

Bytes named_digest(std::string_view type, const Digest& digest) {
  Bytes value(type.begin(), type.end());
  append(value, as_bytes(name_of(digest.algorithm())));
  value.push_back(':');
  value.push_back(0);
  append(value, digest.bytes());
  return value;
}

Bytes plain_digest(const EntryFacts& facts) {
  const auto is_legacy = [](const Digest& digest) {
    return digest.algorithm() == HashAlgorithm::kSha1 || digest.algorithm() == HashAlgorithm::kMd5;
  };
  const Digest zero = Digest::zero(HashAlgorithm::kSha1);
  const Digest& digest = facts.legacy_digest ? *facts.legacy_digest : is_legacy(facts.file_digest) ? facts.file_digest : zero;
  return {digest.bytes().begin(), digest.bytes().end()};
}

Bytes file_field(FieldId field, const EntryFacts::File& file, ByteOrder order) {
  Bytes value;
  switch (field) {
    case FieldId::kEvmSig: return file.evm_signature;
    case FieldId::kIuid: append_u32(value, file.uid, order); break;
    case FieldId::kIgid: append_u32(value, file.gid, order); break;
    case FieldId::kImode:
      append_le16(value, file.mode);
      if (order == ByteOrder::kBig) std::swap(value[0], value[1]);
      break;
    case FieldId::kXattrNames:
      for (const auto& [name, bytes] : file.xattrs) {
        if (!value.empty()) value.push_back('|');
        append(value, as_bytes(name));
      }
      if (!value.empty()) value.push_back(0);
      break;
    case FieldId::kXattrLengths:
      for (const auto& [name, bytes] : file.xattrs) append_u32(value, static_cast<std::uint32_t>(bytes.size()), order);
      break;
    case FieldId::kXattrValues:
      for (const auto& [name, bytes] : file.xattrs) append(value, bytes);
      break;
    default: break;
  }
  return value;
}

Bytes field_value(FieldId field, const EntryFacts& facts, ByteOrder order) {
  switch (field) {
    case FieldId::kD: return plain_digest(facts);
    case FieldId::kN: return legacy_name(facts);
    case FieldId::kDNg: return named_digest("", facts.file_digest);
    case FieldId::kDNgV2: return named_digest(facts.is_verity_digest ? "verity:" : "ima:", facts.file_digest);
    case FieldId::kNNg: return stored_name(facts.name);
    case FieldId::kSig: return facts.signature;
    case FieldId::kBuf: return facts.buffer;
    case FieldId::kDModsig: return facts.modsig_digest ? named_digest("", *facts.modsig_digest) : Bytes();
    case FieldId::kModsig: return facts.modsig;
    default: return facts.file ? file_field(field, *facts.file, order) : Bytes();
  }
}

}  // namespace

std::string_view name_of(FieldId field) { return kFieldNames[static_cast<std::size_t>(field)]; }

bool Template::has(FieldId field) const { return std::find(fields.begin(), fields.end(), field) != fields.end(); }

const std::vector<Template>& builtin_templates() {
  static const std::vector<Template> all = [] {
    std::vector<Template> templates;
    for (const auto& [name, format] : std::initializer_list<std::pair<const char*, const char*>>{
             {"ima", "d|n"},
             {"ima-ng", "d-ng|n-ng"},
             {"ima-sig", "d-ng|n-ng|sig"},
             {"ima-ngv2", "d-ngv2|n-ng"},
             {"ima-sigv2", "d-ngv2|n-ng|sig"},
             {"ima-buf", "d-ng|n-ng|buf"},
             {"ima-modsig", "d-ng|n-ng|sig|d-modsig|modsig"},
             {"evm-sig", "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode"},
         }) {
      templates.push_back({name, format, *parse_fields(format)});
    }
    return templates;
  }();
  return all;
}

const Template* find_builtin_template(std::string_view text) {
  for (const Template& form : builtin_templates()) {
    if (form.name == text || form.format == text) return &form;
  }
  return nullptr;
}

Result<Template> parse_template_format(std::string_view format) {
  auto fields = parse_fields(format);
  if (!fields) {
    return fail(EINVAL, "template format '" + std::string(format) + "': 1 to 15 field ids joined by '|' are expected");
  }
  return Template{"", std::string(format), std::move(*fields)};
}

const std::vector<std::string>& protected_xattrs() {
  static const std::vector<std::string> names{
      "security.selinux",       "security.SMACK64",  "security.SMACK64EXEC", "security.SMACK64TRANSMUTE",
      "security.SMACK64MMAP",   "security.apparmor", "security.ima",         "security.capability"};
  return names;
}

LogEntry make_entry(const Template& form, std::uint32_t pcr, const EntryFacts& facts, ByteOrder order) {
  LogEntry entry;
  entry.pcr = pcr;
  entry.template_name = form.logged_name();
  entry.fields = form.fields;
  entry.values.reserve(form.fields.size());
  for (const FieldId field : form.fields) entry.values.push_back(field_value(field, facts, order));
  return entry;
}

LogEntry make_violation(const Template& form, std::uint32_t pcr, HashAlgorithm file_hash, EntryFacts facts) {
  facts.file_digest = Digest::zero(file_hash);
  facts.is_verity_digest = false;
  facts.legacy_digest =
      Digest::zero(file_hash == HashAlgorithm::kMd5 ? HashAlgorithm::kMd5 : HashAlgorithm::kSha1);
  facts.modsig_digest.reset();
  facts.modsig.clear();
  // security.ima is not read for a violation; a portable EVM signature is.
  if (!facts.signature.empty() && facts.signature[0] != 0x05) facts.signature.clear();
  LogEntry entry = make_entry(form, pcr, facts);
  entry.is_violation = true;
  return entry;
}

Bytes template_data(const LogEntry& entry, ByteOrder order) {
  Bytes data;
  for (std::size_t i = 0; i < entry.fields.size(); ++i) {
    const Bytes& value = entry.values[i];
    if (!entry.is_legacy()) append_u32(data, static_cast<std::uint32_t>(value.size()), order);
    append(data, value);
    if (entry.is_legacy() && entry.fields[i] == FieldId::kN) data.resize(data.size() - value.size() + kLegacyNameSize + 1);
  }
  return data;
}

BankValues template_digests(const LogEntry& entry, const std::vector<Bank>& banks, ByteOrder order) {
  BankValues digests;
  digests.reserve(banks.size());
  if (entry.is_violation) {
    for (const Bank& bank : banks) digests.emplace_back(bank.size, std::uint8_t{0});
    return digests;
  }
  const Bytes data = template_data(entry, order);
  for (const Bank& bank : banks) {
    const Digest digest = hash_of(bank.hash.value_or(HashAlgorithm::kSha1), data);
    Bytes value(digest.bytes().begin(), digest.bytes().end());
    value.resize(bank.size);
    digests.push_back(std::move(value));
  }
  return digests;
}

BankValues extend_values(const LogEntry& entry, const std::vector<Bank>& banks, ByteOrder order) {
  if (!entry.is_violation) return template_digests(entry, banks, order);
  BankValues values;
  for (const Bank& bank : banks) {
    Bytes value(bank.hash ? bank.size : digest_size(HashAlgorithm::kSha1), 0xff);
    value.resize(bank.size);
    values.push_back(std::move(value));
  }
  return values;
}

std::string loggable_name(std::string_view path) {
  const auto bad_bytes_at = [&](std::size_t at) {
    const std::size_t size = utf8_sequence(path.substr(at));
    return size == 0 || is_control(path.substr(at, size));
  };
  bool plain = true;
  for (std::size_t at = 0; at < path.size() && plain; at += std::max<std::size_t>(1, utf8_sequence(path.substr(at)))) {
    plain = !bad_bytes_at(at);
  }
  if (plain) return std::string(path);
  std::string name = "//";
  for (std::size_t at = 0; at < path.size();) {
    if (path[at] == '%' || bad_bytes_at(at)) {
      constexpr std::string_view digits = "0123456789ABCDEF";
      const auto byte = static_cast<std::uint8_t>(path[at]);
      name += '%';
      name += digits[byte >> 4];
      name += digits[byte & 15];
      ++at;  // the bytes that follow in a control character's sequence are no UTF-8 by themselves
      continue;
    }
    const std::size_t size = utf8_sequence(path.substr(at));
    name.append(path.substr(at, size));
    at += size;
  }
  return name;
}

}  // namespace imafs
