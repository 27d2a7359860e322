#include "imafs/service_manager.h"

#include <systemd/sd-daemon.h>

#include <chrono>
#include <cstdlib>

namespace imafs {

void notify_service_manager(const char* state) { (void)::sd_notify(0, state); }

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
