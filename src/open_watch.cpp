// Who else has a file open: our count of handles against the kernel's, which a lease tells; and what happens when a
// lease breaks. Part of OpenFiles, while the file is busy.
#include <algorithm>
#include <thread>

#include "open_file_state.h"

namespace imafs {
namespace {

// A lease holds up writers beside us that open with O_NONBLOCK: not longer than this after the last close.
constexpr auto kLeaseAfterClose = std::chrono::seconds(1);
// A file that was deleted beside us keeps its blocks while we have it open.
constexpr auto kKeepIdle = std::chrono::minutes(5);
// A close(2) comes back before its RELEASE arrives, and an open of ours is answered before the kernel has opened the backing
// file. So long we wait until our count of handles is the kernel's: while it says that requests are under way, and where it
// cannot say, or where it changes little.
constexpr auto kReleaseUnderWay = std::chrono::milliseconds(50);
constexpr auto kReleaseInFlight = std::chrono::milliseconds(10);
constexpr auto kPoll = std::chrono::microseconds(100);

}  // namespace

// Asks for a lease. It counts as held before it is, so that a break that comes at once finds it.
LeaseKeeper::Answer OpenFiles::take_lease(File& file, LeaseKeeper::Answer (LeaseKeeper::*ask)(int)) noexcept {
  if (!leases_ || file.kind == FileSystemKind::kForeign) return LeaseKeeper::Answer::kUnsupported;
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
  bool unknown = false;
  {
    const Lock lock(mutex_);
    // A signal that was late, of a lease of before, has been taken for one of this; or it is this one's, and still at work.
    unknown = answer == LeaseKeeper::Answer::kGranted && !file.leased && file.pins == 0;
    if (answer != LeaseKeeper::Answer::kGranted && !had) file.leased = false;
    if (answer == LeaseKeeper::Answer::kGranted && file.writers == 0) set_writable(file, false, lock);
  }
  if (unknown) leases_->drop(file.anchor.get());
  return answer;
}

// Whether no RELEASE is under way: all that the kernel waits for are opens which we have in hand. False if it cannot tell;
// then a moment has passed. What is counted after it counts no handle that was closed before the open in hand came.
bool OpenFiles::releases_are_in() const {
  const std::uint64_t ended = opens_ended_;
  const std::uint64_t opens = opens_begun_ - ended;
  const auto requests = kernel_.requests();
  if (requests && *requests <= opens && ended == opens_ended_) return true;  // it counted none that was answered meanwhile
  std::this_thread::sleep_for(kPoll);
  return false;
}

bool OpenFiles::has_waited_for_releases(std::chrono::steady_clock::time_point start) const {
  return std::chrono::steady_clock::now() - start >= (kernel_.requests() ? kReleaseUnderWay : kReleaseInFlight);
}

// Who has the file open for writing. A lease is exact, but does not say who; our count may be ahead of the kernel's, by
// opens that are not there yet, and behind it, by RELEASEs that are on their way.
OpenFiles::Writers OpenFiles::find_writers(File& file) {
  const auto start = std::chrono::steady_clock::now();
  for (bool settled = false;; settled = releases_are_in()) {
    std::uint32_t tracked = 0;
    bool mapped = false, outlived = false;
    {
      if (is_leased(file)) return Writers::kNone;
      const Lock lock(mutex_);
      tracked = file.writers;
      mapped = file.backing_id > 0 && file.writable;
      outlived = file.outlived;
    }
    if (tracked == 0) file.writer.reset();  // it would count as somebody who writes
    auto answer = LeaseKeeper::Answer::kUnsupported;
    // Without passthrough our own descriptor is the writer, so a lease says nothing while one is tracked.
    if (leases_ && (tracked == 0 || file.backing_id > 0)) {
      answer = take_lease(file, &LeaseKeeper::watch);
      if (answer == LeaseKeeper::Answer::kUnsupported) leases_unsupported_ = true;
    }
    if (tracked == 0) {
      const Lock lock(mutex_);
      if (answer == LeaseKeeper::Answer::kGranted && !file.leased) return Writers::kOthers;  // broken already: one has just come
      if (answer != LeaseKeeper::Answer::kRefused) return Writers::kNone;
      // A writer of the mount may live on in a mapping whose handle is closed: its phase goes on. If nobody looked when
      // that was closed, another one may have come: what was hashed does not stand this time.
      file.outlived = mapped;
      if (mapped) return outlived ? Writers::kTracked : Writers::kDoubtful;
      return kernel_.is_our_own(file.node) ? Writers::kOurselves : Writers::kOthers;
    }
    if (answer == LeaseKeeper::Answer::kGranted) {
      drop_lease(file);
    } else {
      if (settled) return Writers::kTracked;
      // Somebody writes for sure: whether it is who we think matters less than time.
      if (answer == LeaseKeeper::Answer::kRefused && std::chrono::steady_clock::now() - start >= kReleaseInFlight) return Writers::kDoubtful;
    }
    if (has_waited_for_releases(start)) return Writers::kDoubtful;
  }
}

bool OpenFiles::is_written_through_mount(const File& file) const {
  const Lock lock(mutex_);
  return file.writers > 0;
}

// Whether somebody reads the file: a handle, or in passthrough mode a mapping without one.
bool OpenFiles::has_readers(File& file) {
  const auto start = std::chrono::steady_clock::now();
  for (bool settled = false;; settled = releases_are_in()) {
    std::uint32_t tracked = 0;
    bool writers = false;
    {
      const Lock lock(mutex_);
      tracked = file.readers;
      writers = file.writers > 0;
    }
    auto answer = LeaseKeeper::Answer::kUnsupported;
    if (file.backing_id > 0 && !writers) answer = take_lease(file, &LeaseKeeper::watch_if_alone);
    if (answer == LeaseKeeper::Answer::kGranted && tracked == 0) return false;
    // Another imafs may be about to close what it had open, as we may.
    const bool may_close = has_neighbours_ && tracked == 0 && std::chrono::steady_clock::now() - start < kReleaseInFlight;
    if (answer == LeaseKeeper::Answer::kRefused && !may_close) return true;
    if (answer == LeaseKeeper::Answer::kUnsupported && (tracked == 0 || settled)) return tracked > 0;
    if (has_waited_for_releases(start)) return true;
  }
}

// ---- leases ----

// REQUIRES: busy is ours, the mutex is not held.
bool OpenFiles::drop_lease(File& file) noexcept {
  {
    const Lock lock(mutex_);
    if (!std::exchange(file.leased, false)) return false;
  }
  leases_->drop(file.anchor.get());
  cache_.with_existing(file.node, [](FileRecord& record) { record.stop_watching(now_ns()); });
  return true;
}

// The lease was dropped for a change of our own, and readers are still there: who has come to write meanwhile would have
// broken it.
// REQUIRES: busy is ours, the mutex is not held.
void OpenFiles::watch_readers_again(File& file) noexcept {
  if (take_lease(file, &LeaseKeeper::watch) == LeaseKeeper::Answer::kRefused) note_writer_beside(file, true);
}

void OpenFiles::note_writer_beside(File& file, bool is_read) noexcept {
  bool emit = false;
  is_read = is_read && !kernel_.is_our_own(file.node);
  cache_.with(file.node, [&](FileRecord& record) {
    emit = is_read && record.take_tomtou();
    record.was_written_beside();
  });
  if (!emit || store_violation(file, Violation::kToMToU, Requester{}, table_.path_of(file.node, 0))) return;
  // The log keeps it, and stores it before anything else.
  bool first = false;
  cache_.with(file.node, [&](FileRecord& record) { first = record.owe_violation(); });
  if (first) ++owed_violations_;
}

// A violation that could not be logged when it happened: nobody opens the file before it is.
Status OpenFiles::log_owed_violation(File& file) noexcept {
  if (owed_violations_ == 0) return {};
  bool owed = false;
  cache_.with_existing(file.node, [&](FileRecord& record) { owed = record.owes_violation(); });
  if (!owed) return {};
  if (auto stored = gate_.store_owed(); !stored) return stored;
  cache_.with(file.node, [](FileRecord& record) { record.paid_violation(); });
  --owed_violations_;
  return {};
}

// All that was reported of writers outside the mount until now. REQUIRES: the lease was taken before.
std::optional<std::uint64_t> OpenFiles::take_reports(const File& file) {
  if (file.kind == FileSystemKind::kConstant) return 0;
  TreeWatch* const watch = kernel_.watch();
  const auto reports = watch != nullptr ? watch->take_reports(file.device) : std::nullopt;
  if (!reports) writers_unreported_ = true;
  return reports;
}

FileRecord::Writers OpenFiles::writers_since(const File& file, const FileRecord& record) const {
  if (!file.reports) return FileRecord::Writers::kPerhaps;
  if (file.kind == FileSystemKind::kConstant) return FileRecord::Writers::kNoneSince;
  const std::uint64_t last = kernel_.watch()->last_report_of(file.inode);
  return last <= record.checked_up_to() ? FileRecord::Writers::kNoneSince : FileRecord::Writers::kPerhaps;
}

// ---- leases that somebody breaks ----

// Whether a lease stands. Asks the kernel if breaks may have come that the keeper's thread has not noted: a lease that was
// being broken for long enough is gone, and whoever broke it may be writing.
// REQUIRES: busy is ours, the mutex is not held.
bool OpenFiles::is_leased(File& file) noexcept {
  {
    const Lock lock(mutex_);
    if (!file.leased) return false;
    if (leases_->is_up_to_date() || LeaseKeeper::stands(file.anchor.get())) return true;
    file.leased = false;
    file.broken = true;
  }
  wait_for_releases({{&file, false}});
  end_lease(file);
  return false;
}

// Every lease that is being broken counts as gone before anything else is done about one of them.
void OpenFiles::on_breaks(LeaseKeeper::Breaks breaks) {
  std::vector<Broken> unread, read;
  {
    const Lock lock(mutex_);
    const auto take = [&](std::size_t fd) {
      File* const file = fd < by_fd_.size() ? by_fd_[fd] : nullptr;
      // The signal may be late, and the number another file's by now.
      if (!file || !file->leased || LeaseKeeper::stands(static_cast<int>(fd))) return;
      file->leased = false;
      ++file->pins;
      const bool may_be_read = file->readers > 0 || file->being_read || file->may_be_mapped();
      (may_be_read ? read : unread).push_back({file, !file->busy});
      file->broken = file->busy;  // the one at work sees it when it is done
      file->busy = true;
      unlist(*file);
    };
    if (breaks) {
      for (const int fd : *breaks) take(static_cast<std::size_t>(fd));
    } else {
      for (std::size_t fd = 0; fd < by_fd_.size(); ++fd) take(fd);
    }
  }
  for (const Broken& one : unread) {
    end_lease(*one.file);
    rest(one);
  }
  if (!read.empty()) breaks_.post([this, broken = std::move(read)] { settle_breaks(broken); });
}

void OpenFiles::settle_breaks(const std::vector<Broken>& broken) {
  wait_for_releases(broken);
  for (const Broken& one : broken) {
    bool is_armed = false;
    cache_.with_existing(one.file->node, [&](FileRecord& record) { is_armed = record.may_emit_tomtou(); });
    const auto end = [this, one] {
      end_lease(*one.file);
      rest(one);
    };
    is_armed ? violations_.post(end) : end();
  }
}

// Once for all of them: until no RELEASE can be under way that would make one of them unread.
void OpenFiles::wait_for_releases(const std::vector<Broken>& broken) {
  const auto start = std::chrono::steady_clock::now();
  const auto waits = [&] {
    const Lock lock(mutex_);
    return std::any_of(broken.begin(), broken.end(), [](const Broken& one) { return one.file->readers > 0 && !one.file->mapped; });
  };
  while (waits() && !releases_are_in() && !has_waited_for_releases(start)) {
  }
}

// Somebody beside us wants to write and is held by our lease, or was until the kernel took it away: the violation first, then
// let go. The file is busy: ours; or pinned, and an open's that looks at `broken` when it is done.
void OpenFiles::end_lease(File& file) noexcept {
  bool open_here = false;
  {
    const Lock lock(mutex_);
    open_here = file.readers > 0 || file.being_read || file.mapped;
    file.mapped = file.unsure = false;
  }
  note_writer_beside(file, open_here);
  LeaseKeeper::drop(file.anchor.get());
  cache_.with(file.node, [](FileRecord& record) { record.stop_watching(now_ns()); });
  if (open_here && file.backing_id == 0) kernel_.drop_page_cache(file.node);
}

void OpenFiles::rest(const Broken& broken) {
  File& file = *broken.file;
  Lock lock(mutex_);
  --file.pins;
  if (broken.is_ours) {
    leave_busy(file, lock);
  } else if (!file.busy) {
    file.busy = true;  // it could not rest while we had it
    leave_busy(file, lock);
  }
}

void OpenFiles::on_tick() noexcept {
  std::vector<File*> stale, leaving;
  const auto now = std::chrono::steady_clock::now();
  has_neighbours_ = kernel_.has_neighbours();
  {
    Lock lock(mutex_);
    for (File* const file : idle_) {
      const auto idle = now - file->idle_since;
      if (idle < kLeaseAfterClose && !has_neighbours_) break;
      if ((idle > kKeepIdle || (has_neighbours_ && !file->writable)) && !file->may_be_mapped()) {
        leaving.push_back(file);
      } else if ((file->leased || file->writable) && idle >= kLeaseAfterClose) {
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
    if (file->may_be_mapped()) note_mappings(*file, true);
    if (!file->mapped) drop_lease(*file);
    Lock lock(mutex_);
    leave_busy(*file, lock);
  }
}

}  // namespace imafs
