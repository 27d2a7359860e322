// "One log, one writer": locks on a state directory and on a PCR of a TPM, held for the life of the
// object and given back by the kernel when the process dies.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "imafs/result.h"
#include "imafs/unique_fd.h"

namespace imafs {

class LogLock {
 public:
  LogLock() = default;
  LogLock(LogLock&&) = default;
  LogLock& operator=(LogLock&&) = default;
  ~LogLock();
  // EALREADY: another process holds it, and did so for all of `wait` (a daemon that was unmounted takes a
  // moment to end); the sentence says which.
  static Result<LogLock> of_directory(const std::string& directory, std::chrono::milliseconds wait = {});
  static Result<LogLock> of_tpm(const std::string& identity, std::uint32_t pcr);

 private:
  static Result<LogLock> take(const std::string& path, const std::string& what, std::chrono::milliseconds wait);
  UniqueFd fd_;
  std::string removed_at_end_;  // there would be one more file for each private TPM that ever was
};

}  // namespace imafs
