// What the process that serves a mount gives up: descriptors of its caller, capabilities, new privileges, system calls.
// docs/ARCHITECTURE.md has each capability with its reason.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "imafs/result.h"

namespace imafs {

// Descriptors 0 to 2 exist afterwards, so that no file of ours gets one of these numbers.
void fill_standard_descriptors();
// Closes what the caller left open above 2, but for `kept` (-1: nothing), and forgets the sockets that a service manager handed
// over (sd_listen_fds(3)). REQUIRES: nothing of ours is open yet.
void close_inherited_descriptors(int kept);
// The number in a path that names a descriptor above 2 ("/dev/fd/63", "/proc/self/fd/63"); -1: it names none.
int descriptor_named(const std::string& path);

// The capabilities of the daemon, of a program that its launcher starts (swtpm), and of the process that looks at the mount from
// outside: a bit each.
std::uint64_t daemon_capabilities();
std::uint64_t launcher_capabilities();
std::uint64_t looker_capabilities();
// Reduces the capabilities of this thread, its bounding set and what it may inherit to `wanted`. Threads that it makes later
// have no more. REQUIRES: no other thread. Who has none keeps none.
void keep_capabilities(std::uint64_t wanted);
// Programs that are started from here on gain nothing by setuid bits and file capabilities.
void forbid_new_privileges();

struct FilterOptions {
  bool io_uring = false;
  bool programs = false;  // a TCTI that runs a program for each connection (cmd:)
};
// From here on a system call that the daemon does not make ends it, in any of its threads: the kernel kills the process, and
// its clients get ENOTCONN. Also forbids new privileges, in all threads. ENOSYS: this build or this kernel has no filters.
Status filter_system_calls(const FilterOptions& options);

}  // namespace imafs
