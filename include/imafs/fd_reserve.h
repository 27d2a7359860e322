// Two descriptors kept for the way to the TPM and to the journal, for when users have taken all others that the process may have.
#pragma once

#include <fcntl.h>
#include <sys/socket.h>

#include <cerrno>
#include <mutex>
#include <utility>
#include <vector>

#include "imafs/unique_fd.h"

namespace imafs {

// Thread-safe. One for the process: the limit is the process's, too.
class FdReserve {
 public:
  static FdReserve& of_process() {
    static FdReserve reserve;
    return reserve;
  }

  // Runs `make`, which returns a descriptor or -1 and errno. At EMFILE or ENFILE one of the reserve is closed for it.
  template <class Make>
  UniqueFd make(Make&& make) {
    UniqueFd fd(make());
    if (fd || (errno != EMFILE && errno != ENFILE)) {
      refill();
      return fd;
    }
    const std::lock_guard lock(mutex_);
    if (spares_.empty()) {
      errno = EMFILE;
      return {};
    }
    spares_.pop_back();
    return UniqueFd(make());
  }

  // For a socket that is not needed any more: it becomes one of the reserve where one is missing, so that nobody takes its place.
  void give_back(UniqueFd socket) {
    if (!socket) return;
    const std::lock_guard lock(mutex_);
    if (spares_.size() >= kSpares) return;
    ::shutdown(socket.get(), SHUT_RDWR);
    spares_.push_back(std::move(socket));
  }

  void refill() {
    const int code = errno;
    const std::lock_guard lock(mutex_);
    while (spares_.size() < kSpares) {
      UniqueFd spare(::open("/dev/null", O_RDONLY | O_CLOEXEC));
      if (!spare) break;
      spares_.push_back(std::move(spare));
    }
    errno = code;
  }

 private:
  static constexpr std::size_t kSpares = 2;
  std::mutex mutex_;
  std::vector<UniqueFd> spares_;
};

}  // namespace imafs
