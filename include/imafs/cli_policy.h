// `imafs policy`: check, show, load and explain policies.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "imafs/exit_code.h"

namespace imafs {

// Where a source of rules is empty, or no file is given, the default policy in force is meant: default_policy_source().

// Every file parses: kOk; else the errors on stderr, with a caret: kMismatch. kUsage: unreadable.
ExitCode policy_check(std::vector<std::string> files);
// The rules of a file, of "builtin:NAME", or of a mount, in normal form.
ExitCode policy_show(const std::string& source);
// A line at a time into the mount's policy. No file: standard input.
ExitCode policy_load(const std::string& mountpoint, const std::string& file, bool replace);

struct ExplainOptions {
  std::vector<std::string> paths;  // as inside the mount
  std::string source;              // as policy_show's
  std::uint32_t uid = 0;
  std::string mask;                // "MAY_READ"; empty: READ, or EXEC for the exec hooks
  std::string hook;                // "FILE_CHECK"; empty: FILE_CHECK, BPRM_CHECK, MMAP_CHECK
};
// The deciding rule of each class for each path and hook.
ExitCode policy_explain(const ExplainOptions& options);

}  // namespace imafs
