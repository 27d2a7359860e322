// The first process of an `imafs run`'s command: it makes the measured tree the root, starts the command, hands signals on
// to it, and waits for whatever the command leaves behind.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "imafs/unique_fd.h"

namespace imafs {

struct RunCommand {
  std::vector<std::string> words;
  std::string directory;  // to run it in, on the machine
  std::string mount;      // the measured tree
  std::string root;       // what the measured tree shows, on the machine, as a real path
  sigset_t mask{};        // the signals that it has blocked at its start
};

// What the first process tells the stage: `began` once, when the command is about to be executed, then `ended`.
struct RunEnd {
  enum class Kind : std::uint8_t { kBegan, kEnded, kNoCommand };  // kNoCommand: the tree could not be entered; it has said why
  Kind kind = Kind::kEnded;
  int status = 0;            // exit status, 127 not found, 126 cannot be run, 128 + n ended by signal n
  std::int64_t input = -1;   // where the command left off in its standard input, if that was opened anew; else -1
};

// Runs in a new process that is the first one of a PID namespace and has a mount namespace of its own. Signals come as bytes on
// `signals`; RunEnd goes to `result`. When `signals` ends the run is given up. Every other descriptor above 2 is closed.
[[noreturn]] void run_as_init(const RunCommand& command, UniqueFd signals, UniqueFd result) noexcept;

}  // namespace imafs
