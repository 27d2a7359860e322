// Whole-file reads and writes on POSIX descriptors; every call retries EINTR. Paths of descriptors.
#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

#include "imafs/bytes.h"
#include "imafs/result.h"

namespace imafs {

// Writes all of `bytes` at the file position. ENOSPC and the like come back as they are;
// part of the bytes may then be in the file.
Status write_all(int fd, ByteView bytes);
Status pwrite_all(int fd, ByteView bytes, std::uint64_t offset);

// Reads up to `limit` bytes of the file at `path`; EFBIG if there are more.
Result<std::string> read_file(const std::string& path, std::size_t limit);
// The same of a file that somebody else may have put there: the path's last part is no symlink and the file a regular one, or EBADMSG (a
// FIFO holds nobody up); one that is too large is not read at all.
Result<std::string> read_regular_file(const std::string& path, std::size_t limit);
// Reads from `offset` until `out` is full or the end of file; returns the bytes read.
Result<std::size_t> pread_full(int fd, std::span<std::uint8_t> out, std::uint64_t offset);

// Writes a new file with a random name in the directory of `path`, then renames it over: readers see the old or the new text.
// A link stays one, and what is no regular file (a device, a pipe) is written to. ELOOP: `path` is a link that neither this
// user nor root made. The sentence begins with "cannot write".
Status write_file_atomically(const std::string& path, std::string_view text, unsigned mode = 0600);

// mkdir -p: directories that are missing get `mode`.
Status make_directories(const std::string& path, unsigned mode);
// Where locks and sockets of this user live, made if it is missing: /run/imafs-0 for root, else imafs-UID below $XDG_RUNTIME_DIR
// or /tmp. EACCES: what stands there is somebody else's, or others may enter it.
Result<std::string> runtime_directory();

// The path that leads to a descriptor's file, for calls that take no descriptor or none of O_PATH. It ends at the file
// itself, also if that is a symlink.
class ProcPath {
 public:
  explicit ProcPath(int fd) { std::snprintf(text_.data(), text_.size(), "/proc/self/fd/%d", fd); }
  const char* get() const { return text_.data(); }

 private:
  std::array<char, 32> text_{};
};

}  // namespace imafs
