// The inode numbers a mount shows. It has one device number for a tree of several file systems, whose inode numbers
// may be equal: two files must never look like two names of one.
//
// Thread-safe.
#pragma once

#include <sys/types.h>

#include <map>
#include <mutex>

namespace imafs {

class InodeNumbers {
 public:
  // `device`: the file system of the root, whose numbers show as they are.
  explicit InodeNumbers(dev_t device) : root_device_(device) {}

  ino_t shown(dev_t device, ino_t inode) {
    if (device == root_device_) return inode;
    const std::lock_guard lock(mutex_);
    const ino_t index = others_.try_emplace(device, others_.size() + 1).first->second;
    return inode ^ index << kIndexShift;
  }

 private:
  static constexpr int kIndexShift = 48;  // file systems count from 1 up

  const dev_t root_device_;
  std::mutex mutex_;
  std::map<dev_t, ino_t> others_;  // guarded by mutex_; in the order they were met
};

}  // namespace imafs
