// Entries of the measurement log and their templates: what is stored, and what is hashed.
//
// An entry is its PCR, the name of its template and the template's fields. Sources: the kernel's
// ima_template*.c as restated in docs/LOG_FORMAT.md. Everything is little-endian unless a function
// takes a ByteOrder.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "imafs/bank.h"
#include "imafs/bytes.h"
#include "imafs/digest.h"
#include "imafs/result.h"

namespace imafs {

enum class ByteOrder { kLittle, kBig };

enum class FieldId : std::uint8_t {
  kD, kN, kDNg, kDNgV2, kNNg, kSig, kBuf, kDModsig, kModsig,
  kEvmSig, kIuid, kIgid, kImode, kXattrNames, kXattrLengths, kXattrValues,
};
std::string_view name_of(FieldId field);  // "d-ng"

struct Template {
  std::string name;             // empty: a custom format
  std::string format;           // "d-ng|n-ng"
  std::vector<FieldId> fields;  // 1 to 15

  // What stands in the log: the name, or the format of a template without one.
  const std::string& logged_name() const { return name.empty() ? format : name; }
  // The legacy form: no lengths in the record nor in the hash, the name padded to 256 bytes.
  // It is the name that triggers it, not the format.
  bool is_legacy() const { return name == "ima"; }
  bool has(FieldId field) const;
};

// The kernel's built-in templates, in its order. Lives for ever.
const std::vector<Template>& builtin_templates();
// The first built-in whose name or format equals `text`; null if there is none.
const Template* find_builtin_template(std::string_view text);
// A nameless template. EINVAL for an empty or unknown id, or more than 15 fields.
Result<Template> parse_template_format(std::string_view format);

// What the fields of an entry are made of. A field whose source is absent has length 0.
struct EntryFacts {
  Digest file_digest = Digest::zero(HashAlgorithm::kSha256);
  bool is_verity_digest = false;            // d-ngv2 says "verity:" instead of "ima:"
  std::optional<Digest> legacy_digest;      // field d; absent: file_digest if it is sha1 or md5
  std::string name;                         // as to be logged, before ' ' becomes '_'
  std::optional<std::string> last_component;  // field n when name is over 255 bytes; absent for buffers
  Bytes buffer;                             // field buf
  Bytes signature;                          // field sig: the whole security.ima (or .evm) value
  std::optional<Digest> modsig_digest;      // field d-modsig
  Bytes modsig;                             // field modsig
  // Facts of a file; absent for boot_aggregate and buffers.
  struct File {
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    std::uint16_t mode = 0;  // file type bits included
    Bytes evm_signature;     // field evmsig: security.evm if its first byte is 5
    std::vector<std::pair<std::string, Bytes>> xattrs;  // protected xattrs the file has, in the kernel's order
  };
  std::optional<File> file;
};

// The protected xattrs in the order of the xattr* fields.
const std::vector<std::string>& protected_xattrs();

struct LogEntry {
  std::uint32_t pcr = 10;
  std::string template_name;  // Template::logged_name()
  std::vector<FieldId> fields;
  std::vector<Bytes> values;  // one for each field, as stored and hashed, without its length
  bool is_violation = false;  // zeros in the log, 0xff in the PCR

  bool is_legacy() const { return template_name == "ima"; }
  bool operator==(const LogEntry&) const = default;
};

LogEntry make_entry(const Template& form, std::uint32_t pcr, const EntryFacts& facts,
                    ByteOrder order = ByteOrder::kLittle);
// A violation: default template, zero file digest in `file_hash`'s length, name and file facts kept,
// signature empty. (The kernel's form since late 2024.)
LogEntry make_violation(const Template& form, std::uint32_t pcr, HashAlgorithm file_hash,
                        EntryFacts facts);

// The bytes a template digest is computed over.
Bytes template_data(const LogEntry& entry, ByteOrder order = ByteOrder::kLittle);
// The digest as the log shows it: zeros for a violation; for a bank that cannot be computed sha1
// padded with zeros.
BankValues template_digests(const LogEntry& entry, const std::vector<Bank>& banks,
                            ByteOrder order = ByteOrder::kLittle);
// What the TPM is extended with: the same, or 0xff over the bank's size for a violation
// (20 bytes of 0xff, then zeros, where the bank cannot be computed).
BankValues extend_values(const LogEntry& entry, const std::vector<Bank>& banks,
                         ByteOrder order = ByteOrder::kLittle);

// The name of a file as an entry carries it (before ' ' becomes '_').
// IMA: the kernel writes any byte but NUL and lets it break the line. We write a path that holds a
// control character (C0, 0x7f, C1, U+2028, U+2029) or is not valid UTF-8 as "//" + path with those bytes and '%' percent-encoded:
// no real path begins with "//", so it is injective, and one entry is one line of UTF-8.
std::string loggable_name(std::string_view path);

}  // namespace imafs
