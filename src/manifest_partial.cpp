#include "manifest_partial.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdio>
#include <ctime>
#include <string_view>

#include "imafs/bytes.h"
#include "imafs/posix_file.h"

namespace imafs {
namespace {

constexpr std::size_t kMaxPartial = std::size_t{4} << 30;
constexpr std::string_view kMagic = "imafs manifest, interrupted, 1 ";
// How long after a change another one may leave the times as they are: two seconds are FAT's.
constexpr std::int64_t kSettledSeconds = 2;

std::string state_of(const struct stat& attr) {
  const auto time = [](const struct timespec& at) { return std::to_string(at.tv_sec) + "." + std::to_string(at.tv_nsec); };
  return std::to_string(attr.st_dev) + ":" + std::to_string(attr.st_ino) + ":" + std::to_string(attr.st_size) + ":" + time(attr.st_mtim) + ":" +
         time(attr.st_ctim);
}

bool is_ours(int fd) {
  struct stat attr {};
  return ::fstat(fd, &attr) == 0 && S_ISREG(attr.st_mode) && attr.st_uid == ::geteuid() && (attr.st_mode & 022) == 0 && attr.st_nlink == 1;
}

}  // namespace

ManifestPartial::ManifestPartial(std::string path, std::string tree) : path_(std::move(path)), tree_(std::move(tree)) {
  if (path_.empty()) return;
  fd_.reset(::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600));
  if (!fd_ || !is_ours(fd_.get())) {
    std::fprintf(stderr, "imafs: warning: '%s' is not a file of this user alone: it is not used\n", printable(path_).c_str());
    fd_.reset();
  } else if (::flock(fd_.get(), LOCK_EX | LOCK_NB) != 0) {
    fd_.reset();
  } else {
    read_lines();
  }
}

// Lines are "STATE DIGEST NAME", the name in hexadecimal; the first one says of which tree.
void ManifestPartial::read_lines() {
  const std::string head = std::string(kMagic) + to_hex(as_bytes(tree_)) + "\n";
  const auto text = read_file(ProcPath(fd_.get()).get(), kMaxPartial);
  if (!text || !text->starts_with(head)) {
    if (::ftruncate(fd_.get(), 0) != 0 || !write_all(fd_.get(), as_bytes(head))) fd_.reset();
    return;
  }
  std::string_view rest = std::string_view(*text).substr(head.size());
  // The last line may be torn.
  for (std::size_t end = rest.find('\n'); end != std::string_view::npos; end = rest.find('\n')) {
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end + 1);
    const std::size_t digest = line.find(' '), name = line.rfind(' ');
    if (digest == std::string_view::npos || digest == name) continue;
    if (const auto bytes = from_hex(line.substr(name + 1))) known_[std::string(as_text(*bytes))] = line.substr(0, name);
  }
  if (!rest.empty() && ::ftruncate(fd_.get(), static_cast<off_t>(text->size() - rest.size())) != 0) fd_.reset();
}

std::optional<std::string> ManifestPartial::find(const std::string& name, const struct stat& now) const {
  const auto found = known_.find(name);
  if (found == known_.end()) return std::nullopt;
  const std::size_t blank = found->second.find(' ');
  if (found->second.substr(0, blank) != state_of(now)) return std::nullopt;
  return found->second.substr(blank + 1);
}

void ManifestPartial::note(const std::string& name, const struct stat& before, const struct stat& after, const std::string& hex) {
  const std::string state = state_of(after);
  if (!fd_ || state != state_of(before) || after.st_ctim.tv_sec + kSettledSeconds > std::time(nullptr)) return;
  const std::string line = state + " " + hex + " " + to_hex(as_bytes(name)) + "\n";
  const std::lock_guard lock(mutex_);
  (void)write_all(fd_.get(), as_bytes(line));
}

void ManifestPartial::remove() {
  if (fd_) ::unlink(path_.c_str());
}

}  // namespace imafs
