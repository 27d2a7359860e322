// Does what the daemon may not or must not do itself, and what was named before it gave up the right to: a process of its own, forked
// first, waits for the number of a command line and performs it. It cannot be asked for anything else. It ends with the daemon.
// Thread-safe.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "imafs/result.h"
#include "imafs/unique_fd.h"

namespace imafs {

using CommandLine = std::vector<std::string>;

// Runs a command line to its end, found in PATH, with nothing of ours: descriptors 0 to 2 are /dev/null, the others closed, the
// environment is PATH and LD_LIBRARY_PATH, no signal is blocked. The answer is the status of waitpid(2).
// ENOENT: there is no such program.
Result<int> run_program(const CommandLine& command);
// The same call, by whoever may make it.
using RunProgram = std::function<Result<int>(const CommandLine&)>;
// Asks the mount at command[0] for the attributes of command[1] in it ("": its root). A daemon that asked itself could not be
// killed while the answer is out: its connection lasts as long as the thread that waits for it.
Result<int> look_at_mount(const CommandLine& command);

struct LauncherAnswer;

class Launcher {
 public:
  // Forks. REQUIRES: the process has one thread, and holds no lock that must not outlive it. `restrict` runs in the new process
  // before it serves: what it gives up. `perform`: what it does with a command line.
  static Result<std::unique_ptr<Launcher>> start(std::vector<CommandLine> commands, const std::function<void()>& restrict,
                                                 const RunProgram& perform = run_program);

  // Ends it. A command that is being performed ends first, or is left behind after some seconds.
  ~Launcher();
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;

  // As `perform`. EPERM: not one of the command lines that start() was given. EPIPE: the launcher is gone. ETIMEDOUT: it takes longer
  // than ten seconds, or one before it does that nobody waits for any more.
  Result<int> run(const CommandLine& command);

 private:
  Launcher(std::vector<CommandLine> commands, UniqueFd socket, pid_t process)
      : commands_(std::move(commands)), process_(process), socket_(std::move(socket)) {}

  // Waits for the answer to the last command. REQUIRES: mutex_ is held.
  Status hear(LauncherAnswer& answer);

  const std::vector<CommandLine> commands_;
  const pid_t process_;
  std::mutex mutex_;
  UniqueFd socket_;              // guarded by mutex_: one command at a time
  unsigned unanswered_ = 0;      // likewise: commands whose answer has not come
};

}  // namespace imafs
