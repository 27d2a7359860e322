// systemd's side of a daemon, sd_notify(3)'s protocol: readiness, and a watchdog that looks before it barks.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace imafs {

// One datagram to $NOTIFY_SOCKET, "READY=1"; nothing without it.
void notify_service_manager(const char* state);

// While it lives, and $WATCHDOG_USEC is set: as long as `alive` returns true, says so at half that time.
class Watchdog {
 public:
  explicit Watchdog(std::function<bool()> alive);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  const std::function<bool()> alive_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace imafs
