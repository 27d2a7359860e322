#include "imafs/notice_queue.h"

#include <algorithm>
#include <exception>
#include <utility>

namespace imafs {

NoticeQueue::~NoticeQueue() {
  std::vector<std::thread> threads;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    threads = std::move(threads_);
  }
  wake_.notify_all();
  room_.notify_all();
  for (std::thread& thread : threads) thread.join();
}

void NoticeQueue::post(std::uint64_t key, std::function<void()> send) noexcept {
  std::unique_lock lock(mutex_);
  room_.wait(lock, [this] { return stopping_ || notices_.size() < kMost; });
  if (stopping_) return;
  ++pending_;
  Notice notice{key, Clock::now(), std::move(send)};
  if (const auto same = sending_.find(key); same != sending_.end()) {
    same->second.behind.push_back(std::move(notice));
    return;
  }
  notices_.push_back(std::move(notice));
  wake_.notify_one();
}

void NoticeQueue::start_thread() {
  ++idle_;
  threads_.emplace_back([this] { run(); });
}

// Without another thread, what follows waits for this one.
void NoticeQueue::start_another() {
  try {
    start_thread();
  } catch (const std::exception&) {
    --idle_;
  }
}

bool NoticeQueue::may_start() const {
  const auto now = Clock::now();
  return std::all_of(sending_.begin(), sending_.end(), [&](const auto& one) { return now - one.second.since > kHangs; });
}

NoticeQueue::Clock::duration NoticeQueue::lateness() const {
  const auto now = Clock::now();
  auto latest = Clock::duration::zero();
  for (const auto& [key, one] : sending_) latest = std::max(latest, now - one.since);
  if (!notices_.empty()) latest = std::max(latest, now - notices_.front().posted);
  return latest;
}

void NoticeQueue::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    while (!stopping_ && (notices_.empty() || !may_start())) {
      if (notices_.empty()) {
        wake_.wait(lock);
      } else {
        wake_.wait_for(lock, kHangs);
      }
    }
    if (stopping_) return;
    Notice notice = std::move(notices_.front());
    notices_.pop_front();
    if (const auto same = sending_.find(notice.key); same != sending_.end()) {
      same->second.behind.push_back(std::move(notice));
      continue;
    }
    --idle_;
    if (idle_ == 0 && threads_.size() < kThreads) start_another();  // there is always one to take over
    for (;;) {
      Sending& sending = sending_[notice.key];
      sending.since = Clock::now();
      lock.unlock();
      notice.send();
      notice.send = nullptr;
      lock.lock();
      --pending_;
      if (notices_.size() < kMost) room_.notify_one();
      Sending& done = sending_.at(notice.key);
      if (done.behind.empty() || stopping_) break;
      notice = std::move(done.behind.front());
      done.behind.pop_front();
    }
    sending_.erase(notice.key);
    ++idle_;
    if (!notices_.empty()) wake_.notify_one();
  }
}

}  // namespace imafs
