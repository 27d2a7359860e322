// A thread that does what nobody waits for, a little later and many at a time: closing descriptors. The last close of
// a deleted file frees its blocks, and each awakening of a thread costs more than most of these jobs. What waits for it
// still counts as open: who opens more takes turns with it. Thread-safe.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace imafs {

class Reaper {
 public:
  static constexpr std::chrono::milliseconds kGather{2};

  // `most`: how many jobs may wait before keep_up() does.
  explicit Reaper(std::size_t most) : most_(most), thread_([this] { run(); }) {}
  ~Reaper() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }
  Reaper(const Reaper&) = delete;
  Reaper& operator=(const Reaper&) = delete;

  void post(std::function<void()> job) {
    bool first = false;
    {
      const std::lock_guard lock(mutex_);
      first = jobs_.empty();
      jobs_.push_back(std::move(job));
      ++left_;
    }
    if (first) wake_.notify_one();
  }

  // Returns once all that was posted before has run.
  void settle() { wait_for(0); }
  // Before a descriptor is opened: waits while there are too many to be closed. Not under a lock that a job may take.
  void keep_up() {
    if (left_ > most_) wait_for(most_);
  }

 private:
  void wait_for(std::size_t most) {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return left_ <= most; });
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
      lock.unlock();
      for (auto& job : jobs) job();
      const std::size_t done = jobs.size();
      jobs.clear();  // closes what they hold
      lock.lock();
      left_ -= done;
      done_.notify_all();
    }
  }

  const std::size_t most_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::function<void()>> jobs_;  // guarded by mutex_
  std::atomic<std::size_t> left_{0};         // jobs not yet done; changed under mutex_
  bool stopping_ = false;                    // guarded by mutex_
  std::thread thread_;                       // last: it uses the rest
};

}  // namespace imafs
