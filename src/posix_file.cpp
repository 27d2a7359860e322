#include "imafs/posix_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "imafs/unique_fd.h"

namespace imafs {
namespace {

template <class Write>
Status write_loop(ByteView bytes, Write&& write) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t wrote = write(bytes.subspan(done), done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return fail(errno_error("write"));
    done += static_cast<std::size_t>(wrote);
  }
  return {};
}

}  // namespace

Status write_all(int fd, ByteView bytes) {
  return write_loop(bytes, [&](ByteView rest, std::size_t) { return ::write(fd, rest.data(), rest.size()); });
}

Status pwrite_all(int fd, ByteView bytes, std::uint64_t offset) {
  return write_loop(bytes, [&](ByteView rest, std::size_t done) {
    return ::pwrite(fd, rest.data(), rest.size(), static_cast<off_t>(offset + done));
  });
}

Result<std::string> read_file(const std::string& path, std::size_t limit) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail(errno_error("cannot open '" + path + "'"));
  std::string text;
  std::array<char, 16384> part{};
  for (;;) {
    const ssize_t got = ::read(fd.get(), part.data(), part.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail(errno_error("cannot read '" + path + "'"));
    if (got == 0) return text;
    text.append(part.data(), static_cast<std::size_t>(got));
    if (text.size() > limit) return fail(error_of(EFBIG, "cannot read '" + path + "'"));
  }
}

Result<std::size_t> pread_full(int fd, std::span<std::uint8_t> out, std::uint64_t offset) {
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t got = ::pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail(errno_error("read"));
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

Status write_file_atomically(const std::string& path, std::string_view text, unsigned mode) {
  std::string target = path;
  struct stat attr {};
  if (::stat(path.c_str(), &attr) == 0) {
    if (!S_ISREG(attr.st_mode)) {
      const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
      if (!fd) return fail(errno_error("cannot write '" + path + "'"));
      if (auto written = write_all(fd.get(), as_bytes(text)); !written) return fail(error_of(written.error().code, "cannot write '" + path + "'"));
      return {};
    }
    if (char* const real = ::realpath(path.c_str(), nullptr)) {
      target = real;
      ::free(real);
    }
  }
  const std::string temporary = target + ".new";
  UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode));
  if (!fd) return fail(errno_error("cannot write '" + temporary + "'"));
  Status status = write_all(fd.get(), as_bytes(text));
  fd.reset();
  if (status && ::rename(temporary.c_str(), target.c_str()) != 0) status = fail(errno_error("cannot write '" + path + "'"));
  if (!status) ::unlink(temporary.c_str());
  return status;
}

Status make_directories(const std::string& path, unsigned mode) {
  for (std::size_t slash = path.find('/', 1);; slash = path.find('/', slash + 1)) {
    const std::string part = path.substr(0, slash);
    if (::mkdir(part.c_str(), mode) != 0 && errno != EEXIST) return fail(errno_error("cannot make '" + part + "'"));
    if (slash == std::string::npos) break;
  }
  struct stat attr {};
  if (::stat(path.c_str(), &attr) != 0) return fail(errno_error("cannot make '" + path + "'"));
  if (!S_ISDIR(attr.st_mode)) return fail(error_of(ENOTDIR, "cannot make '" + path + "'"));
  return {};
}

Result<std::string> runtime_directory() {
  const uid_t user = ::geteuid();
  const char* const parent = user == 0 ? "/run" : ::getenv("XDG_RUNTIME_DIR");
  const std::string path = std::string(parent ? parent : "/tmp") + "/imafs-" + std::to_string(user);
  if (auto made = make_directories(path, 0700); !made) return fail(made.error());
  struct stat attr {};
  if (::lstat(path.c_str(), &attr) != 0) return fail(errno_error("cannot use '" + path + "'"));
  if (!S_ISDIR(attr.st_mode) || attr.st_uid != user || (attr.st_mode & 077) != 0) {
    return fail(EACCES, "'" + path + "' is not a directory that only this user may enter: remove it");
  }
  return path;
}

}  // namespace imafs
