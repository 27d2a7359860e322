// Who waits for the log to grow, and when it last did. Thread-safe.
#pragma once

#include <cstdint>
#include <ctime>
#include <functional>
#include <map>
#include <utility>

#include "imafs/guarded.h"

namespace imafs {

inline timespec time_now() {
  timespec time{};
  (void)::clock_gettime(CLOCK_REALTIME, &time);
  return time;
}

// Outlives the directory that made it: the log's callback cannot be taken back.
class LogGrowth {
 public:
  LogGrowth() : last_(time_now()) {}

  void wait(std::uint64_t handle, std::function<void()> wake) {
    waiting_.with([&](auto& waiting) { waiting[handle] = std::move(wake); });
  }
  void forget(std::uint64_t handle) {
    waiting_.with([&](auto& waiting) { waiting.erase(handle); });
  }
  void grown() {
    last_.with([](timespec& last) { last = time_now(); });
    const auto woken = waiting_.with([](auto& waiting) { return std::exchange(waiting, {}); });
    for (const auto& [handle, wake] : woken) wake();
  }
  timespec last() const {
    return last_.with([](const timespec& last) { return last; });
  }

 private:
  Guarded<std::map<std::uint64_t, std::function<void()>>>
      waiting_;             // by handle; each is called once
  Guarded<timespec> last_;  // the time of the last entry
};

}  // namespace imafs
