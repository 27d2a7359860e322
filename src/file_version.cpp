#include "imafs/file_version.h"

#include <ctime>

namespace imafs {
namespace {

std::int64_t to_ns(const struct timespec& time) {
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

FileVersion version_of(const struct stat& attr) {
  return {attr.st_size, to_ns(attr.st_mtim), to_ns(attr.st_ctim)};
}

Result<struct stat> stat_of(int fd) {
  struct stat attr {};
  if (::fstat(fd, &attr) != 0) return fail(errno_error("fstat"));
  return attr;
}

std::int64_t now_ns() {
  struct timespec now {};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return to_ns(now);
}

}  // namespace imafs
