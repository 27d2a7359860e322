// Names that were not there when the kernel asked for them, and that it believes not to be there for a long time. If it
// cannot be told any more when one comes, it is told that all may have. Thread-safe.
#pragma once

#include <chrono>
#include <cstddef>
#include <deque>
#include <mutex>
#include <string>
#include <utility>

#include "imafs/inode_table.h"

namespace imafs {

class AbsentNames {
 public:
  struct Absent {
    NodeId directory;
    std::string name;
    std::chrono::steady_clock::time_point until;  // then the kernel asks again by itself
  };

  // False: too many are remembered already, and this one must not be believed that long.
  bool add(NodeId directory, std::string name, std::chrono::seconds believed) {
    const auto now = std::chrono::steady_clock::now();
    const std::lock_guard lock(mutex_);
    while (!names_.empty() && names_.front().until < now) names_.pop_front();
    if (names_.size() >= kMost) return false;
    names_.push_back({directory, std::move(name), now + believed});
    return true;
  }

  std::deque<Absent> take_all() {
    const std::lock_guard lock(mutex_);
    return std::exchange(names_, {});
  }

 private:
  static constexpr std::size_t kMost = 65536;

  std::mutex mutex_;
  std::deque<Absent> names_;  // guarded by mutex_; the oldest first
};

}  // namespace imafs
