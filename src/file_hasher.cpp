#include "imafs/file_hasher.h"

#include <fcntl.h>
#include <linux/fsverity.h>
#include <sys/ioctl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>
#include <semaphore>
#include <thread>

#include "imafs/file_version.h"
#include "imafs/posix_file.h"

namespace imafs {
namespace {

// Larger reads gained nothing when measured, smaller ones lost.
constexpr std::size_t kReadSize = 128 * 1024;
// From here on it pays to tell the kernel that the whole file will be read in order.
constexpr std::int64_t kReadAheadFrom = 1024 * 1024;
// From here on a thread that reads while this one hashes is worth its start: reading from the page cache takes a third as
// long as hashing.
constexpr std::int64_t kPipelineFrom = 8 * 1024 * 1024;
constexpr std::size_t kPartSize = 512 * 1024;
constexpr std::size_t kParts = 4;

constexpr std::size_t kSignatureHeaderSize = 9;

// One buffer and one hash context for each thread and algorithm: opening small files allocates nothing.
struct HashTools {
  std::unique_ptr<std::uint8_t[]> buffer = std::make_unique<std::uint8_t[]>(kReadSize);
  std::array<std::unique_ptr<Hasher>, kHashAlgorithmCount> hashers;

  Hasher& hasher(HashAlgorithm algorithm) {
    auto& slot = hashers[static_cast<std::size_t>(algorithm)];
    if (!slot) slot = std::make_unique<Hasher>(algorithm);
    return *slot;
  }
};

HashTools& thread_tools() {
  thread_local HashTools tools;
  return tools;
}

// A file's content, part by part, read by a thread of its own that is up to kParts ahead.
class ReadAhead {
 public:
  ReadAhead(int fd, std::int64_t size) : fd_(fd), left_(size), reader_([this] { read(); }) {}

  // What pread_full() says of the next part; the bytes hold until the next call. Not after an error or an early end.
  Result<ByteView> next() {
    if (taken_ > 0) free_.release();
    full_.acquire();
    const Part& part = parts_[taken_++ % kParts];
    if (!part.size) return fail(part.size.error());
    return ByteView(part.bytes.get(), *part.size);
  }

 private:
  struct Part {
    std::unique_ptr<std::uint8_t[]> bytes = std::make_unique<std::uint8_t[]>(kPartSize);
    Result<std::size_t> size = 0;
  };

  void read() {
    std::uint64_t offset = 0;
    for (std::size_t number = 0; left_ > 0; ++number) {
      free_.acquire();
      Part& part = parts_[number % kParts];
      part.size = pread_full(fd_, {part.bytes.get(), std::min<std::size_t>(kPartSize, static_cast<std::size_t>(left_))}, offset);
      const std::size_t got = part.size.value_or(0);
      full_.release();
      if (got == 0) return;
      offset += got;
      left_ -= static_cast<std::int64_t>(got);
    }
  }

  const int fd_;
  std::int64_t left_;      // the reader's
  std::size_t taken_ = 0;  // the caller's
  std::array<Part, kParts> parts_;
  std::counting_semaphore<kParts> free_{kParts}, full_{0};
  std::jthread reader_;  // last: it uses the rest
};

// The digest of `size` bytes that `next` gives, part by part.
template <class Next>
Result<Digest> hash_parts(Hasher& hasher, std::int64_t size, Next&& next) {
  while (size > 0) {
    const Result<ByteView> part = next();
    if (!part || part->empty()) {
      (void)hasher.finish();  // leaves the context ready for the next file
      if (!part) return fail(part.error());
      return fail(EINVAL, "the file shrank while it was hashed");
    }
    hasher.update(*part);
    size -= static_cast<std::int64_t>(part->size());
  }
  return hasher.finish();
}

}  // namespace

Result<Digest> hash_file(int fd, HashAlgorithm algorithm) {
  const auto attr = stat_of(fd);
  if (!attr) return fail(attr.error());
  const std::int64_t size = attr->st_size;
  if (size >= kReadAheadFrom) ::posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);

  HashTools& tools = thread_tools();
  Hasher& hasher = tools.hasher(algorithm);
  if (size >= kPipelineFrom) {
    ReadAhead ahead(fd, size);
    return hash_parts(hasher, size, [&] { return ahead.next(); });
  }
  std::uint64_t offset = 0;
  return hash_parts(hasher, size, [&]() -> Result<ByteView> {
    const std::uint64_t left = static_cast<std::uint64_t>(size) - offset;
    const auto got = pread_full(fd, {tools.buffer.get(), std::min<std::size_t>(kReadSize, left)}, offset);
    if (!got) return fail(got.error());
    offset += *got;
    return ByteView(tools.buffer.get(), *got);
  });
}

Result<Digest> verity_digest(int fd) {
  alignas(struct fsverity_digest) std::array<std::uint8_t, sizeof(struct fsverity_digest) + kMaxDigestSize> answer{};
  auto* const head = reinterpret_cast<struct fsverity_digest*>(answer.data());
  head->digest_size = kMaxDigestSize;
  if (::ioctl(fd, FS_IOC_MEASURE_VERITY, head) != 0) {
    if (errno == ENOTTY || errno == EOPNOTSUPP) errno = ENODATA;
    return fail(errno_error("fs-verity digest"));
  }
  const HashAlgorithm algorithm =
      head->digest_algorithm == FS_VERITY_HASH_ALG_SHA512 ? HashAlgorithm::kSha512 : HashAlgorithm::kSha256;
  if (head->digest_size != digest_size(algorithm)) return fail(EINVAL, "fs-verity digest of unknown size");
  return Digest::of_bytes(algorithm, {answer.data() + sizeof(struct fsverity_digest), digest_size(algorithm)});
}

HashAlgorithm algorithm_of_xattr(ByteView value, HashAlgorithm configured) {
  if (value.size() < 2) return configured;
  const auto known = [&](std::uint8_t id) { return hash_algorithm_of_id(id).value_or(configured); };
  switch (value[0]) {
    case 0x01:
      if (value.size() == 17) return HashAlgorithm::kMd5;
      if (value.size() != 21) return configured;
      // An md5 digest padded to sha1's size by very old kernels.
      return std::all_of(value.end() - 4, value.end(), [](std::uint8_t byte) { return byte == 0; })
                 ? HashAlgorithm::kMd5
                 : HashAlgorithm::kSha1;
    case 0x03:
      return value[1] == 2 && value.size() > kSignatureHeaderSize ? known(value[2]) : configured;
    case 0x06:
      return value[1] == 3 && value.size() > kSignatureHeaderSize ? known(value[2]) : configured;
    case 0x04: return known(value[1]);
    default: return configured;
  }
}

Bytes xattr_of(int fd, const char* name) { return find_xattr(fd, name).value_or(Bytes()); }

std::optional<Bytes> find_xattr(int fd, const char* name) {
  std::array<std::uint8_t, 256> first{};
  ssize_t size = ::fgetxattr(fd, name, first.data(), first.size());
  if (size >= 0) return Bytes(first.begin(), first.begin() + size);
  while (errno == ERANGE) {
    size = ::fgetxattr(fd, name, nullptr, 0);
    if (size < 0) return std::nullopt;
    Bytes value(static_cast<std::size_t>(size));
    size = ::fgetxattr(fd, name, value.data(), value.size());
    if (size >= 0) {
      value.resize(static_cast<std::size_t>(size));
      return value;
    }
  }
  return std::nullopt;
}

}  // namespace imafs
