// Policy text to rules and back. Pure functions; thread-safe.
#pragma once

#include <cerrno>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "imafs/policy.h"

namespace imafs {

// What is wrong with a policy text, for a person. Positions are 1-based; columns count bytes.
struct PolicyError {
  std::string origin;
  unsigned line = 0;
  unsigned column = 0;
  std::string source_line;
  std::string message;  // "unknown key 'flavour'"
  std::string hint;     // what would be valid; may be empty
  int code = EINVAL;    // what the kernel answers; ERANGE for a number beyond 64 bits

  // "FILE:LINE:COLUMN: MESSAGE", the line, a caret under the column, the hint.
  std::string to_text() const;
};
template <class T>
using PolicyResult = tl::expected<T, PolicyError>;

struct ParseContext {
  std::string origin = ".ima/policy";
  // template=NAME may also name the mount's custom format.
  const Template* custom_template = nullptr;
  // A condition on LSM labels is refused while the built-in policy is active and accepted later as
  // a rule that never matches (the kernel without an LSM).
  bool builtin_policy_active = true;
  // With an LSM (labels_are_known()) it is looked at. IMA: whether the LSM knows this very label is not.
  bool labels_known = false;
};

// One line, without its newline. Nothing: blank or a comment. `line` goes into the error and the rule.
PolicyResult<std::optional<Rule>> parse_rule(std::string_view line, const ParseContext& context, unsigned line_number = 1);

// A whole file, for the command line: every line a rule, comments and blank lines allowed. A line
// longer than 4,095 bytes is an error. Stops at the first error.
PolicyResult<std::vector<Rule>> parse_policy(std::string_view text, const ParseContext& context);

// One rule in the kernel's normal form, " \n" at its end; empty for a rule the kernel does not
// print (LSM conditions without an LSM). path= stands after fsuuid=.
std::string to_text(const Rule& rule);
std::string to_text(const Policy& policy);

// `words`: "default" (conf/default.policy, made part of the program), "none", "tcb", "ima_tcb", "critical_data", "appraise_tcb", "secure_boot", "fail_securely",
// joined by '+', '|' or a blank. EINVAL names an unknown word. "none" alone gives no rules.
// With "default" the policy counts as loaded, not as built in: the next load appends to it.
Result<Policy> builtin_policy(std::string_view words);

}  // namespace imafs
