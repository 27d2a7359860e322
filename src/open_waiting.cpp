// Opens that are not answered at once, and who waits for them: a client that is killed is answered at once, and a file is
// hashed no longer than anybody wants it. Part of OpenFiles.
#include <algorithm>
#include <utility>

#include "open_file_state.h"

namespace imafs {
namespace {

// How soon a client that is killed goes.
constexpr auto kLook = std::chrono::milliseconds(20);

}  // namespace

bool OpenFiles::is_given_up(const Opening& opening) const { return stopping_ || opening.is_cancelled; }

// REQUIRES: the opening is the caller's; mutex_ is not held, unless it is listed already.
void OpenFiles::will_wait(Opening& opening) {
  if (opening.is_listed) return;
  const std::lock_guard lock(waiting_mutex_);
  opening.place = waiting_.insert(waiting_.end(), &opening);
  opening.is_listed = true;
  if (waiting_.size() == 1) waits_.notify_one();
}

// From here on nobody but the caller knows the opening.
void OpenFiles::waits_no_more(Opening& opening) {
  if (!opening.is_listed) return;  // set by the thread that hands it over
  const std::lock_guard lock(waiting_mutex_);
  waiting_.erase(opening.place);
  opening.is_listed = false;
}

void OpenFiles::stop() {
  const std::lock_guard lock(waiting_mutex_);
  stopping_ = true;
  waits_.notify_one();
}

void OpenFiles::look_after_waiting() {
  std::unique_lock lock(waiting_mutex_);
  while (!stopping_) {
    waits_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    lock.unlock();
    give_up_killed();
    lock.lock();
    waits_.wait_for(lock, kLook, [this] { return stopping_.load(); });
  }
}

// Answers those who are being killed. Those in the queue of a file are gone with that; what is under way, or waits for a thread
// while its user has as many as he may, goes on if others wait for the same file, and ends as soon as it is looked at otherwise.
void OpenFiles::give_up_killed() {
  std::vector<std::unique_ptr<Opening>> queued;
  std::vector<Done> answers;
  {
    const std::lock_guard waiting(waiting_mutex_);
    bool any = false;
    for (Opening* const one : waiting_) {
      if (!one->is_killed && one->request.is_killed) one->is_killed = one->request.is_killed();
      any |= one->is_killed;
    }
    if (!any) return;
    const Lock lock(mutex_);
    for (auto next = waiting_.begin(); next != waiting_.end();) {
      Opening& one = **next++;
      if (!one.is_killed || one.file == nullptr) continue;
      auto& queue = one.file->waiting;
      const auto place = std::find_if(queue.begin(), queue.end(), [&](const auto& other) { return other.get() == &one; });
      if (place == queue.end()) continue;
      queued.push_back(std::move(*place));
      queue.erase(place);
      waiting_.erase(one.place);
      one.is_listed = false;
    }
    for (Opening* const one : waiting_) {
      if (!one->is_killed || one->file == nullptr) continue;
      one->is_cancelled = one->file->waiting.empty();
      if (!one->done) continue;
      one->is_answered = true;
      answers.push_back(std::exchange(one->done, nullptr));
    }
  }
  opens_ended_ += queued.size() + answers.size();
  for (auto& one : queued) {
    one->done(fail(EINTR, "killed"));
  }
  for (auto& answer : answers) answer(fail(EINTR, "killed"));
}

}  // namespace imafs
