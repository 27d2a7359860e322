#include "imafs/fair_turns.h"

#include <algorithm>
#include <thread>

namespace imafs {
namespace {

using Clock = std::chrono::steady_clock;
// A turn that lasts longer is stuck in a file system that does not answer: another job may have its processor.
constexpr std::chrono::seconds kStuck{1};
constexpr std::chrono::milliseconds kLookAgain{50};

}  // namespace

// More short jobs than processors: they may wait for disks.
FairTurns::FairTurns()
    : FairTurns(std::max(4U, std::thread::hardware_concurrency()), std::max(2U, std::thread::hardware_concurrency()) - 1) {}

FairTurns::FairTurns(unsigned of_short_jobs, unsigned of_long_jobs) : short_(of_short_jobs), long_(of_long_jobs) {}

FairTurns::Job::Job(FairTurns& turns, uid_t user) : turns_(turns), user_(user) {
  const std::lock_guard lock(turns_.mutex_);
  const auto [own, is_new] = turns_.users_.try_emplace(user);
  ++own->second.jobs;
  if (!is_new) return;
  constexpr std::uint64_t nobody = ~std::uint64_t{0};
  std::uint64_t least = nobody;
  for (const auto& [uid, one] : turns_.users_) {
    if (uid != user) least = std::min(least, one.served);
  }
  own->second.served = least == nobody ? 0 : least;
}

FairTurns::Job::~Job() {
  const std::lock_guard lock(turns_.mutex_);
  turns_.end_turn(*this, done_);
  const auto own = turns_.users_.find(user_);
  if (--own->second.jobs == 0) turns_.users_.erase(own);
  turns_.grant();
}

bool FairTurns::Job::next(std::uint64_t done, const std::function<bool()>& given_up) {
  std::unique_lock lock(turns_.mutex_);
  turns_.end_turn(*this, done);
  turns_.waiting_.push_back(this);
  turns_.grant();
  while (!has_turn_) {
    granted_.wait_for(lock, kLookAgain);
    if (has_turn_) break;
    lock.unlock();
    const bool over = given_up();
    lock.lock();
    if (over && !has_turn_) {
      std::erase(turns_.waiting_, this);
      return false;
    }
    turns_.grant();  // one that has a turn may be stuck meanwhile
  }
  lock.unlock();
  return !given_up();
}

void FairTurns::end_turn(Job& job, std::uint64_t done) {
  if (job.has_turn_) std::erase(working_, &job);
  job.has_turn_ = false;
  users_.at(job.user_).served += done - job.done_;
  job.done_ = done;
}

bool FairTurns::has_room_for(const Job& job, Clock::time_point now) const {
  const bool is_long = job.done_ >= kLong;
  const unsigned most = is_long ? long_ : short_;
  unsigned used = 0, by_user = 0;
  for (const Job* const one : working_) {
    if ((one->done_ >= kLong) != is_long || now - one->since_ > kStuck) continue;
    ++used;
    by_user += one->user_ == job.user_ ? 1 : 0;
  }
  return used < most && by_user < std::max(1U, most - 1);
}

void FairTurns::grant() noexcept {
  const auto now = Clock::now();
  for (;;) {
    auto best = waiting_.end();
    std::uint64_t served = 0;
    for (auto one = waiting_.begin(); one != waiting_.end(); ++one) {
      if (!has_room_for(**one, now)) continue;
      const std::uint64_t his = users_.at((*one)->user_).served;
      if (best != waiting_.end() && (his > served || (his == served && (*one)->done_ >= (*best)->done_))) continue;
      best = one;
      served = his;
    }
    if (best == waiting_.end()) return;
    Job& job = **best;
    waiting_.erase(best);
    job.has_turn_ = true;
    job.since_ = now;
    working_.push_back(&job);
    job.granted_.notify_one();
  }
}

}  // namespace imafs
