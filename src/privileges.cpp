#include "imafs/privileges.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <initializer_list>
#include <string_view>

namespace imafs {
namespace {

std::uint64_t bits_of(std::initializer_list<int> capabilities) {
  std::uint64_t bits = 0;
  for (const int capability : capabilities) bits |= 1ULL << capability;
  return bits;
}

}  // namespace

void fill_standard_descriptors() {
  for (int fd = 0; fd < 3; ++fd) {
    // open(2) takes the lowest free number: this one.
    if (::fcntl(fd, F_GETFD) < 0 && errno == EBADF) (void)!::open("/dev/null", fd == 0 ? O_RDONLY : O_WRONLY);
  }
}

int descriptor_named(const std::string& path) {
  for (const std::string_view prefix : {"/dev/fd/", "/proc/self/fd/"}) {
    if (!path.starts_with(prefix)) continue;
    int number = -1;
    const char* const end = path.data() + path.size();
    const auto parsed = std::from_chars(path.data() + prefix.size(), end, number);
    if (parsed.ec == std::errc() && parsed.ptr == end && number > 2) return number;
  }
  return -1;
}

void close_inherited_descriptors(int kept) {
  for (const char* name : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}) ::unsetenv(name);
  if (kept < 0) {
    ::close_range(3, ~0U, 0);
    return;
  }
  const auto number = static_cast<unsigned>(kept);
  if (number > 3) ::close_range(3, number - 1, 0);
  ::close_range(number + 1, ~0U, 0);
  ::fcntl(kept, F_SETFD, FD_CLOEXEC);
}

std::uint64_t daemon_capabilities() {
  return bits_of({CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID, CAP_LEASE, CAP_LINUX_IMMUTABLE, CAP_MKNOD,
                  CAP_SETFCAP, CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN, CAP_SYS_PTRACE});
}

std::uint64_t launcher_capabilities() { return bits_of({CAP_DAC_OVERRIDE, CAP_SYS_RESOURCE}); }

std::uint64_t looker_capabilities() { return bits_of({CAP_DAC_READ_SEARCH}); }

void keep_capabilities(std::uint64_t wanted) {
  ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  // EINVAL: the kernel's last one was the one before. EPERM, of who has no CAP_SETPCAP: there is none to drop then.
  for (int capability = 0; ::prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; ++capability) {
    if ((wanted >> capability & 1) == 0) ::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
  }
  if (::geteuid() == 0) (void)!::setgroups(0, nullptr);
  struct __user_cap_header_struct head {_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<struct __user_cap_data_struct, 2> sets{};
  if (::syscall(SYS_capget, &head, sets.data()) != 0) return;
  for (std::size_t half = 0; half < sets.size(); ++half) {
    sets[half].permitted &= static_cast<std::uint32_t>(wanted >> (32 * half));
    sets[half].effective = sets[half].permitted;
    sets[half].inheritable = 0;
  }
  ::syscall(SYS_capset, &head, sets.data());
}

void forbid_new_privileges() { ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); }

}  // namespace imafs
