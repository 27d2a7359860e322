// What the flags of the mounts below take away above them. The FUSE mount has one set of flags for all of them, so what a single
// mount forbids is hidden from the kernel: setuid and setgid bits and file capabilities (nosuid), which device a node is
// (nodev), where a symbolic link leads (nosymfollow); and execve's opens are refused (noexec).
//
// Thread-safe. Costs one load where no mount has such a flag that the FUSE mount does not have.
#pragma once

#include <linux/mount.h>
#include <sys/stat.h>

#include <cstdint>

#include "imafs/backing_tree.h"
#include "imafs/inode_table.h"

namespace imafs {

class MountMasks {
 public:
  MountMasks(const BackingTree& tree, const InodeTable& table) : tree_(tree), table_(table) {}

  // Flags that the FUSE mount has: the kernel itself looks after these. Set before the first request.
  void set_mounted(std::uint64_t flags) { mounted_ = flags; }

  // The flags of the mount below that has the file, as far as they are ours to keep.
  std::uint64_t of(NodeId node) const {
    constexpr std::uint64_t ours = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOSYMFOLLOW;
    if ((tree_.flags_of_any() & ours & ~mounted_) == 0) return 0;
    return tree_.flags_of(table_.mount_index_of(node)) & ours & ~mounted_;
  }
  void hide(NodeId node, mode_t& mode, dev_t& device) const {
    const std::uint64_t flags = of(node);
    if ((flags & MOUNT_ATTR_NOSUID) != 0 && S_ISREG(mode)) mode &= ~static_cast<mode_t>(S_ISUID | S_ISGID);
    if ((flags & MOUNT_ATTR_NODEV) != 0 && (S_ISCHR(mode) || S_ISBLK(mode))) device = 0;
  }
  bool hides_capabilities(NodeId node) const { return (of(node) & MOUNT_ATTR_NOSUID) != 0; }
  bool forbids_exec(NodeId node) const { return (of(node) & MOUNT_ATTR_NOEXEC) != 0; }
  bool forbids_following(NodeId node) const { return (of(node) & MOUNT_ATTR_NOSYMFOLLOW) != 0; }

 private:
  const BackingTree& tree_;
  const InodeTable& table_;
  std::uint64_t mounted_ = 0;
};

}  // namespace imafs
