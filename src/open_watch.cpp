// Who else has a file open: our count of handles against the kernel's, which a lease tells. Part of OpenFiles, while
// the file is busy.
#include <thread>

#include "open_file_state.h"

namespace imafs {
namespace {

// How long the count of handles and the kernel's count of open files may disagree before we believe the worse one.
constexpr auto kAgreement = std::chrono::milliseconds(50);
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

}  // namespace imafs
