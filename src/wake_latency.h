// Counts requests, and while they follow each other quickly keeps idle processors from sleeping: client and daemon take
// turns, and on a virtual machine each waking of a halted processor costs as much as the rest of a request.
//
// Through /dev/cpu_dma_latency, the kernel's PM QoS interface (Documentation/power/pm_qos_interface.rst): what is asked
// for ends with the descriptor. Thread-safe.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "imafs/unique_fd.h"

namespace imafs {

class WakeLatency {
 public:
  // Not `enabled`, not permitted, or on a machine of many processors, all of which would stay awake: only counts.
  explicit WakeLatency(bool enabled);
  ~WakeLatency();
  WakeLatency(const WakeLatency&) = delete;
  WakeLatency& operator=(const WakeLatency&) = delete;

  void count_request() {
    const std::uint64_t number = requests_.fetch_add(1, std::memory_order_relaxed);
    if (number % kMany == 0 && is_quiet_.load(std::memory_order_relaxed)) look();
  }
  std::uint64_t requests() const { return requests_.load(std::memory_order_relaxed); }

 private:
  // Held while there are so many requests in each interval: 8,000 a second.
  static constexpr std::uint64_t kMany = 16;
  static constexpr std::chrono::milliseconds kInterval{2};
  static constexpr long kManyProcessors = 8;

  void look();
  void run();
  void ask_for(std::int32_t microseconds);

  std::atomic<std::uint64_t> requests_{0};
  std::atomic<bool> is_quiet_{false};  // the thread waits for look()
  std::atomic<bool> stopping_{false};
  UniqueFd device_;
  std::thread thread_;
};

}  // namespace imafs
