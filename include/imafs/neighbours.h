// Whether another imafs shows the same file systems: its idle descriptors and ours would be taken for readers by each other.
//
// Each holds shared locks on /dev/fuse, which no mount namespace hides, at an offset for each file system of its tree; the
// kernel drops them with the process. Thread-safe.
#pragma once

#include <sys/types.h>

#include <vector>

#include "imafs/backing_tree.h"
#include "imafs/unique_fd.h"

namespace imafs {

class Neighbours {
 public:
  explicit Neighbours(const BackingTree& tree);
  bool exist() const;  // now; one fcntl(2) for each file system

 private:
  UniqueFd locks_;
  std::vector<off_t> places_;
};

}  // namespace imafs
