// Threads for work that may take long: started when there is something to do, bounded, and shared out between users, so that
// nobody's work keeps all of them. Thread-safe.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace imafs {

class FairWorkers {
 public:
  struct Options {
    unsigned threads = 64;  // at most
    unsigned per_user = 16;  // of these; the rest of a user's jobs queue
    unsigned idle = 4;      // stay when there is nothing to do
  };

  explicit FairWorkers(Options options) : options_(options) {}
  ~FairWorkers() { finish(); }
  FairWorkers(const FairWorkers&) = delete;
  FairWorkers& operator=(const FairWorkers&) = delete;

  // Runs `job` on a thread of its own, soon. Jobs of one user start in the order they were posted.
  void post(uid_t user, std::function<void()> job);
  // Runs what is queued to its end, and ends the threads: nothing may be posted afterwards but by the jobs themselves.
  void finish();

 private:
  struct User {
    std::deque<std::function<void()>> jobs;
    unsigned running = 0;
  };
  void take(uid_t user, std::function<void()> job);  // REQUIRES: the mutex is held
  void start_thread(uid_t user);                     // REQUIRES: the mutex is held
  void run();
  // The user whose job comes next: of those who may have one more, who runs the fewest, and then whose turn it is. Null: none.
  std::map<uid_t, User>::iterator next();  // REQUIRES: the mutex is held

  const Options options_;
  std::mutex mutex_;
  std::condition_variable wake_, ended_;
  std::map<uid_t, User> users_;  // guarded by mutex_; those who have jobs
  uid_t last_ = 0;               // guarded by mutex_; who was served last
  unsigned threads_ = 0;         // guarded by mutex_
  unsigned waiting_ = 0;         // guarded by mutex_; threads without a job,
  unsigned called_ = 0;          // and those of them that have been called and are about to look
  bool stopping_ = false;        // guarded by mutex_
};

}  // namespace imafs
