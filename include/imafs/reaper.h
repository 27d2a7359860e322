// A thread that does what nobody waits for, a little later and many at a time: closing descriptors. The last close of
// a deleted file frees its blocks, and each awakening of a thread costs more than most of these jobs. What waits for it
// still counts as open: who opens more takes turns with it. Thread-safe.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace imafs {

class Reaper {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kGather{2};
  static constexpr std::chrono::milliseconds kStuck{500}, kGivesUp{5000};
  static constexpr std::size_t kThreads = 8;

  // `most`: how many jobs may wait before keep_up() does.
  explicit Reaper(std::size_t most) : most_(most) { threads_.emplace_back([this] { run(); }); }
  ~Reaper() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  Reaper(const Reaper&) = delete;
  Reaper& operator=(const Reaper&) = delete;

  void post(std::function<void()> job) {
    bool first = false;
    {
      const std::lock_guard lock(mutex_);
      first = jobs_.empty();
      // A file system that does not answer holds up what is closed on it only.
      jobs_.push_back(std::move(job));
      if (busy_ == threads_.size() && busy_ < kThreads && Clock::now() - last_start_ > kStuck) start_another();
      ++left_;
    }
    if (first) wake_.notify_one();
  }

  // Returns once all that was posted before has run, or soon, while a file system does not answer.
  void settle() { wait_for(0, kStuck); }
  // Before a descriptor is opened: waits while there are too many to be closed. Not under a lock that a job may take.
  void keep_up() {
    if (left_ > most_) wait_for(most_, kGivesUp);
  }

 private:
  // REQUIRES: the mutex is held. Without another thread the job waits for those that there are.
  void start_another() {
    try {
      threads_.emplace_back([this] { run(); });
    } catch (const std::exception&) {
    }
  }
  void wait_for(std::size_t most, std::chrono::milliseconds longest) {
    std::unique_lock lock(mutex_);
    if (is_stuck_) return;
    const bool done = done_.wait_for(lock, longest, [&] { return left_ <= most; });
    is_stuck_ = !done && longest == kGivesUp;
  }

  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      if (!stopping_) {
        lock.unlock();
        std::this_thread::sleep_for(kGather);
        lock.lock();
      }
      auto jobs = std::exchange(jobs_, {});
      if (jobs.empty()) continue;
      ++busy_;
      last_start_ = Clock::now();
      lock.unlock();
      for (auto& job : jobs) job();
      const std::size_t done = jobs.size();
      jobs.clear();  // closes what they hold
      lock.lock();
      left_ -= done;
      --busy_;
      is_stuck_ = false;
      done_.notify_all();
    }
  }

  const std::size_t most_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::function<void()>> jobs_;  // guarded by mutex_
  std::atomic<std::size_t> left_{0};         // jobs not yet done; changed under mutex_
  bool stopping_ = false;                    // guarded by mutex_
  bool is_stuck_ = false;                    // guarded by mutex_; somebody has waited in vain
  std::size_t busy_ = 0;                     // guarded by mutex_; threads at work,
  Clock::time_point last_start_;             // guarded by mutex_; the last of them since then
  std::vector<std::thread> threads_;         // last: they use the rest; guarded by mutex_ until the end
};

}  // namespace imafs
