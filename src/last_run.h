// What the daemon before this one left behind: whether it ended cleanly, and who still holds files of its mount.
//
// With passthrough a descriptor or a mapping goes on reading the backing file after the daemon's death, and nobody sees who
// writes to it then. Such holders cannot be stopped; the log says which files they hold.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "imafs/result.h"

namespace imafs {

class LastRun {
 public:
  // Of the state directory, whose lock the caller has. Nothing: it ended cleanly, the machine was started anew since, or there
  // was none.
  static std::optional<LastRun> of(const std::string& state_directory);

  // Paths inside the mount of regular files that processes hold by a descriptor or a mapping of the dead mount. What this
  // process may not see of others is left out; at most `limit`.
  std::vector<std::string> held_files(const std::string& mountpoint, std::size_t limit) const;

  // Notes that a daemon runs, with the mount at `mountpoint`; removed at a clean end.
  static Status begin(const std::string& state_directory, const std::string& mountpoint);
  static void end(const std::string& state_directory);

 private:
  std::uint64_t mount_ = 0;  // the kernel's number of the mount; 0: it died before it had one
  std::string device_;       // "major:minor"
};

}  // namespace imafs
