// The private TPM: a swtpm of our own, in the state directory. A process of its own that survives a
// crash of the daemon, is found again by its socket, and ends with a clean unmount.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <memory>
#include <string>

#include "imafs/launcher.h"
#include "imafs/result.h"
#include "imafs/unique_fd.h"

namespace imafs {

class SwtpmProcess {
 public:
  // Finds the swtpm of `directory` (made with 0700 if missing), or starts one with PCRs reset. `run` starts it, now and
  // whenever it has to be started again.
  // ENOENT: swtpm is not installed. ENOSPC, EROFS, EMFILE and so on: as they are.
  static Result<std::unique_ptr<SwtpmProcess>> find_or_start(const std::string& directory, RunProgram run = run_program);
  // How it is started for `directory`: what `run` is asked for.
  static Result<CommandLine> command_line(const std::string& directory);

  const std::string& tcti() const { return tcti_; }  // "swtpm:path=..."
  pid_t pid() const { return pid_; }
  bool was_running() const { return was_running_; }

  // Starts it again if it has ended: its PCRs begin anew. One that may still live is never replaced: what keeps us from
  // knowing is the error. `has_failed`: it lives and is in failure mode, which only a new start ends.
  Status revive(bool has_failed = false);
  // Ends it and waits until it is gone. Never touches a process that is not this swtpm.
  void stop();

 private:
  SwtpmProcess(std::string directory, std::string socket, RunProgram run);
  Result<pid_t> noted_pid() const;      // 0: none
  Result<pid_t> pid_by_command() const;  // 0: none
  // Whether there is one that lives; from then on it is known by process_.
  Result<bool> find();
  Result<bool> adopt(pid_t pid);
  Status start();
  Status end_useless();
  Result<bool> is_ours(pid_t pid) const;
  bool has_ended(std::chrono::milliseconds wait) const;
  Result<bool> answers() const;

  const std::string directory_;
  const std::string socket_;  // data; the control socket has ".ctrl" behind it
  const std::string tcti_;
  const RunProgram run_;
  pid_t pid_ = 0;
  UniqueFd process_;  // a pidfd: nobody else can get that number
  bool was_running_ = false;
};

}  // namespace imafs
