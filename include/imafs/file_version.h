// The version of a file's content, as far as its attributes tell: what "unchanged" means when no
// lease says it.
#pragma once

#include <sys/stat.h>

#include <cstdint>

#include "imafs/result.h"

namespace imafs {

struct FileVersion {
  std::int64_t size = 0;      // bytes
  std::int64_t mtime_ns = 0;  // nanoseconds since 1970
  std::int64_t ctime_ns = 0;
  bool operator==(const FileVersion&) const = default;
};

FileVersion version_of(const struct stat& attr);

// The version of an open file, and its attributes. The question itself makes newer kernels give the
// next change a time of its own (multigrain timestamps), so ask right before reading.
Result<struct stat> stat_of(int fd);

// CLOCK_REALTIME in nanoseconds.
std::int64_t now_ns();

// Two changes within one grain of the file system's clock can carry the same time. A version whose
// ctime is younger than this when nobody watched the file any more proves nothing (git's racy rule).
// 20 ms: two ticks of the slowest kernel clock (HZ=100). Whole seconds mean a file system that keeps no more, or only every
// other one: ext4 with inodes of 128 bytes, FAT, some NFS.
constexpr std::int64_t clock_grain_of(const FileVersion& version) {
  constexpr std::int64_t tick = 20'000'000, second = 1'000'000'000;
  return version.ctime_ns % second == 0 ? 2 * second + tick : tick;
}

}  // namespace imafs
