// Who is told of changes that are made beside the mount, so that the kernel may believe names and attributes
// much longer than it would otherwise: fanotify marks on the file systems of the backing tree.
//
// It also tells who had a file open for writing: measuring asks it, under a lease, before it believes that a file is as it was
// (take_reports). The notices to caches come late; reports do not.
// Thread-safe.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "imafs/backing_tree.h"

namespace imafs {

class TreeWatch {
 public:
  // Called on the watch's own thread, for what other processes did, about 50 ms later.
  struct Listener {
    // `links`: how many it has, if that may have changed; asks the file system, so only of what matters.
    std::function<void(dev_t device, ino_t inode, const std::function<std::optional<nlink_t>()>& links)> attributes_changed;
    std::function<void(dev_t device, ino_t inode)> moved;  // it has another name, or is in another directory
    std::function<void(dev_t device, ino_t directory, const std::string& name)> name_changed;
    std::function<void()> events_lost;  // the kernel's queue overflowed: anything may have changed
  };

  // Null without the privilege (CAP_SYS_ADMIN), or if no file system of the tree tells of every change:
  // network and FUSE file systems tell of those made on this machine only, and are left out.
  static std::unique_ptr<TreeWatch> start(BackingTree& tree, Listener listener);
  virtual ~TreeWatch() = default;
  virtual void stop() = 0;  // the listener is not called any more; reports still come

  // Whether a change of this inode (of a directory: also of the names in it) will be told. False for a second
  // after one was: what was read before it may still be on its way to the kernel.
  virtual bool is_settled(dev_t device, ino_t inode) const = 0;

  // Reads all that the kernel has reported by now. The number of the last report; nothing if writers on that device are not
  // reported. The kernel reports the close of a descriptor that could write before it lets anybody have a read lease on the
  // file: with a lease taken before this call, no earlier writer is missing.
  virtual std::optional<std::uint64_t> take_reports(dev_t device) = 0;
  // The number of the last report, among those taken, that may have been of a write to that inode. Never too small: it may be
  // another inode's, and is everybody's when reports were lost.
  virtual std::uint64_t last_report_of(ino_t inode) const = 0;

  static constexpr std::chrono::milliseconds kDelay{50};
};

}  // namespace imafs
