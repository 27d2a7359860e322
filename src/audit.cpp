#include "imafs/audit.h"

#include <algorithm>
#include <string_view>

#include "imafs/bytes.h"

namespace imafs {
namespace {

constexpr std::uint32_t kUnset = 4294967295;  // auid and ses of a task that nobody logged in for

// The kernel's rule for text that somebody else chose.
std::string untrusted(std::string_view text) {
  const bool plain = std::all_of(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<std::uint8_t>(c);
    return byte >= 0x21 && byte <= 0x7e && byte != '"';
  });
  if (plain) return "\"" + std::string(text) + "\"";
  std::string hex = to_hex(as_bytes(text));
  std::transform(hex.begin(), hex.end(), hex.begin(), [](char c) { return c >= 'a' && c <= 'f' ? static_cast<char>(c - 'a' + 'A') : c; });
  return hex;
}

}  // namespace

std::string to_text(const AuditRecord& record) {
  std::string text = "integrity: ";
  if (record.type == AuditRecord::Type::kRule || record.type == AuditRecord::Type::kPolicyRule) return text + record.text;
  text += "pid=" + std::to_string(record.pid) + " uid=" + std::to_string(record.uid);
  text += " auid=" + std::to_string(kUnset) + " ses=" + std::to_string(kUnset);
  text += " op=" + record.op + " cause=" + record.cause + " comm=" + untrusted(record.comm);
  if (record.name) text += " name=" + untrusted(*record.name);
  if (!record.device.empty()) text += " dev=" + untrusted(record.device) + " ino=" + std::to_string(record.inode);
  text += std::string(" res=") + (record.succeeded ? "1" : "0") + " errno=" + std::to_string(record.errno_value);
  return text;
}

}  // namespace imafs
