// Who else has a file open: our count of handles against the kernel's, which a lease tells; and what happens when a
// lease breaks. Part of OpenFiles, while the file is busy.
#include <thread>

#include "open_file_state.h"

namespace imafs {
namespace {

// How long the count of handles and the kernel's count of open files may disagree before we believe the worse one.
constexpr auto kAgreement = std::chrono::milliseconds(50);
// A lease holds up writers beside us that open with O_NONBLOCK: not longer than this after the last close.
constexpr auto kLeaseAfterClose = std::chrono::seconds(1);
// A file that was deleted beside us keeps its blocks while we have it open.
constexpr auto kKeepIdle = std::chrono::minutes(5);
// A close(2) comes back before its RELEASE arrives; one in flight is no reader any more. So long we wait for
// it: while the kernel says that requests are under way, and where it cannot say.
constexpr auto kReleaseUnderWay = std::chrono::milliseconds(45);
constexpr auto kReleaseInFlight = std::chrono::milliseconds(10);
constexpr auto kPoll = std::chrono::microseconds(100);

}  // namespace

// Asks for a lease. It counts as held before it is, so that a break that comes at once finds it.
LeaseKeeper::Answer OpenFiles::take_lease(File& file, LeaseKeeper::Answer (LeaseKeeper::*ask)(int)) {
  if (!leases_) return LeaseKeeper::Answer::kUnsupported;
  bool had = false;
  {
    const Lock lock(mutex_);
    // The one that stood is being broken and about to be dropped: somebody is coming to write.
    if (file.pins > 0) return LeaseKeeper::Answer::kRefused;
    had = std::exchange(file.leased, true);
  }
  if (!had) {
    file.verified = file.content_known = false;
    leases_->adopt(file.anchor.get());
  }
  const auto answer = ((*leases_).*ask)(file.anchor.get());
  const Lock lock(mutex_);
  if (answer != LeaseKeeper::Answer::kGranted && !had) file.leased = false;
  if (answer == LeaseKeeper::Answer::kGranted && file.writers == 0) set_writable(file, false, lock);
  return answer;
}

// Who has the file open for writing. The kernel's count (a lease is refused) is exact, but for our own
// opens that are not there yet and RELEASEs that are on their way: then ask again until both agree.
OpenFiles::Writers OpenFiles::find_writers(File& file) {
  const auto start = std::chrono::steady_clock::now();
  const bool counts_only = !leases_ || file.backing_id == 0;
  bool mapped_by_ours = false;
  cache_.with_existing(file.node, [&](FileRecord& record) { mapped_by_ours = record.is_in_writing_phase(); });
  for (;;) {
    std::uint32_t tracked = 0;
    {
      const Lock lock(mutex_);
      if (file.leased) return Writers::kNone;
      tracked = file.writers;
    }
    const auto waited = std::chrono::steady_clock::now() - start;
    // Without passthrough our own descriptor is the writer, so a lease says nothing while one is tracked.
    if (tracked > 0 && counts_only && waited >= kReleaseInFlight) return Writers::kTracked;
    if (tracked == 0 || !counts_only) {
      const auto answer = take_lease(file, &LeaseKeeper::watch);
      if (answer == LeaseKeeper::Answer::kUnsupported) {
        leases_unsupported_ = true;
        if (tracked == 0) return Writers::kNone;
        if (waited >= kReleaseInFlight) return Writers::kTracked;
      } else if (answer == LeaseKeeper::Answer::kRefused) {
        // A writer of the mount may live on in a mapping whose handle is closed: its phase goes on.
        return tracked > 0 || mapped_by_ours ? Writers::kTracked : Writers::kOthers;
      } else if (tracked == 0) {
        const Lock lock(mutex_);
        return file.leased ? Writers::kNone : Writers::kOthers;  // broken already: one has just come
      } else {
        drop_lease(file);
        if (waited >= kAgreement) return Writers::kTracked;
      }
    }
    std::this_thread::sleep_for(kPoll);
  }
}

bool OpenFiles::is_written_through_mount(const File& file) const {
  const Lock lock(mutex_);
  return file.writers > 0;
}

// Whether somebody reads the file: a handle, or in passthrough mode a mapping without one.
bool OpenFiles::has_readers(File& file) {
  const auto start = std::chrono::steady_clock::now();
  for (;;) {
    std::uint32_t tracked = 0;
    bool writers = false;
    {
      const Lock lock(mutex_);
      tracked = file.readers;
      writers = file.writers > 0;
    }
    const auto waited = std::chrono::steady_clock::now() - start;
    auto answer = LeaseKeeper::Answer::kUnsupported;
    if (file.backing_id > 0 && !writers) answer = take_lease(file, &LeaseKeeper::watch_if_alone);
    if (answer == LeaseKeeper::Answer::kGranted && tracked == 0) return false;
    if (answer == LeaseKeeper::Answer::kRefused) return true;
    if (answer == LeaseKeeper::Answer::kUnsupported && (tracked == 0 || waited >= kReleaseInFlight)) return tracked > 0;
    if (waited >= kAgreement) return true;
    std::this_thread::sleep_for(kPoll);
  }
}

// Whether the last writer is gone: by our count and by the kernel's, which knows of mappings and whose RELEASEs may be
// on their way to us.
bool OpenFiles::nobody_writes(File& file) {
  const auto start = std::chrono::steady_clock::now();
  for (;;) {
    std::uint32_t tracked = 0;
    {
      const Lock lock(mutex_);
      tracked = file.writers;
    }
    if (file.backing_id == 0) return tracked == 0;  // our own descriptor counts as a writer, too
    const auto answer = take_lease(file, &LeaseKeeper::watch);
    if (answer == LeaseKeeper::Answer::kRefused) return false;
    if (answer == LeaseKeeper::Answer::kUnsupported || tracked == 0) return tracked == 0;
    drop_lease(file);
    if (std::chrono::steady_clock::now() - start >= kAgreement) return false;
    std::this_thread::sleep_for(kPoll);
  }
}

// ---- leases ----

// REQUIRES: busy is ours, the mutex is not held.
void OpenFiles::drop_lease(File& file) {
  {
    const Lock lock(mutex_);
    if (!std::exchange(file.leased, false)) return;
  }
  leases_->drop(file.anchor.get());
  cache_.with_existing(file.node, [](FileRecord& record) { record.stop_watching(now_ns()); });
}

void OpenFiles::on_break(int fd) {
  std::vector<std::pair<File*, bool>> files;  // and whether it is ours to leave busy
  {
    const Lock lock(mutex_);
    const auto take = [&](File* file) {
      if (!file || !file->leased) return;
      file->leased = false;
      ++file->pins;
      files.emplace_back(file, !file->busy);
      file->broken = file->busy;  // the one at work sees it when it is done
      file->busy = true;
      unlist(*file);
    };
    if (fd >= 0) {
      if (static_cast<std::size_t>(fd) < by_fd_.size()) take(by_fd_[static_cast<std::size_t>(fd)]);
    } else {
      for (File* const file : by_fd_) take(file);
    }
  }
  for (const auto& [file, ours] : files) {
    break_lease(*file);
    Lock lock(mutex_);
    --file->pins;
    if (ours) {
      leave_busy(*file, lock);
    } else if (!file->busy) {
      file->busy = true;  // it could not rest while we had it
      leave_busy(*file, lock);
    }
  }
}

// Somebody beside us wants to write and is held by our lease: the violation first, then let go.
// The file is pinned, and busy: ours, or an open's that looks at `broken` when it is done.
void OpenFiles::break_lease(File& file) {
  bool open_here = false;
  {
    Lock lock(mutex_);
    const auto start = std::chrono::steady_clock::now();
    while (file.readers > 0 && !file.mapped) {
      lock.unlock();
      const auto idle = kernel_.is_idle();
      const auto limit = idle ? kReleaseUnderWay : kReleaseInFlight;
      const bool over = idle.value_or(false) || std::chrono::steady_clock::now() - start >= limit;
      if (over) {
        lock.lock();
        break;
      }
      std::this_thread::sleep_for(kPoll);
      lock.lock();
    }
    open_here = file.readers > 0 || file.being_read || file.mapped;
    file.mapped = false;
  }
  bool emit = false;
  cache_.with(file.node, [&](FileRecord& record) {
    emit = open_here && record.take_tomtou();
    record.was_written_beside();
  });
  if (emit) (void)store_violation(file, Violation::kToMToU, Requester{}, table_.path_of(file.node, 0));
  leases_->drop(file.anchor.get());
  cache_.with(file.node, [](FileRecord& record) { record.stop_watching(now_ns()); });
  if (open_here && file.backing_id == 0) kernel_.drop_page_cache(file.node);
}

void OpenFiles::on_tick() {
  std::vector<File*> stale, leaving;
  const auto now = std::chrono::steady_clock::now();
  {
    Lock lock(mutex_);
    for (File* const file : idle_) {
      const auto idle = now - file->idle_since;
      if (idle < kLeaseAfterClose) break;
      if (idle > kKeepIdle && !file->mapped) {
        leaving.push_back(file);
      } else if (file->leased || file->writable) {
        stale.push_back(file);
      }
    }
    for (File* const file : stale) {
      file->busy = true;
      unlist(*file);
    }
    for (File* const file : leaving) claim(*file, lock);
    give_up(leaving, lock);
  }
  for (File* const file : stale) {
    // Closed for a second: if it can be leased, no mapping stores into it any more.
    if (file->writable && file->anchor) (void)take_lease(*file, &LeaseKeeper::watch);
    if (file->mapped) note_mapped_readers(*file, true);
    if (!file->mapped) drop_lease(*file);
    Lock lock(mutex_);
    leave_busy(*file, lock);
  }
}

}  // namespace imafs
