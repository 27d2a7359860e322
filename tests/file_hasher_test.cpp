#include "imafs/file_hasher.h"

#include <fcntl.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <cerrno>
#include <cstdlib>
#include <thread>

#include "imafs/posix_file.h"
#include "imafs/unique_fd.h"

using namespace imafs;

namespace {

// An empty file without a name.
UniqueFd scratch_file() {
  char path[] = "/tmp/imafs-test-XXXXXX";
  UniqueFd fd(::mkostemp(path, O_CLOEXEC));
  ::unlink(path);
  return fd;
}

}  // namespace

// Around the sizes at which the way of reading changes.
TEST_CASE("a file's digest is that of its bytes, whatever its size") {
  constexpr std::size_t kib = 1024, mib = 1024 * kib;
  Bytes content(20 * mib + 12345);
  std::uint32_t state = 1;
  for (std::uint8_t& byte : content) byte = static_cast<std::uint8_t>((state = state * 1664525 + 1013904223) >> 24);
  const UniqueFd fd = scratch_file();
  REQUIRE(fd);
  REQUIRE(pwrite_all(fd.get(), content, 0));
  for (const std::size_t size : {20 * mib + 12345, 8 * mib + 1, 8 * mib, 8 * mib - 1, mib, 128 * kib + 1, 128 * kib, 128 * kib - 1,
                                 std::size_t{1}, std::size_t{0}}) {
    REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(size)) == 0);
    for (const HashAlgorithm algorithm : {HashAlgorithm::kSha256, HashAlgorithm::kSha512}) {
      CHECK(hash_file(fd.get(), algorithm).value() == hash_of(algorithm, ByteView(content).first(size)));
    }
  }
}

TEST_CASE("a large file that shrinks while it is hashed has no digest") {
  const UniqueFd fd = scratch_file();
  REQUIRE(fd);
  int shrank = 0;
  for (int round = 0; round < 20; ++round) {
    REQUIRE(::ftruncate(fd.get(), 256 << 20) == 0);
    const std::jthread truncates([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      (void)!::ftruncate(fd.get(), 4096);
    });
    const auto digest = hash_file(fd.get(), HashAlgorithm::kSha256);
    if (digest) continue;  // before it was looked at, or too late
    CHECK(digest.error().code == EINVAL);
    ++shrank;
  }
  CHECK(shrank > 0);
}
