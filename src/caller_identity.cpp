#include "imafs/caller_identity.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <optional>
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

// The numbers after `key` up to the end of the line.
template <class Number>
std::vector<Number> numbers_in(std::string_view text, std::string_view key) {
  std::vector<Number> numbers;
  std::size_t at = text.find(key);
  if (at == std::string_view::npos) return numbers;
  at += key.size();
  const char* from = text.data() + at;
  const char* const last = text.data() + std::min(text.find('\n', at), text.size());
  while (from < last) {
    Number number = 0;
    const auto parsed = std::from_chars(from, last, number);
    if (parsed.ec == std::errc()) numbers.push_back(number);
    from = parsed.ec == std::errc() ? parsed.ptr : from + 1;
  }
  return numbers;
}

std::string proc_path(std::uint32_t tid, const char* name) { return "/proc/" + std::to_string(tid) + "/" + name; }

std::string status_of(std::uint32_t tid) {
  if (tid == 0) return {};
  return read_file(proc_path(tid, "status"), 1 << 20).value_or("");
}

std::vector<gid_t> groups_of(std::uint32_t tid) { return numbers_in<gid_t>(status_of(tid), "\nGroups:"); }

struct Capabilities {
  std::uint64_t effective = 0, permitted = 0, inheritable = 0;
};

// Of a thread; 0 is the calling one. Costs a thirtieth of reading /proc/TID/status.
std::optional<Capabilities> capabilities_of(std::uint32_t tid) {
  struct __user_cap_header_struct head {_LINUX_CAPABILITY_VERSION_3, static_cast<int>(tid)};
  std::array<struct __user_cap_data_struct, 2> sets{};
  if (::syscall(SYS_capget, &head, sets.data()) != 0) return std::nullopt;
  const auto both = [](std::uint32_t low, std::uint32_t high) { return std::uint64_t{high} << 32 | low; };
  return Capabilities{both(sets[0].effective, sets[1].effective), both(sets[0].permitted, sets[1].permitted),
                      both(sets[0].inheritable, sets[1].inheritable)};
}

bool set_effective(const Capabilities& own, std::uint64_t effective) {
  struct __user_cap_header_struct head {_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<struct __user_cap_data_struct, 2> sets{};
  for (unsigned half = 0; half < 2; ++half) {
    sets[half].effective = static_cast<std::uint32_t>(effective >> (32 * half));
    sets[half].permitted = static_cast<std::uint32_t>(own.permitted >> (32 * half));
    sets[half].inheritable = static_cast<std::uint32_t>(own.inheritable >> (32 * half));
  }
  return ::syscall(SYS_capset, &head, sets.data()) == 0;
}

constexpr std::uint64_t capability_bit(unsigned capability) { return std::uint64_t{1} << capability; }

// What decides about files. The kernel grants the first of them for single files in other user namespaces, too.
constexpr std::uint64_t kOfSingleFiles = capability_bit(CAP_CHOWN) | capability_bit(CAP_DAC_OVERRIDE) | capability_bit(CAP_DAC_READ_SEARCH) |
                                         capability_bit(CAP_FOWNER) | capability_bit(CAP_FSETID) | capability_bit(CAP_SETFCAP);
constexpr std::uint64_t kOfFiles = kOfSingleFiles | capability_bit(CAP_MKNOD) | capability_bit(CAP_LINUX_IMMUTABLE) | capability_bit(CAP_SYS_ADMIN);

bool is_in_our_user_namespace(std::uint32_t tid) {
  const auto link_of = [](const char* path) {
    std::array<char, 64> text{};
    const ssize_t size = ::readlink(path, text.data(), text.size());
    return std::string(text.data(), static_cast<std::size_t>(std::max<ssize_t>(size, 0)));
  };
  static const std::string ours = link_of("/proc/self/ns/user");
  return tid != 0 && !ours.empty() && link_of(proc_path(tid, "ns/user").c_str()) == ours;
}

// The same of a thread of root, which nothing is gained by knowing late: remembered for a moment.
bool root_is_in_our_user_namespace(std::uint32_t tid) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::milliseconds kMoment{100};
  thread_local std::uint32_t known = 0;
  thread_local Clock::time_point until;
  const auto now = Clock::now();
  if (tid != 0 && tid == known && now < until) return true;
  if (!is_in_our_user_namespace(tid)) return false;
  known = tid;
  until = now + kMoment;
  return true;
}

// Whether the caller's user namespace has a number for `id`. A line of the map: first number inside, first outside, how many.
bool maps(std::uint32_t tid, const char* map, std::uint64_t id) {
  const std::string text = "\n" + read_file(proc_path(tid, map), 1 << 20).value_or("");
  for (std::size_t at = text.find('\n'); at != std::string::npos; at = text.find('\n', at + 1)) {
    const auto line = numbers_in<std::uint64_t>(std::string_view(text).substr(at), "\n");
    if (line.size() == 3 && id >= line[1] && id - line[1] < line[2]) return true;
  }
  return false;
}

std::optional<struct stat> stat_of_object(const ActAs::Object& object) {
  struct stat attr {};
  if (::fstatat(object.fd, object.name, &attr, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) != 0) return std::nullopt;
  return attr;
}

// What the caller may use on these objects of the capabilities it has.
std::uint64_t usable_capabilities(const Caller& caller, std::initializer_list<ActAs::Object> objects) {
  const auto has = caller.pid == 0 ? std::nullopt : capabilities_of(caller.pid);
  if (!has || has->effective == 0) return 0;
  if (caller.uid == 0 ? root_is_in_our_user_namespace(caller.pid) : is_in_our_user_namespace(caller.pid)) return has->effective;
  for (const auto& object : objects) {
    const auto attr = stat_of_object(object);
    if (!attr && errno == ENOENT) continue;
    if (!attr || !maps(caller.pid, "uid_map", attr->st_uid) || !maps(caller.pid, "gid_map", attr->st_gid)) return 0;
  }
  return has->effective & kOfSingleFiles;
}

// A file system that is stacked on the mount (overlayfs) asks as who mounted it, whoever its own caller is: root may do so.
bool is_asked_by_kernel(const Caller& caller) {
  const auto ids = numbers_in<std::uint32_t>(status_of(caller.pid), "\nUid:");
  return caller.uid == 0 && ids.size() == 4 && ids[3] != 0;
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

bool has_capability(const Caller& caller, unsigned capability) {
  const auto has = caller.pid == 0 ? std::nullopt : capabilities_of(caller.pid);
  return has && (has->effective & capability_bit(capability)) != 0 && is_in_our_user_namespace(caller.pid);
}

ActAs::ActAs(const Caller& caller, std::initializer_list<Object> objects, Groups groups) {
  // The umask and the working directory are shared by the threads of a process until asked otherwise. Our own groups are
  // nobody's business.
  thread_local const bool own_umask = [] {
    if (::geteuid() == 0) (void)set_groups_of_thread({});
    return ::unshare(CLONE_FS) == 0;
  }();
  own_umask_ = own_umask;
  if (own_umask_) umask_ = ::umask(caller.umask);
  if (::geteuid() != 0) return;
  const auto own = capabilities_of(0);
  if (!own) {
    valid_ = false;
    restore();
    return;
  }
  const std::uint64_t usable = usable_capabilities(caller, objects);
  const std::uint64_t decisive = own->permitted & kOfFiles;
  const bool may_all = caller.uid == 0 && ((usable & decisive) == decisive || is_asked_by_kernel(caller));
  if (may_all && caller.gid == 0) return;
  changed_ids_ = true;
  capabilities_ = own->effective;
  const auto is_owner = [&](const Object& object) {
    const auto attr = stat_of_object(object);
    return *object.name != '\0' || (attr && attr->st_uid == caller.uid && (attr->st_mode & S_ISGID) == 0);
  };
  if (groups == Groups::kAlways || !std::all_of(objects.begin(), objects.end(), is_owner)) {
    changed_groups_ = set_groups_of_thread(groups_of(caller.pid));
    valid_ = changed_groups_;
  }
  ::setfsgid(caller.gid);
  ::setfsuid(caller.uid);
  constexpr auto kAsk = static_cast<uid_t>(-1);
  valid_ = valid_ && static_cast<uid_t>(::setfsuid(kAsk)) == caller.uid && static_cast<gid_t>(::setfsgid(kAsk)) == caller.gid &&
           set_effective(*own, may_all ? own->effective : own->permitted & usable);
  if (!valid_) restore();
}

ActAs::~ActAs() { restore(); }

void ActAs::restore() {
  const int code = errno;  // the call's
  if (changed_ids_) {
    ::setfsuid(0);
    ::setfsgid(0);
    if (const auto own = capabilities_of(0)) (void)set_effective(*own, capabilities_);
  }
  if (changed_groups_) (void)set_groups_of_thread({});
  if (own_umask_) ::umask(umask_);
  changed_ids_ = changed_groups_ = own_umask_ = false;
  errno = code;
}

Status may_access(const Caller& caller, int fd, int mask) {
  struct stat attr {};
  if (::fstatat(fd, "", &attr, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) != 0) return fail(errno_error("stat"));
  // The owner's bits decide for the owner, whatever groups and lists say.
  if (caller.uid == attr.st_uid && (attr.st_mode >> 6 & static_cast<mode_t>(mask)) == static_cast<mode_t>(mask) && (mask & X_OK) == 0) return {};
  const ActAs identity(caller, {{fd}});
  if (!identity) return fail(EPERM, "the caller's identity cannot be taken");
  if (::faccessat(fd, "", mask, AT_EMPTY_PATH | AT_EACCESS) != 0) return fail(errno_error("open"));
  return {};
}

}  // namespace imafs
