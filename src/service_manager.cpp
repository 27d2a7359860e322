#include "imafs/service_manager.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "imafs/unique_fd.h"

namespace imafs {

void notify_service_manager(const char* state) {
  const char* const path = ::getenv("NOTIFY_SOCKET");
  if (!path || (path[0] != '/' && path[0] != '@')) return;
  struct sockaddr_un address {};
  const std::size_t size = std::strlen(path);
  if (size >= sizeof address.sun_path) return;
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path, size);
  if (path[0] == '@') address.sun_path[0] = '\0';
  const UniqueFd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  (void)::sendto(fd.get(), state, std::strlen(state), MSG_NOSIGNAL, reinterpret_cast<struct sockaddr*>(&address),
                 static_cast<socklen_t>(offsetof(struct sockaddr_un, sun_path) + size));
}

Watchdog::Watchdog(std::function<bool()> alive) : alive_(std::move(alive)) {
  const char* const limit = ::getenv("WATCHDOG_USEC");
  const long long microseconds = limit ? std::atoll(limit) : 0;
  if (microseconds <= 0) return;
  thread_ = std::thread([this, pause = std::chrono::microseconds(microseconds / 2)] {
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, pause, [this] { return stopping_; })) {
      lock.unlock();
      if (alive_()) notify_service_manager("WATCHDOG=1");
      lock.lock();
    }
  });
}

Watchdog::~Watchdog() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

}  // namespace imafs
