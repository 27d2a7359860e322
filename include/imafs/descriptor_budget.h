// Whose descriptors of the daemon's are taken: in a mount that serves several users, nobody but root may have more than a quarter
// of them, and all of them together not more than three quarters. Thread-safe.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <mutex>
#include <unordered_map>

namespace imafs {

class DescriptorBudget {
 public:
  // `total`: what the process may have open; 0: nobody is limited.
  explicit DescriptorBudget(std::size_t total) : share_(total / 4), all_(total / 4 * 3) {}

  // False: the user has his share, or all users have theirs. Nothing is taken then: EMFILE.
  bool take(uid_t user, std::size_t count = 1) {
    if (user == 0 || share_ == 0) return true;
    const std::lock_guard lock(mutex_);
    std::size_t& his = taken_[user];
    if (his + count <= share_ && sum_ + count <= all_) {
      his += count;
      sum_ += count;
      return true;
    }
    if (his == 0) taken_.erase(user);
    return false;
  }
  void give_back(uid_t user, std::size_t count = 1) {
    if (user == 0 || share_ == 0) return;
    const std::lock_guard lock(mutex_);
    const auto his = taken_.find(user);
    if (his == taken_.end()) return;
    his->second -= count;
    sum_ -= count;
    if (his->second == 0) taken_.erase(his);
  }

 private:
  const std::size_t share_, all_;
  std::mutex mutex_;
  std::unordered_map<uid_t, std::size_t> taken_;  // guarded by mutex_
  std::size_t sum_ = 0;                           // guarded by mutex_
};

}  // namespace imafs
