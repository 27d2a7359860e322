// Notices to the kernel. One may wait for a lock that a request holds, for as long as that request takes; it stops no other: a
// notice of the same directory waits behind it, another thread goes on with the rest. Thread-safe.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <vector>

namespace imafs {

class NoticeQueue {
 public:
  static constexpr std::size_t kThreads = 32;  // so many directories may be locked at once
  static constexpr std::size_t kMost = 4096;   // notices that wait before post() does
  static constexpr std::chrono::milliseconds kHangs{100}, kBehind{300};

  NoticeQueue() { start_thread(); }
  // What is queued is dropped. REQUIRES: nothing is posted any more, and no notice hangs for good.
  ~NoticeQueue();
  NoticeQueue(const NoticeQueue&) = delete;
  NoticeQueue& operator=(const NoticeQueue&) = delete;

  // `key`: the directory whose lock the notice takes; notices of one key are sent in their order.
  // A notice that was lost would leave the kernel with what is wrong: without memory for it the process ends.
  void post(std::uint64_t key, std::function<void()> send) noexcept;
  // Whether a notice is late: until it has been sent, what the kernel knows may be wrong.
  bool is_behind() const {
    if (pending_ == 0) return false;
    const std::lock_guard lock(mutex_);
    return lateness() > kBehind;
  }

 private:
  using Clock = std::chrono::steady_clock;
  struct Notice {
    std::uint64_t key = 0;
    Clock::time_point posted;
    std::function<void()> send;
  };
  struct Sending {
    Clock::time_point since;
    std::deque<Notice> behind;  // of the same key
  };
  void start_thread();  // REQUIRES: the mutex is held, or the constructor
  void start_another();  // REQUIRES: the mutex is held
  void run();
  bool may_start() const;  // REQUIRES: the mutex is held: nobody is at work, or all that are hang
  Clock::duration lateness() const;  // REQUIRES: the mutex is held

  mutable std::mutex mutex_;
  std::condition_variable wake_, room_;
  std::deque<Notice> notices_;                           // guarded by mutex_
  std::unordered_map<std::uint64_t, Sending> sending_;   // guarded by mutex_
  std::size_t idle_ = 0;                                 // guarded by mutex_; threads
  bool stopping_ = false;                                // guarded by mutex_
  std::atomic<std::size_t> pending_{0};                  // not sent yet; changed under mutex_
  std::vector<std::thread> threads_;                     // guarded by mutex_
};

}  // namespace imafs
