#include "imafs/log_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>

#include "imafs/digest.h"
#include "imafs/posix_file.h"

namespace imafs {
namespace {

// Whether its file was removed by who held it before us: then another one may be there by now.
bool is_removed(int fd) {
  struct stat attr {};
  return ::fstat(fd, &attr) == 0 && attr.st_nlink == 0;
}

}  // namespace

LogLock::~LogLock() {
  if (fd_ && !removed_at_end_.empty()) ::unlink(removed_at_end_.c_str());  // while it is still locked
}

Result<LogLock> LogLock::take(const std::string& path, const std::string& what, std::chrono::milliseconds wait) {
  LogLock lock;
  lock.fd_.reset(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock.fd_) return fail(errno_error("cannot lock " + what));
  const auto until = std::chrono::steady_clock::now() + wait;
  while (::flock(lock.fd_.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK && std::chrono::steady_clock::now() < until) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      continue;
    }
    if (errno != EWOULDBLOCK) return fail(errno_error("cannot lock " + what));
    const auto holder = read_file(path, 64);
    const std::string pid = holder ? holder->substr(0, holder->find('\n')) : "";
    return fail(EALREADY, what + " is in use by another imafs" + (pid.empty() ? "" : ", process " + pid));
  }
  if (is_removed(lock.fd_.get())) return take(path, what, wait);
  const std::string pid = std::to_string(::getpid()) + "\n";
  if (::ftruncate(lock.fd_.get(), 0) != 0) return fail(errno_error("cannot lock " + what));
  if (auto written = pwrite_all(lock.fd_.get(), as_bytes(pid), 0); !written && written.error().code != ENOSPC) {
    return fail(written.error());
  }
  return lock;
}

Result<LogLock> LogLock::of_directory(const std::string& directory, std::chrono::milliseconds wait) {
  return take(directory + "/lock", "the state directory '" + directory + "'", wait);
}

Result<LogLock> LogLock::of_tpm(const std::string& identity, std::uint32_t pcr) {
  const auto directory = runtime_directory();
  if (!directory) return fail(directory.error());
  const std::string path = *directory + "/tpm-" + file_name_for(identity) + "-pcr" + std::to_string(pcr) + ".lock";
  auto lock = take(path, "PCR " + std::to_string(pcr) + " of this TPM", {});
  if (lock) lock->removed_at_end_ = path;
  return lock;
}

}  // namespace imafs
