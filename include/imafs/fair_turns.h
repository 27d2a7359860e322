// Turns at what uses processors for long: hashing. A job asks for a turn, works for a few milliseconds, and asks for the next
// one. Turns go to the user who had the least, and of his jobs to the one that is done the least: a small file does not wait for
// large ones, and nobody's large files keep others' waiting. Thread-safe.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <vector>

namespace imafs {

class FairTurns {
 public:
  // From so many bytes on a job is a long one. Long jobs never get the last processor, where there is more than one.
  static constexpr std::uint64_t kLong = 8 << 20;

  // For the processors of this machine.
  FairTurns();
  FairTurns(unsigned of_short_jobs, unsigned of_long_jobs);
  FairTurns(const FairTurns&) = delete;
  FairTurns& operator=(const FairTurns&) = delete;

  // One job. It belongs to one thread.
  class Job {
   public:
    Job(FairTurns& turns, uid_t user);
    ~Job();
    Job(const Job&) = delete;
    Job& operator=(const Job&) = delete;

    // Ends the turn at hand and waits for the next. `done`: bytes so far. False once `given_up` says so, which is asked now and
    // then.
    bool next(std::uint64_t done, const std::function<bool()>& given_up);

   private:
    friend class FairTurns;
    FairTurns& turns_;
    const uid_t user_;
    // Under the mutex of turns_.
    std::uint64_t done_ = 0;
    bool has_turn_ = false;
    std::chrono::steady_clock::time_point since_;  // it has its turn
    std::condition_variable granted_;
  };

 private:
  struct User {
    unsigned jobs = 0;
    std::uint64_t served = 0;  // bytes; of a user who comes: as much as who had the least
  };
  // REQUIRES, all: the mutex is held.
  void grant() noexcept;
  void end_turn(Job& job, std::uint64_t done);
  bool has_room_for(const Job& job, std::chrono::steady_clock::time_point now) const;

  const unsigned short_, long_;
  std::mutex mutex_;
  std::map<uid_t, User> users_;  // guarded by mutex_; those who have jobs
  std::vector<Job*> waiting_;    // guarded by mutex_
  std::vector<Job*> working_;    // guarded by mutex_; those that have a turn
};

}  // namespace imafs
