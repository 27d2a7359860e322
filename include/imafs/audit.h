// Operator messages in the kernel's audit text form. Core makes the records; who runs it prints them.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace imafs {

// One record, INTEGRITY_* of the kernel. Example of its text:
//   integrity: pid=7 uid=0 auid=4294967295 ses=4294967295 op=invalid_pcr cause=ToMToU
//   comm="cat" name="/etc/passwd" dev="vda1" ino=12 res=1 errno=0      (one line)
struct AuditRecord {
  enum class Type : std::uint16_t {
    kData = 1800, kStatus = 1802, kPcr = 1804, kRule = 1805, kPolicyRule = 1807,
  } type = Type::kPcr;
  std::uint32_t pid = 0;
  std::uint32_t uid = 0;
  std::string op;     // "invalid_pcr", "policy_update", "add_template_measure"
  std::string cause;  // "ToMToU", "open_writers", "completed", "TPM_error(5)"
  std::string comm;
  std::optional<std::string> name;
  std::string device;  // empty: no dev= and ino=
  std::uint64_t inode = 0;
  bool succeeded = true;  // res=
  int errno_value = 0;
  std::string text;  // kPolicyRule and kRule: the whole text after "integrity: "
};

// The text, beginning with "integrity: ". Values with a quote, or a byte below 0x21 or above 0x7e,
// are printed as upper-case hex without quotes, as the kernel does.
std::string to_text(const AuditRecord& record);

// Thread-safe by contract; must not block.
using AuditSink = std::function<void(const AuditRecord&)>;

}  // namespace imafs
