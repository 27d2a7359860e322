// Who is told of changes that are made beside the mount, so that the kernel may believe names and attributes
// much longer than it would otherwise: fanotify marks on the file systems of the backing tree.
//
// It serves caches only. What is measured never depends on it: events come late, and none tells of a mapping.
// Thread-safe.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "imafs/backing_tree.h"

namespace imafs {

class TreeWatch {
 public:
  // Called on the watch's own thread, for what other processes did, about 50 ms later.
  struct Listener {
    // `is_gone`: whether its last name is; asks the file system, so only of what matters.
    std::function<void(dev_t device, ino_t inode, const std::function<bool()>& is_gone)> attributes_changed;
    std::function<void(dev_t device, ino_t directory, const std::string& name)> name_changed;
    std::function<void()> events_lost;  // the kernel's queue overflowed: anything may have changed
  };

  // Null without the privilege (CAP_SYS_ADMIN), or if no file system of the tree tells of every change:
  // network and FUSE file systems tell of those made on this machine only, and are left out.
  static std::unique_ptr<TreeWatch> start(BackingTree& tree, Listener listener);
  virtual ~TreeWatch() = default;

  // Whether a change of this inode (of a directory: also of the names in it) will be told. False for a second
  // after one was: what was read before it may still be on its way to the kernel.
  virtual bool is_settled(dev_t device, ino_t inode) const = 0;

  static constexpr std::chrono::milliseconds kDelay{50};
};

}  // namespace imafs
