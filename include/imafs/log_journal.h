// The journal: frames in segment files, written before the PCR is extended, read back after a crash.
// Knows nothing of what a frame says. docs/LOG_FORMAT.md has every byte.
//
// A frame is u32 size, u8 kind, the payload, and the first 8 bytes of the SHA-256 over all that. It is
// written by one write(2); no fsync: the journal must survive what the PCR survives, the death of the
// daemon, not of the machine. Writers need a lock of their own; reads are thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "imafs/bytes.h"
#include "imafs/result.h"
#include "imafs/unique_fd.h"

namespace imafs {

class LogJournal {
 public:
  static constexpr std::size_t kFrameOverhead = 13;  // bytes of a frame beside its payload

  struct Frame {
    std::uint8_t kind = 0;
    ByteView payload;
    std::uint64_t offset = 0;  // of the frame, counted over all segments
    std::size_t size = 0;      // of the frame
  };

  // An empty journal in `directory`, which must not hold one.
  static Result<std::unique_ptr<LogJournal>> create(const std::string& directory);
  // Hands every frame in order to `visit`; an error of it ends the reading. A torn tail is cut off. A
  // damaged frame with others after it is EBADMSG; the sentence has its number and offset.
  static Result<std::unique_ptr<LogJournal>> open(const std::string& directory,
                                                  const std::function<Status(const Frame&)>& visit);
  // The same for reading only, from an offset: nothing is changed, a torn tail is left where it is. Returns where it ended.
  static Result<std::uint64_t> scan(const std::string& directory, std::uint64_t from,
                                    const std::function<Status(const Frame&)>& visit);
  static bool exists(const std::string& directory);

  // The offset of the new frame. With an error the journal is as before: ENOSPC, EIO, EFBIG ...
  Result<std::uint64_t> append(std::uint8_t kind, ByteView payload);
  // Takes the last frame back. REQUIRES: `offset` is the last one's.
  Status cut(std::uint64_t offset);

  std::uint64_t end() const { return end_; }
  // Bytes from `offset` on, from one segment; fewer at its end.
  Result<std::size_t> read(std::uint64_t offset, std::span<std::uint8_t> out) const;
  // The frame at the start of `bytes`; nothing if it is not whole. Its checksum is not looked at.
  static std::optional<Frame> frame_at(ByteView bytes, std::uint64_t offset);

 private:
  struct Segment {
    std::uint64_t base = 0;  // offset of its first frame
    UniqueFd fd;
  };

  explicit LogJournal(std::string directory) : directory_(std::move(directory)) {}
  Status add_segment();
  // From the frame at `from` on; 0: all.
  struct Loading {
    bool repair = true;
    std::uint64_t from = 0;
    std::uint64_t frames = 0;  // seen
  };
  Status load(Loading loading, const std::function<Status(const Frame&)>& visit);
  Status load_segment(std::size_t number, bool is_last, Loading& loading, const std::function<Status(const Frame&)>& visit);

  const std::string directory_;
  mutable std::mutex segments_mutex_;  // only for the vector; descriptors live as long as the journal
  std::vector<Segment> segments_;
  std::uint64_t end_ = 0;
};

}  // namespace imafs
