#include "imafs/log_journal.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>

#include "imafs/digest.h"
#include "imafs/posix_file.h"

namespace imafs {
namespace {

constexpr std::uint64_t kSegmentSize = 64 << 20;  // a new segment from here on
constexpr off_t kLargestSegment = 256 << 20;
constexpr std::uint64_t kSegmentHead = 16;
constexpr std::string_view kMagic = "imafs journal 2\n";
constexpr std::size_t kChecksumSize = 8;
constexpr std::size_t kMaxPayload = 32 << 20;
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

std::uint64_t size_of(int fd) {
  struct stat attr {};
  return ::fstat(fd, &attr) == 0 ? static_cast<std::uint64_t>(attr.st_size) : 0;
}

}  // namespace

bool LogJournal::exists(const std::string& directory) {
  return ::access(segment_path(directory, 1).c_str(), F_OK) == 0;
}

Result<std::unique_ptr<LogJournal>> LogJournal::create(const std::string& directory) {
  if (auto made = make_directories(directory, 0700); !made) return fail(made.error());
  std::unique_ptr<LogJournal> journal(new LogJournal(directory));
  if (auto added = journal->add_segment(); !added) return fail(added.error());
  return journal;
}

Status LogJournal::add_segment() {
  const std::string path = segment_path(directory_, segments_.size() + 1);
  Segment segment;
  segment.base = end_;
  segment.fd.reset(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!segment.fd) return fail(errno_error("cannot make '" + path + "'"));
  if (auto written = write_all(segment.fd.get(), as_bytes(kMagic)); !written) {
    ::unlink(path.c_str());
    return written;
  }
  const std::lock_guard lock(segments_mutex_);
  segments_.push_back(std::move(segment));
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
  if (auto loaded = journal.load({false, from}, visit); !loaded) return fail(loaded.error());
  return journal.end_;
}

Status LogJournal::load(Loading loading, const std::function<Status(const Frame&)>& visit) {
  std::size_t count = 0;
  while (::access(segment_path(directory_, count + 1).c_str(), F_OK) == 0) ++count;
  for (std::size_t number = 1; number <= count; ++number) {
    if (auto loaded = load_segment(number, number == count, loading, visit); !loaded) return loaded;
  }
  if (segments_.empty()) return fail(ENOENT, "no journal in '" + directory_ + "'");
  return {};
}

Status LogJournal::load_segment(std::size_t number, bool is_last, Loading& loading,
                                const std::function<Status(const Frame&)>& visit) {
  const std::string path = segment_path(directory_, number);
  Segment segment;
  segment.base = end_;
  // A directory that somebody else filled: a FIFO there holds nobody up, and a size that no segment has is not believed.
  segment.fd.reset(::open(path.c_str(), (loading.repair ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!segment.fd) return fail(errno_error("cannot open '" + path + "'"));
  struct stat attr {};
  if (::fstat(segment.fd.get(), &attr) != 0) return fail(errno_error("cannot read '" + path + "'"));
  if (!S_ISREG(attr.st_mode) || attr.st_size > kLargestSegment) return fail(EBADMSG, "'" + path + "' is no segment of a journal");
  std::uint64_t size = size_of(segment.fd.get());
  if (size < kSegmentHead && is_last) {
    // Torn while it was made: nothing can be in it.
    if (!loading.repair) {
      segments_.push_back(std::move(segment));
      return {};
    }
    if (::ftruncate(segment.fd.get(), 0) != 0) return fail(errno_error("cannot repair '" + path + "'"));
    if (auto written = pwrite_all(segment.fd.get(), as_bytes(kMagic), 0); !written) return written;
    size = kSegmentHead;
  }
  Bytes bytes(size);
  auto got = pread_full(segment.fd.get(), bytes, 0);
  if (!got) return fail(got.error());
  bytes.resize(*got);
  if (bytes.size() < kSegmentHead || as_text(ByteView(bytes).first(kSegmentHead)) != kMagic) {
    return fail(EBADMSG, "'" + path + "' is no journal of version 1");
  }
  std::uint64_t at = kSegmentHead;
  if (loading.from > end_) {
    const std::uint64_t skipped = std::min(loading.from - end_, bytes.size() - kSegmentHead);
    at += skipped;
    end_ += skipped;
  }
  while (at < bytes.size()) {
    const ByteView rest = ByteView(bytes).subspan(at);
    const auto frame = frame_at(rest, end_);
    const bool intact = frame && std::ranges::equal(checksum(rest.first(frame->size - kChecksumSize)),
                                                    rest.subspan(frame->size - kChecksumSize, kChecksumSize));
    if (!intact) {
      // One write(2) makes a frame, so a torn one is the last thing in the journal.
      const bool torn = is_last && (!frame || at + frame->size == bytes.size());
      if (!torn) {
        return fail(EBADMSG, "'" + path + "' is damaged at byte " + std::to_string(at) + " (frame " + std::to_string(loading.frames) + ")");
      }
      if (loading.repair && ::ftruncate(segment.fd.get(), static_cast<off_t>(at)) != 0) return fail(errno_error("cannot repair '" + path + "'"));
      break;
    }
    if (auto seen = visit(*frame); !seen) return seen;
    at += frame->size;
    end_ += frame->size;
    ++loading.frames;
  }
  segments_.push_back(std::move(segment));
  return {};
}

Result<std::uint64_t> LogJournal::append(std::uint8_t kind, ByteView payload) {
  if (payload.size() > kMaxPayload) return fail(EFBIG, "an entry of more than 32 MiB");
  if (end_ - segments_.back().base >= kSegmentSize) {
    if (auto added = add_segment(); !added) return fail(added.error());
  }
  Bytes frame;
  frame.reserve(payload.size() + kFrameOverhead);
  append_le32(frame, static_cast<std::uint32_t>(payload.size()));
  frame.push_back(kind);
  imafs::append(frame, payload);
  imafs::append(frame, checksum(frame));
  const Segment& segment = segments_.back();
  const std::uint64_t place = kSegmentHead + (end_ - segment.base);
  if (auto written = pwrite_all(segment.fd.get(), frame, place); !written) {
    (void)!::ftruncate(segment.fd.get(), static_cast<off_t>(place));  // what is left is torn, and cut at the next start
    return fail(written.error());
  }
  const std::uint64_t offset = end_;
  end_ += frame.size();
  return offset;
}

Status LogJournal::cut(std::uint64_t offset) {
  const Segment& segment = segments_.back();
  if (::ftruncate(segment.fd.get(), static_cast<off_t>(kSegmentHead + (offset - segment.base))) != 0) {
    return fail(errno_error("cannot cut the journal"));
  }
  end_ = offset;
  return {};
}

Result<std::size_t> LogJournal::read(std::uint64_t offset, std::span<std::uint8_t> out) const {
  int fd = -1;
  std::uint64_t base = 0, limit = 0;
  {
    const std::lock_guard lock(segments_mutex_);
    auto after = std::upper_bound(segments_.begin(), segments_.end(), offset,
                                  [](std::uint64_t value, const Segment& segment) { return value < segment.base; });
    limit = after == segments_.end() ? ~std::uint64_t{0} : after->base;
    --after;
    fd = after->fd.get();
    base = after->base;
  }
  const std::size_t size = std::min<std::uint64_t>(out.size(), limit - offset);
  return pread_full(fd, out.first(size), kSegmentHead + (offset - base));
}

}  // namespace imafs
