#include "imafs/posix_file.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
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

Result<std::string> read_all(int fd, const std::string& path, std::size_t limit) {
  std::string text;
  std::array<char, 16384> part{};
  for (;;) {
    const ssize_t got = ::read(fd, part.data(), part.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail(errno_error("cannot read '" + path + "'"));
    if (got == 0) return text;
    text.append(part.data(), static_cast<std::size_t>(got));
    if (text.size() > limit) return fail(error_of(EFBIG, "cannot read '" + path + "'"));
  }
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
  return read_all(fd.get(), path, limit);
}

Result<std::string> read_regular_file(const std::string& path, std::size_t limit) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY));
  if (!fd) return fail(errno_error("cannot open '" + path + "'"));
  struct stat attr {};
  if (::fstat(fd.get(), &attr) != 0) return fail(errno_error("cannot read '" + path + "'"));
  if (!S_ISREG(attr.st_mode)) return fail(EBADMSG, "'" + path + "' is no regular file");
  if (attr.st_size > 0 && static_cast<std::uint64_t>(attr.st_size) > limit) return fail(error_of(EFBIG, "cannot read '" + path + "'"));
  return read_all(fd.get(), path, limit);
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

namespace {

// The names below which `path` leads to its file. A link that neither this user nor root made is not followed: who may write
// the directory would choose what is overwritten.
Result<std::string> target_of(const std::string& path) {
  constexpr int kMaxLinks = 40;
  std::string target = path;
  for (int hops = 0; hops < kMaxLinks; ++hops) {
    struct stat attr {};
    if (::lstat(target.c_str(), &attr) != 0 || !S_ISLNK(attr.st_mode)) return target;
    if (attr.st_uid != ::geteuid() && attr.st_uid != 0) {
      return fail(ELOOP, "cannot write '" + path + "': '" + target + "' is a link that another user made");
    }
    std::array<char, PATH_MAX> text{};
    const ssize_t length = ::readlink(target.c_str(), text.data(), text.size());
    if (length < 0) return fail(errno_error("cannot write '" + path + "'"));
    const std::string next(text.data(), static_cast<std::size_t>(length));
    const std::size_t slash = target.rfind('/');
    const std::string resolved = next.starts_with('/') || slash == std::string::npos ? next : target.substr(0, slash + 1) + next;
    // /proc/self/fd/1 leads to an open file, which has an offset to go on at and need not have a name.
    if (target.starts_with("/proc/")) return target;
    target = resolved;
  }
  return fail(error_of(ELOOP, "cannot write '" + path + "'"));
}

// Another descriptor of the open file that "/proc/self/fd/N" leads to: with the same offset, where whoever opened it goes on.
UniqueFd descriptor_named(const std::string& path) {
  constexpr std::string_view begin = "/proc/self/fd/";
  int number = -1;
  if (!path.starts_with(begin)) return {};
  const auto [end, error] = std::from_chars(path.data() + begin.size(), path.data() + path.size(), number);
  if (error != std::errc() || end != path.data() + path.size()) return {};
  return UniqueFd(::fcntl(number, F_DUPFD_CLOEXEC, 0));
}

// A new file in `directory` under a name that nobody can know before.
UniqueFd open_new(int directory, const std::string& name, unsigned mode, std::string& made) {
  constexpr int kTries = 100;
  for (int i = 0; i < kTries; ++i) {
    std::uint64_t random = 0;
    if (::getrandom(&random, sizeof random, 0) != static_cast<ssize_t>(sizeof random)) return {};
    std::array<char, 24> ending{};
    std::snprintf(ending.data(), ending.size(), ".%016llx", static_cast<unsigned long long>(random));
    made = name.substr(0, NAME_MAX - ending.size()) + ending.data();
    UniqueFd fd(::openat(directory, made.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode));
    if (fd || errno != EEXIST) return fd;
  }
  return {};
}

}  // namespace

Status write_file_atomically(const std::string& path, std::string_view text, unsigned mode) {
  const auto cannot = [&](int code) { return fail(error_of(code, "cannot write '" + path + "'")); };
  const auto target = target_of(path);
  if (!target) return fail(target.error());
  struct stat attr {};
  const bool is_open_file = target->starts_with("/proc/");
  if (::stat(target->c_str(), &attr) == 0 && (is_open_file || !S_ISREG(attr.st_mode))) {
    UniqueFd fd = descriptor_named(*target);
    if (!fd) fd.reset(::open(target->c_str(), O_WRONLY | O_APPEND | O_NOCTTY | O_CLOEXEC));
    if (!fd) return cannot(errno);
    if (auto written = write_all(fd.get(), as_bytes(text)); !written) return cannot(written.error().code);
    return {};
  }
  const std::size_t slash = target->rfind('/');
  const std::string parent = slash == std::string::npos ? "." : target->substr(0, slash + 1);
  const std::string name = slash == std::string::npos ? *target : target->substr(slash + 1);
  const UniqueFd directory(::open(parent.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!directory) return cannot(errno);
  std::string temporary;
  UniqueFd fd = open_new(directory.get(), name, mode, temporary);
  if (!fd) return cannot(errno);
  Status status;
  if (auto written = write_all(fd.get(), as_bytes(text)); !written) status = cannot(written.error().code);
  fd.reset();
  if (status && ::renameat(directory.get(), temporary.c_str(), directory.get(), name.c_str()) != 0) status = cannot(errno);
  if (!status) ::unlinkat(directory.get(), temporary.c_str(), 0);
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
