// `imafs report`: what report.h makes, of a log somebody names.
#pragma once

#include <string>

#include "imafs/exit_code.h"

namespace imafs {

struct ReportOptions {
  std::string target;      // a mount point, a state or archive directory, or a binary log
  std::string output;      // a file, written whole or not at all
  std::string pcr_values;  // as `imafs verify --pcr-values`
  std::string tcti;        // as `imafs verify --tcti`
};
// kOk also if the log does not verify: the page says so. kUsage: unreadable. kMismatch: it does not decode.
ExitCode run_report(const ReportOptions& options);

}  // namespace imafs
