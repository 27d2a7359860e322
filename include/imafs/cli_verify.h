// `imafs verify`: replays a log and compares it with PCR values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "imafs/exit_code.h"
#include "imafs/verifier.h"

namespace imafs {

struct VerifyOptions {
  std::string target;      // a mount point, a state or archive directory, a binary log, or a kexec blob
  std::string state;       // or a state directory: the archives with what they end in, and the live log
  std::string pcr_values;  // a file to compare with instead of the mount's TPM
  std::string tcti;        // of the mount's TPM, where the mount's own string may not be opened unasked
  std::vector<std::uint32_t> pcrs;  // the log must be about these; empty: the mount's own PCR, or 10
  bool allow_sha1 = false;  // a bank may rest on SHA-1 digests padded with zeros
  bool json = false;
  bool quiet = false;      // nothing on stdout
};

// Of `target`, once. EBADMSG, ENODATA: the log does not even decode.
Result<Verification> verify_target(const VerifyOptions& options);
// kOk verified, kMismatch not, kUsage could not check.
ExitCode run_verify(const VerifyOptions& options);

}  // namespace imafs
