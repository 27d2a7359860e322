// What is remembered of each file: measured in which PCRs, in which version, and which violations
// may still be logged. The kernel calls it the iint.
//
// Thread-safe: sharded, one mutex a shard, no system call under it.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "imafs/digest.h"
#include "imafs/file_version.h"

namespace imafs {

// A number that stands for one inode for as long as it is known, and for no other one ever.
using FileId = std::uint64_t;

// 96 bytes: there may be a million of them.
class FileRecord {
 public:
  enum class Standing {
    kUnknown,  // never hashed, or forgotten: hash, then log
    kCurrent,  // as hashed: nothing to do for PCRs it is measured in
    kSuspect,  // perhaps changed, no sign of a write: hash; the same digest stays measured in silence
    kStale,    // written to: hash and log anew, also under a new name
  };

  // How the record stands now that the file has `version` and nobody can be writing to it. Times are a hint, never a proof:
  // they can say that the content moved. That it did not is known only if `writers` says so.
  enum class Writers {
    kNoneSince,  // since checked_up_to() nobody outside the mount had it open for writing
    kPerhaps,    // somebody had, or nothing would have told us
  };
  Standing standing(const FileVersion& version, std::int64_t now_ns, Writers writers) const;
  // The last report of writers outside the mount (TreeWatch::take_reports) that this record is later than.
  std::uint64_t checked_up_to() const { return checked_up_to_; }
  void was_checked_up_to(std::uint64_t report) { checked_up_to_ = report; }
  // `log`: MeasurementLog::generation(); what an earlier log holds is not measured in this one.
  bool is_measured_in(std::uint32_t pcr, std::uint32_t log) const {
    return hashed_ && log_ == log && (measured_pcrs_ >> (pcr & 63) & 1) != 0;
  }
  bool is_hashed() const { return hashed_; }

  // The file was hashed at `version`. Equal digest and no sign of a write since: what was measured
  // stays measured; else the PCR bits are cleared.
  void did_hash(const Digest& digest, const FileVersion& version);
  void did_measure(std::uint32_t pcr, std::uint32_t log) {
    if (log != log_) measured_pcrs_ = 0;
    log_ = log;
    measured_pcrs_ |= std::uint64_t{1} << (pcr & 63);
  }
  // What is known of the content no longer holds (violations that may be logged stay so).
  void clear();

  // A change through the mount of which we know that the content stays: the version moved on.
  void attributes_changed(const FileVersion& version) { if (hashed_) version_ = version; }
  // utimes through the mount: an mtime that differs is no sign of a write any more.
  void times_were_set() { times_set_ = true; }
  // Somebody had it open for writing: it is hashed again, and a version that moved is a write.
  void was_open_for_write() { had_writer_ = true; }
  void was_written_beside() { had_writer_ = true; }
  // Somebody writes beside us, or a writable mapping lives on: no version proves anything.
  void nothing_is_certain() { uncertain_ = true; }
  // We stop watching it (the lease goes) at `now`.
  void stop_watching(std::int64_t now) { watched_until_ns_ = now; }

  // Violations, once each until armed again. True: log it now.
  void measured_reader_opened() { may_emit_tomtou_ = true; }
  bool may_emit_tomtou() const { return may_emit_tomtou_; }
  bool take_tomtou() { return std::exchange(may_emit_tomtou_, false); }
  bool take_open_writers() { return !std::exchange(open_writers_emitted_, true); }
  // One that could not be logged. True: the first.
  bool owe_violation() { return !std::exchange(owes_violation_, true); }
  bool owes_violation() const { return owes_violation_; }
  void paid_violation() { owes_violation_ = false; }
  bool has_emitted_open_writers() const { return open_writers_emitted_; }
  // Our descriptor of it was given up, for others; told once.
  void gave_up_descriptor() { given_up_ = true; }
  bool take_given_up() { return std::exchange(given_up_, false); }
  void writing_phase_ended() { open_writers_emitted_ = false; }

 private:
  std::array<std::uint8_t, 32> digest_{};  // its first bytes: told apart, not logged
  FileVersion version_;
  std::int64_t watched_until_ns_ = 0;
  std::uint64_t checked_up_to_ = 0;
  std::uint64_t measured_pcrs_ = 0;
  std::uint32_t log_ = 0;
  HashAlgorithm algorithm_ = HashAlgorithm::kSha256;
  bool hashed_ = false;
  bool had_writer_ = false;
  bool uncertain_ = false;
  bool times_set_ = false;
  bool may_emit_tomtou_ = false;
  bool open_writers_emitted_ = false;
  bool given_up_ = false;
  bool owes_violation_ = false;
};

class MeasureCache {
 public:
  // Runs `use(FileRecord&)` under the record's lock; the record is made on first use.
  template <class Use>
  decltype(auto) with(FileId id, Use&& use) {
    Shard& shard = shards_[id % kShards];
    const std::lock_guard lock(shard.mutex);
    return std::forward<Use>(use)(shard.records[id]);
  }
  // Runs it only if there is a record.
  template <class Use>
  void with_existing(FileId id, Use&& use) {
    Shard& shard = shards_[id % kShards];
    const std::lock_guard lock(shard.mutex);
    const auto found = shard.records.find(id);
    if (found != shard.records.end()) std::forward<Use>(use)(found->second);
  }
  void forget(FileId id);
  std::size_t size() const;

 private:
  static constexpr std::size_t kShards = 16;
  struct Shard {
    mutable std::mutex mutex;
    std::unordered_map<FileId, FileRecord> records;
  };
  std::array<Shard, kShards> shards_;
};

}  // namespace imafs
