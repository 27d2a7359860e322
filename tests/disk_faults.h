// System calls that write to a disk, which fail on command. Include it in one source of a test program: its functions take the
// place of the C library's.
#pragma once

#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

namespace imafs {

// While armed, the n-th call of that kind fails with `error`; with `stays` all that follow, too.
struct DiskFaults {
  enum class Kind { kNone, kWrite, kRename };
  static inline std::atomic<Kind> kind{Kind::kNone};
  static inline std::atomic<int> left{0}, error{0};
  static inline std::atomic<bool> stays{false}, has_met{false};

  static void arm(Kind what, int n, int code, bool for_ever = false) {
    left = n;
    error = code;
    stays = for_ever;
    has_met = false;
    kind = what;
  }
  static void disarm() { kind = Kind::kNone; }

  static bool is_its_turn(Kind what) {
    if (kind != what) return false;
    const int before = left;
    if (before == 0 && !stays) return false;
    if (before > 0 && --left > 0) return false;
    has_met = true;
    errno = error;
    return true;
  }
};

}  // namespace imafs

// NOLINTBEGIN
extern "C" {

ssize_t write(int fd, const void* bytes, size_t size) {
  using Call = ssize_t (*)(int, const void*, size_t);
  static const Call real = reinterpret_cast<Call>(::dlsym(RTLD_NEXT, "write"));
  if (fd > 2 && imafs::DiskFaults::is_its_turn(imafs::DiskFaults::Kind::kWrite)) return -1;
  return real(fd, bytes, size);
}

ssize_t pwrite(int fd, const void* bytes, size_t size, off_t offset) {
  using Call = ssize_t (*)(int, const void*, size_t, off_t);
  static const Call real = reinterpret_cast<Call>(::dlsym(RTLD_NEXT, "pwrite"));
  if (imafs::DiskFaults::is_its_turn(imafs::DiskFaults::Kind::kWrite)) {
    // A part of it finds room, as on a disk that has just been filled.
    const int code = errno;
    if (size > 7) (void)!real(fd, bytes, size / 2, offset);
    errno = code;
    return -1;
  }
  return real(fd, bytes, size, offset);
}

int fallocate(int fd, int mode, off_t offset, off_t size) {
  using Call = int (*)(int, int, off_t, off_t);
  static const Call real = reinterpret_cast<Call>(::dlsym(RTLD_NEXT, "fallocate"));
  if (imafs::DiskFaults::is_its_turn(imafs::DiskFaults::Kind::kWrite)) return -1;
  return real(fd, mode, offset, size);
}

int rename(const char* from, const char* to) noexcept {
  using Call = int (*)(const char*, const char*);
  static const Call real = reinterpret_cast<Call>(::dlsym(RTLD_NEXT, "rename"));
  if (imafs::DiskFaults::is_its_turn(imafs::DiskFaults::Kind::kRename)) return -1;
  return real(from, to);
}

}  // extern "C"
// NOLINTEND
