// Where an `imafs run` happens: a mount namespace with the measured tree, its daemon and its private TPM, all in a PID namespace
// whose first process ends with whoever called. Nothing of it is on a disk but what --state keeps, so there is nothing to remove.
#pragma once

#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>

#include "imafs/cli_run.h"
#include "imafs/unique_fd.h"
#include "run_init.h"

namespace imafs {

// The directory that every machine with imafs has, where a stage covers it.
inline constexpr const char* kRunDirectory = "/var/lib/imafs/run";

// Used by one process, which is the first one of its PID namespace and has a mount namespace of its own.
class Stage {
 public:
  Stage() = default;
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;
  // Unmounts and waits for the daemon. Where that does not come about, the end of this process is the end of all.
  ~Stage();

  // An exit status: 0 if the mount stands. Says what is wrong.
  int make(const RunOptions& options);
  // Runs the command to its end; tells `began` when it has begun. nullopt: it has been said why there is no result.
  std::optional<RunEnd> run(const RunCommand& command, UniqueFd signals, const std::function<void()>& began);

  const std::string& mount() const { return mount_; }
  const std::string& state() const { return state_; }

 private:
  int mount_tree(const RunOptions& options, const std::string& mount);
  bool daemon_has_ended(pid_t ended) const { return daemon_ > 0 && ended == daemon_; }
  std::string mount_, state_;
  pid_t daemon_ = 0;
};

}  // namespace imafs
