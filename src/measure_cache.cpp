#include "imafs/measure_cache.h"

#include <algorithm>

namespace imafs {

FileRecord::Standing FileRecord::standing(const FileVersion& version, std::int64_t now_ns, Writers writers) const {
  if (!hashed_) return Standing::kUnknown;
  if (version.size != version_.size || (version.mtime_ns != version_.mtime_ns && !times_set_)) return Standing::kStale;
  if (version != version_) return had_writer_ ? Standing::kStale : Standing::kSuspect;
  // A store into a mapping on tmpfs moves no time, nor does an exchange of blocks between files (EXT4_IOC_MOVE_EXT).
  if (uncertain_ || had_writer_ || writers == Writers::kPerhaps) return Standing::kSuspect;
  // Equal times, and no writer that we know of. They speak against that if a change could have had the same one, or if the clock went back.
  if (watched_until_ns_ - version_.ctime_ns < clock_grain_of(version_) || now_ns < watched_until_ns_) return Standing::kSuspect;
  return Standing::kCurrent;
}

void FileRecord::did_hash(const Digest& digest, const FileVersion& version) {
  decltype(digest_) head{};
  const ByteView bytes = digest.bytes();
  std::copy_n(bytes.begin(), std::min(bytes.size(), head.size()), head.begin());
  const bool same = hashed_ && head == digest_ && digest.algorithm() == algorithm_;
  const bool moved = version.size != version_.size || (version.mtime_ns != version_.mtime_ns && !times_set_) ||
                     (had_writer_ && version != version_);
  if (!same || moved) measured_pcrs_ = 0;
  digest_ = head;
  algorithm_ = digest.algorithm();
  version_ = version;
  hashed_ = true;
  had_writer_ = uncertain_ = times_set_ = false;
}

void FileRecord::clear() {
  measured_pcrs_ = 0;
  hashed_ = false;
  had_writer_ = uncertain_ = times_set_ = false;
}

void MeasureCache::forget(FileId id) {
  Shard& shard = shards_[id % kShards];
  const std::lock_guard lock(shard.mutex);
  shard.records.erase(id);
}

std::size_t MeasureCache::size() const {
  std::size_t sum = 0;
  for (const Shard& shard : shards_) {
    const std::lock_guard lock(shard.mutex);
    sum += shard.records.size();
  }
  return sum;
}

}  // namespace imafs
