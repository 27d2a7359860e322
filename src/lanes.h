// Requests go in lanes, two for each mount of the backing tree: one for those that look, one for those that change, because a frozen
// file system still answers the first. What does not answer holds up its own lane only: so many threads at most are in a lane, and one
// user does not take all of its places; further requests queue, without a thread. Thread-safe.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace imafs {

class Lanes {
 public:
  static constexpr unsigned kPlaces = 16;
  static constexpr unsigned kPlacesOfUser = 12;  // of anybody but root

  explicit Lanes(std::size_t count) : lanes_(count) {}

  unsigned most_threads() const { return static_cast<unsigned>(lanes_.size()) * kPlaces; }

  // Takes a place in a lane. False: none is free.
  bool enter(std::size_t number, uid_t user) {
    Lane& lane = lanes_[number % lanes_.size()];
    const std::lock_guard lock(lane.mutex);
    return lane.take(user);
  }
  // Queues `job` for a place; whoever leaves runs it. False: a place has become free meanwhile, and is the caller's.
  bool queue(std::size_t number, uid_t user, std::function<void()> job) {
    Lane& lane = lanes_[number % lanes_.size()];
    const std::lock_guard lock(lane.mutex);
    if (lane.take(user)) return false;
    lane.waiting.push_back({user, std::move(job)});
    return true;
  }
  // Gives the place back, or uses it for what is queued, on this thread.
  void leave(std::size_t number, uid_t user) {
    Lane& lane = lanes_[number % lanes_.size()];
    std::unique_lock lock(lane.mutex);
    for (;;) {
      lane.give_back(user);
      const auto next = lane.next();
      if (!next) return;
      user = next->first;
      lock.unlock();
      next->second();
      lock.lock();
    }
  }

 private:
  struct Lane {
    bool may_enter(uid_t user) const {
      if (used == kPlaces) return false;
      if (user == 0 || used < kPlacesOfUser) return true;
      unsigned his = 0;
      for (unsigned i = 0; i < used; ++i) his += users[i] == user ? 1 : 0;
      return his < kPlacesOfUser;
    }
    bool take(uid_t user) {
      if (!may_enter(user)) return false;
      users[used++] = user;
      return true;
    }
    void give_back(uid_t user) {
      unsigned i = 0;
      while (users[i] != user) ++i;
      users[i] = users[--used];
    }
    // The first that may enter; its place is taken.
    std::optional<std::pair<uid_t, std::function<void()>>> next() {
      for (auto one = waiting.begin(); one != waiting.end(); ++one) {
        if (!take(one->first)) continue;
        auto job = std::move(*one);
        waiting.erase(one);
        return job;
      }
      return std::nullopt;
    }

    std::mutex mutex;
    std::array<uid_t, kPlaces> users{};  // guarded by mutex, as is the rest; the first `used` of them
    unsigned used = 0;
    std::deque<std::pair<uid_t, std::function<void()>>> waiting;
  };

  std::vector<Lane> lanes_;  // constant but for what is in them
};

}  // namespace imafs
