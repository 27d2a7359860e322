// A thread that does what nobody waits for, a little later and many at a time: closing descriptors. The last close of
// a deleted file frees its blocks, and each awakening of a thread costs more than most of these jobs. Thread-safe.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace imafs {

class Reaper {
 public:
  static constexpr std::chrono::milliseconds kGather{2};

  Reaper() : thread_([this] { run(); }) {}
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
    }
    if (first) wake_.notify_one();
  }

  // Returns once all that was posted before has run.
  void settle() {
    std::unique_lock lock(mutex_);
    wake_.notify_one();
    idle_.wait(lock, [this] { return jobs_.empty() && !running_; });
  }

 private:
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
      running_ = true;
      lock.unlock();
      for (auto& job : jobs) job();
      jobs.clear();
      lock.lock();
      running_ = false;
      idle_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  std::vector<std::function<void()>> jobs_;  // guarded by mutex_
  bool running_ = false;                     // guarded by mutex_
  bool stopping_ = false;                    // guarded by mutex_
  std::thread thread_;                       // last: it uses the rest
};

}  // namespace imafs
