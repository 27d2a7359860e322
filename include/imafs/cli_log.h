// `imafs log`: the log with the circumstances of each entry, in other people's formats; and trimming.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "imafs/exit_code.h"

namespace imafs {

struct LogExportOptions {
  std::string target;           // a mount point, a state or archive directory, or a binary log (no circumstances)
  std::string format = "text";  // text, json, ndjson, csv, cel-json
  std::string path;             // only names that match this glob, as in a path= rule
  std::optional<std::uint32_t> uid;
  std::string comm;
  bool violations = false;      // only those
  std::uint64_t from = 0;       // first entry to show
  bool follow = false;          // go on as the log grows (a mount; not for json, which has an end)
};
// kUsage: unreadable, or a format that does not exist. kMismatch: the log is damaged.
ExitCode run_log_export(const LogExportOptions& options);

struct LogTrimOptions {
  std::string mountpoint;
  std::uint64_t keep = 0;  // the newest entries that stay
  std::string tcti;        // as `imafs verify --tcti`
};
// Verifies first; kMismatch: the log does not fit, and stays whole.
ExitCode run_log_trim(const LogTrimOptions& options);

}  // namespace imafs
