#include "imafs/caller_identity.h"

#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string>
#include <vector>

#include "imafs/posix_file.h"

namespace imafs {
namespace {

// The number after `key` in /proc/TID/status: a bit for each signal, the first one is signal 1.
std::uint64_t signals_in(std::string_view status, std::string_view key) {
  const std::size_t at = status.find(key);
  if (at == std::string_view::npos) return 0;
  std::size_t from = at + key.size();
  while (from < status.size() && (status[from] == ' ' || status[from] == '\t')) ++from;
  std::uint64_t signals = 0;
  std::from_chars(status.data() + from, status.data() + status.size(), signals, 16);
  return signals;
}

constexpr std::uint64_t bit_of(int signal) { return std::uint64_t{1} << (signal - 1); }

// setgroups() of the C library changes every thread; the system call changes one.
bool set_groups_of_thread(const std::vector<gid_t>& groups) {
  return ::syscall(SYS_setgroups, groups.size(), groups.data()) == 0;
}

std::vector<gid_t> groups_of(std::uint32_t tid) {
  std::vector<gid_t> groups;
  const auto text = read_file("/proc/" + std::to_string(tid) + "/status", 1 << 20);
  if (!text) return groups;
  std::size_t at = text->find("\nGroups:");
  if (at == std::string::npos) return groups;
  at += 8;
  const std::size_t end = text->find('\n', at);
  const char* from = text->data() + at;
  const char* const last = text->data() + (end == std::string::npos ? text->size() : end);
  while (from < last) {
    gid_t group = 0;
    const auto parsed = std::from_chars(from, last, group);
    if (parsed.ec == std::errc()) {
      groups.push_back(group);
      from = parsed.ptr;
    } else {
      ++from;
    }
  }
  return groups;
}

// A file system id that is not root's takes the capabilities that reach into any directory away. The
// kernel has judged the caller already (default_permissions); we only carry it out.
void keep_file_capabilities() {
  struct __user_cap_header_struct head {_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<struct __user_cap_data_struct, 2> sets{};
  if (::syscall(SYS_capget, &head, sets.data()) != 0) return;
  constexpr std::uint32_t wanted = 1U << CAP_DAC_OVERRIDE | 1U << CAP_DAC_READ_SEARCH | 1U << CAP_FOWNER | 1U << CAP_MKNOD;
  sets[0].effective |= sets[0].permitted & wanted;
  ::syscall(SYS_capset, &head, sets.data());
}

}  // namespace

bool says_dying(std::string_view status) {
  const std::size_t state = status.find("\nState:\t");
  if (state != std::string_view::npos && state + 8 < status.size() && (status[state + 8] == 'Z' || status[state + 8] == 'X')) return true;
  const std::uint64_t pending = signals_in(status, "\nSigPnd:") | signals_in(status, "\nShdPnd:");
  if ((pending & bit_of(SIGKILL)) != 0) return true;  // the kernel sets it for most that end a process
  // By default these stop, or do nothing.
  constexpr std::uint64_t harmless = bit_of(SIGCHLD) | bit_of(SIGCONT) | bit_of(SIGURG) | bit_of(SIGWINCH) | bit_of(SIGSTOP) | bit_of(SIGTSTP) | bit_of(SIGTTIN) | bit_of(SIGTTOU);
  return (pending & ~harmless & ~signals_in(status, "\nSigBlk:") & ~signals_in(status, "\nSigIgn:") & ~signals_in(status, "\nSigCgt:")) != 0;
}

bool is_dying(std::uint32_t tid) {
  if (tid == 0) return true;  // of a process namespace that we cannot see: nothing is known but that it was interrupted
  const auto text = read_file("/proc/" + std::to_string(tid) + "/status", 1 << 20);
  return text ? says_dying(*text) : text.error().code == ENOENT || text.error().code == ESRCH;
}

bool is_in_group(const Caller& caller, std::uint32_t group) {
  if (caller.gid == group) return true;
  const std::vector<gid_t> groups = groups_of(caller.pid);
  return std::find(groups.begin(), groups.end(), group) != groups.end();
}

std::uint64_t effective_capabilities(std::string_view status) {
  constexpr std::string_view key = "\nCapEff:\t";
  const std::size_t at = status.find(key);
  std::uint64_t capabilities = 0;
  if (at != std::string_view::npos) std::from_chars(status.data() + at + key.size(), status.data() + status.size(), capabilities, 16);
  return capabilities;
}

bool is_root_with(const Caller& caller, unsigned capability) {
  if (caller.uid != 0) return false;
  const auto status = read_file("/proc/" + std::to_string(caller.pid) + "/status", 1 << 20);
  return status && (effective_capabilities(*status) >> capability & 1) != 0;
}

ActAs::ActAs(const Caller& caller, bool with_groups) {
  // The umask and the working directory are shared by the threads of a process until asked otherwise.
  thread_local const bool own_umask = ::unshare(CLONE_FS) == 0;
  if (own_umask) ::umask(caller.umask);
  if (::geteuid() != 0) return;
  if (caller.uid == 0 && caller.gid == 0) return;
  if (with_groups) changed_groups_ = set_groups_of_thread(groups_of(caller.pid));
  changed_ids_ = true;
  ::setfsgid(caller.gid);
  ::setfsuid(caller.uid);
  if (caller.uid != 0) keep_file_capabilities();
}

ActAs::~ActAs() {
  if (changed_ids_) {
    ::setfsuid(0);  // gives the capabilities back
    ::setfsgid(0);
  }
  if (changed_groups_) set_groups_of_thread({});
}

}  // namespace imafs
