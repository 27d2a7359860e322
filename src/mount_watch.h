// Tells when the machine's mount table changes, and again a second later as long as the listener asks for that. Its thread runs from construction to destruction.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <thread>
#include <utility>

#include "imafs/unique_fd.h"

namespace imafs {

class MountWatch {
 public:
  explicit MountWatch(std::function<bool()> changed)  // true: not done yet
      : changed_(std::move(changed)),
        table_(::open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC)),
        stop_(::eventfd(0, EFD_CLOEXEC)) {
    if (table_ && stop_) thread_ = std::thread([this] { run(); });
  }
  ~MountWatch() {
    const std::uint64_t one = 1;
    if (thread_.joinable() && ::write(stop_.get(), &one, sizeof one) == sizeof one) thread_.join();
  }
  MountWatch(const MountWatch&) = delete;
  MountWatch& operator=(const MountWatch&) = delete;

 private:
  void run() {
    std::array<struct pollfd, 2> watched{{{stop_.get(), POLLIN, 0}, {table_.get(), POLLPRI, 0}}};
    bool again = false;
    for (;;) {
      const int ready = ::poll(watched.data(), watched.size(), again ? 1000 : -1);
      if (ready < 0 && errno != EINTR) return;
      if (ready < 0) continue;
      if ((watched[0].revents & POLLIN) != 0) return;
      again = changed_();
    }
  }

  const std::function<bool()> changed_;
  const UniqueFd table_;
  const UniqueFd stop_;
  std::thread thread_;
};

}  // namespace imafs
