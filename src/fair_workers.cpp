#include "imafs/fair_workers.h"

#include <utility>

namespace imafs {

void FairWorkers::post(uid_t user, std::function<void()> job) {
  const std::lock_guard lock(mutex_);
  take(user, std::move(job));
  if (next() == users_.end()) return;  // who ends one of this user's jobs goes on with it
  if (waiting_ > called_) {
    ++called_;
    wake_.notify_one();
  } else if (threads_ < options_.threads) {
    start_thread(user);
  }
}

// Leaves no user without a job behind: finish() would wait for him.
void FairWorkers::take(uid_t user, std::function<void()> job) {
  const auto own = users_.try_emplace(user).first;
  try {
    own->second.jobs.push_back(std::move(job));
  } catch (...) {
    if (own->second.jobs.empty() && own->second.running == 0) users_.erase(own);
    throw;
  }
}

// Where there can be no other thread, those that there are do the job. Without any it is not taken.
void FairWorkers::start_thread(uid_t user) {
  ++threads_;
  try {
    std::thread([this] { run(); }).detach();
  } catch (...) {
    if (--threads_ > 0) return;
    const auto own = users_.find(user);
    own->second.jobs.pop_back();
    if (own->second.jobs.empty()) users_.erase(own);
    throw;
  }
}

void FairWorkers::finish() {
  std::unique_lock lock(mutex_);
  stopping_ = true;
  wake_.notify_all();
  ended_.wait(lock, [this] { return threads_ == 0 && users_.empty(); });
}

std::map<uid_t, FairWorkers::User>::iterator FairWorkers::next() {
  auto best = users_.end();
  // From the one after the last served, around.
  const auto consider = [&](auto from, auto to) {
    for (auto user = from; user != to; ++user) {
      if (user->second.jobs.empty() || user->second.running >= options_.per_user) continue;
      if (best == users_.end() || user->second.running < best->second.running) best = user;
    }
  };
  const auto after = users_.upper_bound(last_);
  consider(after, users_.end());
  consider(users_.begin(), after);
  return best;
}

void FairWorkers::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    const auto user = next();
    if (user == users_.end()) {
      if (stopping_ || waiting_ >= options_.idle) break;
      ++waiting_;
      wake_.wait(lock, [this] { return called_ > 0 || stopping_; });
      if (called_ > 0) --called_;
      --waiting_;
      continue;
    }
    auto job = std::move(user->second.jobs.front());
    user->second.jobs.pop_front();
    ++user->second.running;
    last_ = user->first;
    lock.unlock();
    job();
    job = nullptr;
    lock.lock();
    --user->second.running;
    if (user->second.running == 0 && user->second.jobs.empty()) users_.erase(user);
  }
  --threads_;
  std::notify_all_at_thread_exit(ended_, std::move(lock));
}

}  // namespace imafs
