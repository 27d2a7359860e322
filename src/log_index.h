// Entries of the journal: their payload, and where each one stands in the journal and in the views.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "imafs/log_codec.h"
#include "imafs/measurement_log.h"

namespace imafs {

enum class FrameKind : std::uint8_t {
  kHeader = 1,  // text, first in a journal
  kEntry = 2,
  kGap = 3,     // u64: index of the first entry that did not reach the PCR
  kClosed = 4,  // empty: all entries have reached it since
};

// Payload of an entry's frame. `digests`: template digests, in the order the header names.
Bytes encode_journal_entry(const LogEntry& entry, const EntryOrigin& origin, const BankValues& digests);

// Bytes of an entry in the text and in the binary view, digests not counted.
struct ViewSizes {
  std::uint32_t ascii = 0;
  std::uint32_t binary = 0;
};
ViewSizes view_sizes_of(const LogEntry& entry);

struct JournalEntry {
  ViewSizes sizes;
  LogEntry entry;
  EntryOrigin origin;
  ByteView digests;  // concatenated, inside the payload
};
// EBADMSG: no entry.
Result<JournalEntry> decode_journal_entry(ByteView payload);

// 24 bytes an entry for the places, about 80 for the duplicate check. Not thread-safe.
class LogIndex {
 public:
  struct Place {
    std::uint64_t frame = 0;   // offset in the journal
    std::uint64_t ascii = 0;   // offset in the text view, digests not counted
    std::uint64_t binary = 0;  // likewise
  };

  // The duplicate check's key: a template digest and a PCR.
  using Key = std::array<std::uint8_t, 32>;
  static Key key_of(ByteView template_digest, std::uint32_t pcr);

  void add(std::uint64_t frame, ViewSizes sizes);
  void remember(const Key& key) { seen_.insert(key); }
  bool has(const Key& key) const { return seen_.contains(key); }

  void take_seen_of(LogIndex& other) { seen_.merge(other.seen_); }

  std::uint64_t size() const { return places_.size(); }
  const Place& operator[](std::uint64_t i) const { return places_[i]; }

  // Bytes of a view whose digests have `digest_size` bytes.
  std::uint64_t view_size(LogView::Form form, std::size_t digest_size) const;
  std::uint64_t view_offset(LogView::Form form, std::size_t digest_size, std::uint64_t entry) const;
  // The entry that `offset` lies in. REQUIRES: offset < view_size()
  std::uint64_t entry_at(LogView::Form form, std::size_t digest_size, std::uint64_t offset) const;

 private:
  struct HashKey {
    std::size_t operator()(const Key& key) const {
      std::size_t hash = 0;
      std::memcpy(&hash, key.data(), sizeof hash);
      return hash;
    }
  };

  std::deque<Place> places_;
  Place end_;
  std::unordered_set<Key, HashKey> seen_;
};

}  // namespace imafs
