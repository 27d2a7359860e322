// What an `imafs run` has measured, from its log.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "imafs/attestation.h"
#include "imafs/cli_run.h"
#include "imafs/result.h"

namespace imafs {

// How the log stood when the command began.
struct LogMark {
  ino_t journal = 0;
  std::uint64_t entries = 0;
  std::string policy;
};
Result<LogMark> mark_log(const std::string& mount, const std::string& state);

// Fills in what was read since `mark`. EBADMSG: the log says that not everything can be in it: it was trimmed or begun anew, the
// policy changed, or entries are missing.
Status collect_run(const std::string& mount, const std::string& state, const LogMark& mark, const std::string& format, RunRecord& run);

}  // namespace imafs
