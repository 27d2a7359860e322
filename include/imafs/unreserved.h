// Blocks that a file system keeps for root are for root's programs, not for what passes through a daemon of root's. The file
// system asks for the file system id of the thread that writes (ext4's resuid is 0 unless set), or of the one that registered a
// backing file, and for CAP_SYS_RESOURCE, which the daemon does not have.
#pragma once

#include <linux/capability.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <array>
#include <cstdint>

namespace imafs {

// While one lives this thread writes as `user`, with no effect on ownership or permissions: its descriptors are open already.
// Threads of a plain user stay who they are.
class Unreserved {
 public:
  static constexpr uid_t kNobody = 65534;

  // Keeps the capabilities that go with root's file system id: without CAP_FSETID the file system would judge setuid and setgid
  // bits by a thread that is in none of the writer's groups.
  explicit Unreserved(uid_t user = kNobody) : changed_(user != 0 && ::geteuid() == 0) {
    if (!changed_) return;
    ::setfsuid(user);
    raise_capabilities();
  }
  ~Unreserved() {
    if (changed_) ::setfsuid(0);  // gives the capabilities back
  }
  Unreserved(const Unreserved&) = delete;
  Unreserved& operator=(const Unreserved&) = delete;

 private:
  static void raise_capabilities() {
    struct __user_cap_header_struct head {_LINUX_CAPABILITY_VERSION_3, 0};
    std::array<struct __user_cap_data_struct, 2> sets{};
    if (::syscall(SYS_capget, &head, sets.data()) != 0) return;
    for (auto& half : sets) half.effective = half.permitted;
    ::syscall(SYS_capset, &head, sets.data());
  }

  const bool changed_;
};

}  // namespace imafs
