#include "imafs/file_hasher.h"

#include <fcntl.h>
#include <linux/fsverity.h>
#include <sys/ioctl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>

#include "imafs/file_version.h"
#include "imafs/posix_file.h"

namespace imafs {
namespace {

// Larger reads gained nothing when measured, smaller ones lost.
constexpr std::size_t kReadSize = 128 * 1024;
// From here on it pays to tell the kernel that the whole file will be read in order.
constexpr std::int64_t kReadAheadFrom = 1024 * 1024;

// Between two pauses: about 3 ms.
constexpr std::uint64_t kPart = 4 * 1024 * 1024;

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

}  // namespace

Result<Digest> hash_file(int fd, HashAlgorithm algorithm, const HashPause& pause) {
  const auto attr = stat_of(fd);
  if (!attr) return fail(attr.error());
  std::int64_t left = attr->st_size;
  if (left >= kReadAheadFrom) ::posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);

  HashTools& tools = thread_tools();
  Hasher& hasher = tools.hasher(algorithm);
  std::uint64_t offset = 0;
  while (left > 0) {
    const std::span<std::uint8_t> part{tools.buffer.get(), std::min<std::size_t>(kReadSize, static_cast<std::size_t>(left))};
    const auto got = pread_full(fd, part, offset);
    if (!got || *got == 0) {
      (void)hasher.finish();  // leaves the context ready for the next file
      if (!got) return fail(got.error());
      return fail(EINVAL, "the file shrank while it was hashed");
    }
    hasher.update(part.first(*got));
    offset += *got;
    if (pause && offset % kPart == 0) {
      if (auto status = pause(offset); !status) {
        (void)hasher.finish();
        return fail(status.error());
      }
    }
    left -= static_cast<std::int64_t>(*got);
  }
  return hasher.finish();
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
