// `imafs top`: a mount as it works, on a terminal.
#pragma once

#include <string>

#include "imafs/exit_code.h"

namespace imafs {

struct TopOptions {
  std::string mountpoint;
  double seconds = 1;  // between two looks
};
// Until q, an end of the mount, or a signal.
ExitCode run_top(const TopOptions& options);

}  // namespace imafs
