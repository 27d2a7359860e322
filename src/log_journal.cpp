#include "imafs/log_journal.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <thread>
#include <utility>

#include "imafs/digest.h"
#include "imafs/fd_reserve.h"
#include "imafs/posix_file.h"

namespace imafs {
namespace {

constexpr std::uint64_t kSegmentSize = 64 << 20;  // a new segment from here on
constexpr off_t kLargestSegment = 256 << 20;
constexpr std::uint64_t kSegmentHead = 16;
constexpr std::string_view kMagic = "imafs journal 2\n";
constexpr std::size_t kChecksumSize = 8;
constexpr std::uint8_t kLastKind = 15;  // kinds that a later version may have; none is 0
constexpr mode_t kFileMode = 0600;
constexpr auto kTryRoomEvery = std::chrono::seconds(1);
constexpr auto kWriteUnderWay = std::chrono::milliseconds(5);  // another process may be in the middle of its write(2)
static_assert(kMagic.size() == kSegmentHead);

std::string segment_path(const std::string& directory, std::size_t number) {
  std::array<char, 24> name{};
  std::snprintf(name.data(), name.size(), "/journal.%06zu", number);
  return directory + name.data();
}

Bytes checksum(ByteView frame) {
  const Digest digest = hash_of(HashAlgorithm::kSha256, frame);
  return {digest.bytes().begin(), digest.bytes().begin() + kChecksumSize};
}

bool is_intact(ByteView frame) {
  return std::ranges::equal(checksum(frame.first(frame.size() - kChecksumSize)), frame.last(kChecksumSize));
}

// Whether an intact frame begins somewhere behind the first byte of `rest`.
bool has_frame_behind(ByteView rest) {
  for (std::size_t at = 1; at + LogJournal::kFrameOverhead <= rest.size(); ++at) {
    const std::size_t size = load_le32(rest.subspan(at)) + LogJournal::kFrameOverhead;
    const std::uint8_t kind = rest[at + 4];
    if (size > rest.size() - at || kind == 0 || kind > kLastKind) continue;
    if (is_intact(rest.subspan(at, size))) return true;
  }
  return false;
}

// Whether `rest` is a frame whose size field alone is wrong: with the right one its checksum holds.
bool has_wrong_size(ByteView rest) {
  if (rest.size() < LogJournal::kFrameOverhead) return false;
  Bytes frame;
  frame.reserve(rest.size());
  append_le32(frame, static_cast<std::uint32_t>(rest.size() - LogJournal::kFrameOverhead));
  append(frame, rest.subspan(4));
  return is_intact(frame);
}

}  // namespace

bool LogJournal::exists(const std::string& directory) {
  return ::access(segment_path(directory, 1).c_str(), F_OK) == 0;
}

Result<std::unique_ptr<LogJournal>> LogJournal::create(const std::string& directory) {
  if (auto made = make_directories(directory, 0700); !made) return fail(made.error());
  if (::chmod(directory.c_str(), 0700) != 0) return fail(errno_error("cannot make '" + directory + "'"));
  std::unique_ptr<LogJournal> journal(new LogJournal(directory));
  if (auto added = journal->add_segment(); !added) return fail(added.error());
  return journal;
}

Status LogJournal::add_segment() {
  const std::string path = segment_path(directory_, segments_.size() + 1);
  Segment segment;
  segment.base = end_;
  segment.fd = FdReserve::of_process().make([&] { return ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, kFileMode); });
  if (!segment.fd) return fail(errno_error("cannot make '" + path + "'"));
  // A request thread may have a caller's umask.
  (void)::fchmod(segment.fd.get(), kFileMode);
  if (auto written = write_all(segment.fd.get(), as_bytes(kMagic)); !written) {
    ::unlink(path.c_str());
    return fail(error_of(written.error().code, "cannot write '" + path + "'"));
  }
  {
    const std::lock_guard lock(segments_mutex_);
    segments_.push_back(std::move(segment));
  }
  allocated_ = 0;
  keep_room();
  return {};
}

std::optional<LogJournal::Frame> LogJournal::frame_at(ByteView bytes, std::uint64_t offset) {
  if (bytes.size() < kFrameOverhead) return std::nullopt;
  const std::size_t payload = load_le32(bytes);
  if (payload > kMaxPayload || bytes.size() < payload + kFrameOverhead) return std::nullopt;
  return Frame{bytes[4], bytes.subspan(5, payload), offset, payload + kFrameOverhead};
}

Result<std::unique_ptr<LogJournal>> LogJournal::open(const std::string& directory,
                                                     const std::function<Status(const Frame&)>& visit) {
  std::unique_ptr<LogJournal> journal(new LogJournal(directory));
  if (auto loaded = journal->load({}, visit); !loaded) return fail(loaded.error());
  return journal;
}

Result<std::uint64_t> LogJournal::scan(const std::string& directory, std::uint64_t from,
                                       const std::function<Status(const Frame&)>& visit) {
  LogJournal journal(directory);
  if (auto loaded = journal.load({true, from}, visit); !loaded) return fail(loaded.error());
  return journal.end_;
}

Status LogJournal::load(Loading loading, const std::function<Status(const Frame&)>& visit) {
  std::size_t count = 0;
  while (::access(segment_path(directory_, count + 1).c_str(), F_OK) == 0) ++count;
  if (count == 0) return fail(ENOENT, "no journal in '" + directory_ + "'");
  if (::access(segment_path(directory_, count + 2).c_str(), F_OK) == 0) {
    return fail(EBADMSG, "'" + segment_path(directory_, count + 1) + "' is missing, and others follow it");
  }
  for (std::size_t number = 1; number <= count; ++number) {
    if (auto loaded = load_segment(number, number == count, loading, visit); !loaded) return loaded;
  }
  return {};
}

Status LogJournal::load_segment(std::size_t number, bool is_last, Loading& loading,
                                const std::function<Status(const Frame&)>& visit) {
  const std::string path = segment_path(directory_, number);
  Segment segment;
  segment.base = end_;
  // A directory that somebody else filled: a FIFO there holds nobody up, and a size that no segment has is not believed.
  segment.fd.reset(::open(path.c_str(), (loading.read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!segment.fd) return fail(errno_error("cannot open '" + path + "'"));
  struct stat attr {};
  if (::fstat(segment.fd.get(), &attr) != 0) return fail(errno_error("cannot read '" + path + "'"));
  if (!S_ISREG(attr.st_mode) || attr.st_size > kLargestSegment) return fail(EBADMSG, "'" + path + "' is no segment of a journal");
  const int fd = segment.fd.get();
  const std::uint64_t size = static_cast<std::uint64_t>(attr.st_size);
  if (size < kSegmentHead && is_last) {
    // Torn while it was made: nothing can be in it.
    torn_ = Torn{number, 0, size};
    segments_.push_back(std::move(segment));
    return {};
  }
  std::array<std::uint8_t, kSegmentHead> head{};
  const auto got_head = pread_full(fd, head, 0);
  if (!got_head) return fail(got_head.error());
  if (*got_head < kSegmentHead || as_text(head) != kMagic) return fail(EBADMSG, "'" + path + "' is not a journal of version 2");
  const std::uint64_t skipped = loading.from > end_ ? std::min(loading.from - end_, size - kSegmentHead) : 0;
  const std::uint64_t first = kSegmentHead + skipped;
  end_ += skipped;
  Bytes bytes(size - first);
  const auto got = pread_full(fd, bytes, first);
  if (!got) return fail(got.error());
  bytes.resize(*got);
  std::uint64_t at = 0;
  bool waited = false;
  while (at < bytes.size()) {
    const ByteView rest = ByteView(bytes).subspan(at);
    const auto frame = frame_at(rest, end_);
    if (!frame || !is_intact(rest.first(frame->size))) {
      // One write(2) makes a frame: a torn one is a beginning of it, and the last thing in the journal.
      if (is_last && !frame && !has_wrong_size(rest) && !has_frame_behind(rest)) {
        torn_ = Torn{number, first + at, rest.size()};
        break;
      }
      if (loading.read_only && !std::exchange(waited, true)) {
        std::this_thread::sleep_for(kWriteUnderWay);
        const auto again = pread_full(fd, bytes, first);
        if (!again) return fail(again.error());
        bytes.resize(*again);
        continue;
      }
      return fail(EBADMSG, "'" + path + "' is damaged at byte " + std::to_string(first + at) + " (frame " + std::to_string(loading.frames) + ")");
    }
    if (auto seen = visit(*frame); !seen) return seen;
    at += frame->size;
    end_ += frame->size;
    ++loading.frames;
    waited = false;
  }
  segments_.push_back(std::move(segment));
  return {};
}

Status LogJournal::cut_torn(const std::string& kept, bool must_keep) {
  if (!torn_) return {};
  const int fd = segments_.back().fd.get();
  const std::string path = segment_path(directory_, torn_->segment);
  Bytes bytes(torn_->bytes);
  if (auto got = pread_full(fd, bytes, torn_->in_file); !got) return fail(got.error());
  if (!bytes.empty()) {
    const UniqueFd file(::open(kept.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, kFileMode));
    if (must_keep && !file) return fail(errno_error("cannot keep the torn end of the journal in '" + kept + "'"));
    const auto written = file ? write_all(file.get(), bytes) : Status();
    if (must_keep && !written) return fail(error_of(written.error().code, "cannot keep the torn end of the journal in '" + kept + "'"));
  }
  if (::ftruncate(fd, static_cast<off_t>(torn_->in_file)) != 0) return fail(errno_error("cannot repair '" + path + "'"));
  if (torn_->in_file == 0) {
    if (auto written = pwrite_all(fd, as_bytes(kMagic), 0); !written) return fail(error_of(written.error().code, "cannot repair '" + path + "'"));
  }
  torn_.reset();
  allocated_ = 0;
  return {};
}

// ---- room ----

// Where the file system knows no fallocate(2), a file beside the segments holds the blocks until they are needed.
bool LogJournal::make_reserve() {
  const std::string path = directory_ + "/reserve";
  struct stat attr {};
  if (::stat(path.c_str(), &attr) == 0 && static_cast<std::uint64_t>(attr.st_size) >= kRoomAhead) return true;
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, kFileMode));
  if (!fd) return false;
  Bytes part(64 << 10);
  std::uint32_t next = 1;
  for (std::uint64_t done = 0; done < kRoomAhead; done += part.size()) {
    // Not zeros: a file system that compresses would keep no block for them.
    for (std::uint8_t& byte : part) byte = static_cast<std::uint8_t>((next = next * 1664525 + 1013904223) >> 24);
    if (!write_all(fd.get(), part)) {
      (void)!::ftruncate(fd.get(), 0);
      return false;
    }
  }
  return true;
}

bool LogJournal::release_reserve() {
  return ::unlink((directory_ + "/reserve").c_str()) == 0;
}

void LogJournal::keep_room() {
  const Segment& segment = segments_.back();
  const std::uint64_t used = kSegmentHead + (end_ - segment.base);
  if (allocated_ < used + kRoomAhead / 2) {
    const auto now = std::chrono::steady_clock::now();
    if (now >= next_try_) {
      const std::uint64_t from = std::max(allocated_, used), until = used + kRoomAhead;
      bool kept = false;
      if (can_allocate_) {
        kept = ::fallocate(segment.fd.get(), FALLOC_FL_KEEP_SIZE, static_cast<off_t>(from), static_cast<off_t>(until - from)) == 0;
        if (kept) allocated_ = until;
        if (!kept && errno != ENOSPC && errno != EDQUOT && errno != EFBIG && errno != EINTR) can_allocate_ = false;
      }
      if (!can_allocate_) {
        kept = make_reserve();
        allocated_ = used;
        next_try_ = now + kTryRoomEvery;
      }
      if (!kept) next_try_ = now + kTryRoomEvery;
      room_in_use_ = !kept;
    }
  }
  room_ = can_allocate_ ? allocated_ - std::min(allocated_, used) : room_in_use_ ? 0 : kRoomAhead;
}

void LogJournal::give_back_room() {
  if (torn_) return;  // it is not ours to cut
  release_reserve();
  const Segment& segment = segments_.back();
  // To the size that it has: what is allocated beyond goes.
  (void)!::ftruncate(segment.fd.get(), static_cast<off_t>(kSegmentHead + (end_ - segment.base)));
  allocated_ = 0;
  room_ = 0;
}

LogJournal::Room LogJournal::room() const { return {room_, room_in_use_}; }

// ---- writing ----

// A write that failed left bytes behind the last frame: they go before anything else is written.
Status LogJournal::trim_failed_write() {
  if (!has_garbage_) return {};
  const Segment& segment = segments_.back();
  if (::ftruncate(segment.fd.get(), static_cast<off_t>(kSegmentHead + (end_ - segment.base))) != 0) {
    return fail(errno_error("cannot cut the journal"));
  }
  has_garbage_ = false;
  allocated_ = 0;
  return {};
}

Status LogJournal::write_frame(const Segment& segment, ByteView frame, std::uint64_t place) {
  auto written = pwrite_all(segment.fd.get(), frame, place);
  if (!written && (written.error().code == ENOSPC || written.error().code == EDQUOT) && release_reserve()) {
    room_in_use_ = true;
    room_ = 0;
    next_try_ = std::chrono::steady_clock::now() + kTryRoomEvery;
    written = pwrite_all(segment.fd.get(), frame, place);
  }
  if (written) return {};
  has_garbage_ = true;
  (void)trim_failed_write();  // what is left then is torn, and cut at the next start
  return fail(error_of(written.error().code, "cannot write to the journal in '" + directory_ + "'"));
}

Result<std::uint64_t> LogJournal::append(std::uint8_t kind, ByteView payload) {
  if (payload.size() > kMaxPayload) return fail(EFBIG, "an entry of more than 32 MiB");
  if (auto trimmed = trim_failed_write(); !trimmed) return fail(trimmed.error());
  if (end_ - segments_.back().base >= kSegmentSize) {
    // Without room for a new file the old one grows on, into what is allocated for it.
    if (auto added = add_segment(); !added && room_ < payload.size() + kFrameOverhead) return fail(added.error());
  }
  Bytes frame;
  frame.reserve(payload.size() + kFrameOverhead);
  append_le32(frame, static_cast<std::uint32_t>(payload.size()));
  frame.push_back(kind);
  imafs::append(frame, payload);
  imafs::append(frame, checksum(frame));
  const Segment& segment = segments_.back();
  const std::uint64_t place = kSegmentHead + (end_ - segment.base);
  if (auto written = write_frame(segment, frame, place); !written) return fail(written.error());
  const std::uint64_t offset = end_;
  end_ += frame.size();
  keep_room();
  return offset;
}

Status LogJournal::cut(std::uint64_t offset) {
  const Segment& segment = segments_.back();
  if (::ftruncate(segment.fd.get(), static_cast<off_t>(kSegmentHead + (offset - segment.base))) != 0) {
    return fail(errno_error("cannot cut the journal"));
  }
  end_ = offset;
  // Blocks behind the new end went with it.
  allocated_ = 0;
  next_try_ = {};
  keep_room();
  return {};
}

Result<std::size_t> LogJournal::read(std::uint64_t offset, std::span<std::uint8_t> out) const {
  int fd = -1;
  std::uint64_t base = 0, limit = 0;
  {
    const std::lock_guard lock(segments_mutex_);
    auto after = std::upper_bound(segments_.begin(), segments_.end(), offset,
                                  [](std::uint64_t value, const Segment& segment) { return value < segment.base; });
    if (after == segments_.begin()) return fail(EBADMSG, "the journal has no byte " + std::to_string(offset));
    limit = after == segments_.end() ? ~std::uint64_t{0} : after->base;
    --after;
    fd = after->fd.get();
    base = after->base;
  }
  const std::size_t size = std::min<std::uint64_t>(out.size(), limit - offset);
  return pread_full(fd, out.first(size), kSegmentHead + (offset - base));
}

}  // namespace imafs
