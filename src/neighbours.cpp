#include "imafs/neighbours.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cstdint>

namespace imafs {
namespace {

struct flock byte_at(off_t place, int type) {
  struct flock lock {};
  lock.l_type = static_cast<short>(type);
  lock.l_whence = SEEK_SET;
  lock.l_start = place;
  lock.l_len = 1;
  return lock;
}

// Far from what others may lock there. Each subvolume of a btrfs has a device number of its own: all of them count as one.
std::optional<off_t> place_of(int root) {
  constexpr off_t first = off_t{1} << 52;
  struct stat attr {};
  struct statfs system {};
  if (::fstat(root, &attr) != 0 || ::fstatfs(root, &system) != 0) return std::nullopt;
  const auto number = static_cast<unsigned long>(system.f_type) == BTRFS_SUPER_MAGIC ? dev_t{BTRFS_SUPER_MAGIC} << 32 : attr.st_dev;
  return first + static_cast<off_t>(number & ((dev_t{1} << 50) - 1));
}

}  // namespace

Neighbours::Neighbours(const BackingTree& tree) : locks_(::open("/dev/fuse", O_RDWR | O_CLOEXEC)) {
  for (std::uint16_t mount = 0; locks_ && mount < tree.mounts(); ++mount) {
    const auto place = place_of(tree.root_of(mount));
    if (!place || std::find(places_.begin(), places_.end(), *place) != places_.end()) continue;
    struct flock lock = byte_at(*place, F_RDLCK);
    if (::fcntl(locks_.get(), F_OFD_SETLK, &lock) == 0) places_.push_back(*place);
  }
}

bool Neighbours::exist() const {
  return std::any_of(places_.begin(), places_.end(), [this](off_t place) {
    struct flock lock = byte_at(place, F_WRLCK);
    return ::fcntl(locks_.get(), F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
  });
}

}  // namespace imafs
