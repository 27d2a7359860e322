// What imafs's exit status says. Listed in README.md; numbers never change their meaning.
#pragma once

namespace imafs {

enum class ExitCode {
  kOk = 0,
  kMismatch = 1,        // verify: the log does not fit
  kUsage = 2,           // a wrong option or argument; verify: could not check
  kMountpoint = 3,      // missing, no directory, or in use
  kBacking = 4,         // the backing directory cannot be opened
  kPolicy = 5,          // unreadable, a bad rule, or empty with --require-policy
  kTpm = 6,             // no TPM answers, or it refuses
  kPcr = 7,             // a PCR that imafs must not use
  kStateInUse = 8,      // state directory or PCR held by another imafs
  kNoSwtpm = 9,         // swtpm is not installed
  kLogDoesNotFit = 10,  // the journal does not replay to the PCR
  kState = 11,          // the state directory cannot be used
  kMountFailed = 12,    // mount(2) or libfuse refused
  kInternal = 13,       // out of memory, or a fault of ours
};

}  // namespace imafs
