// The journal: frames in segment files, written before the PCR is extended, read back after a crash.
// Knows nothing of what a frame says. docs/LOG_FORMAT.md has every byte.
//
// A frame is u32 size, u8 kind, the payload, and the first 8 bytes of the SHA-256 over all that. It is
// written by one write(2); no fsync: the journal must survive what the PCR survives, the death of the
// daemon, not of the machine. Writers need a lock of their own; reads are thread-safe.
//
// Room on the disk is allocated ahead of the last frame, beyond the end of the file, so that entries can be written for a
// while on a file system that somebody has filled. Readers do not see it.
#pragma once

#include <atomic>
#include <chrono>
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
  static constexpr std::size_t kMaxPayload = 32 << 20;
  static constexpr std::uint64_t kRoomAhead = 4 << 20;  // bytes allocated beyond the last frame

  struct Frame {
    std::uint8_t kind = 0;
    ByteView payload;
    std::uint64_t offset = 0;  // of the frame, counted over all segments
    std::size_t size = 0;      // of the frame
  };

  // What follows the last intact frame and is a beginning of one: a write that did not end.
  struct Torn {
    std::size_t segment = 0;    // its number
    std::uint64_t in_file = 0;  // where it begins in that file
    std::uint64_t bytes = 0;
  };

  // How much room is left for entries when the file system has none. `in_use`: it could not be allocated anew, so it shrinks.
  struct Room {
    std::uint64_t bytes = 0;
    bool in_use = false;
  };

  // An empty journal in `directory`, which must not hold one.
  static Result<std::unique_ptr<LogJournal>> create(const std::string& directory);
  // Hands every frame in order to `visit`; an error of it ends the reading. Changes nothing on disk: a torn tail is told by
  // torn(), and stays until cut_torn(). Returns EBADMSG for a damaged frame (one that other frames follow, or whose bytes are
  // all there); the message has its number and place.
  static Result<std::unique_ptr<LogJournal>> open(const std::string& directory,
                                                  const std::function<Status(const Frame&)>& visit);
  // The same for reading only, from an offset: what lies before it is not read. A torn tail is left out. Returns where the
  // reading ended. Reads a journal that is being written.
  static Result<std::uint64_t> scan(const std::string& directory, std::uint64_t from,
                                    const std::function<Status(const Frame&)>& visit);
  static bool exists(const std::string& directory);

  const std::optional<Torn>& torn() const { return torn_; }
  // Appends the torn tail to the file `kept`, then cuts it off. With `must_keep` an error in keeping it is returned, and
  // nothing is cut.
  Status cut_torn(const std::string& kept, bool must_keep);

  // The offset of the new frame. With an error the journal is as before: ENOSPC, EIO, EFBIG ...
  // REQUIRES: no torn tail.
  Result<std::uint64_t> append(std::uint8_t kind, ByteView payload);
  // Takes the last frame back. REQUIRES: `offset` is the last one's.
  Status cut(std::uint64_t offset);

  std::uint64_t end() const { return end_; }
  // Allocates the room ahead, where it is not there. Done by append() as well.
  void keep_room();
  // Gives the room back: nothing more will be appended.
  void give_back_room();
  Room room() const;  // thread-safe
  // Bytes from `offset` on, from one segment; fewer at its end. EBADMSG: no segment has that offset.
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
    bool read_only = false;
    std::uint64_t from = 0;
    std::uint64_t frames = 0;  // seen
  };
  Status load(Loading loading, const std::function<Status(const Frame&)>& visit);
  Status load_segment(std::size_t number, bool is_last, Loading& loading, const std::function<Status(const Frame&)>& visit);
  Status write_frame(const Segment& segment, ByteView frame, std::uint64_t place);
  Status trim_failed_write();
  bool make_reserve();
  bool release_reserve();

  const std::string directory_;
  mutable std::mutex segments_mutex_;  // only for the vector; descriptors live as long as the journal
  std::vector<Segment> segments_;
  std::uint64_t end_ = 0;
  std::optional<Torn> torn_;
  bool has_garbage_ = false;  // a write failed, and what it left behind the last frame could not be cut
  // Of the last segment's file: bytes up to which blocks are allocated.
  std::uint64_t allocated_ = 0;
  bool can_allocate_ = true;  // the file system knows fallocate(2)
  std::chrono::steady_clock::time_point next_try_{};  // when to ask for more room again, after a refusal
  std::atomic<std::uint64_t> room_{0};
  std::atomic<bool> room_in_use_{false};
};

}  // namespace imafs
