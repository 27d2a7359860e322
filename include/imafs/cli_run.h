// `imafs run`: a command on a measured view of the tree, and what it read.
#pragma once

#include <string>
#include <vector>

namespace imafs {

struct RunOptions {
  std::vector<std::string> command;
  std::string root = "/";
  std::string policy;             // as --policy of a mount
  std::string attestation;        // a file; empty: none
  std::string format = "in-toto";
  std::vector<std::string> subjects;  // files that were made, for the attestation
  std::string tpm = "swtpm";
  std::string state;              // kept; empty: a directory that goes at the end
};

// The command's exit status; 127 not found, 126 cannot be run, 128 + n ended by signal n. If that is 0, an ExitCode where the
// attestation failed (kMismatch: the log does not vouch for it; kUsage: a subject or the place is missing). An ExitCode, too, where
// the mount failed: the command then did not run, or was ended. Takes over the signals that end a process; call it once.
int run_run(const RunOptions& options);

}  // namespace imafs
