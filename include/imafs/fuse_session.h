// The mount: a libfuse session over the tree, the gate and the control directory.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "imafs/control_dir.h"
#include "imafs/inode_table.h"
#include "imafs/measure_gate.h"
#include "imafs/open_files.h"
#include "imafs/result.h"

namespace imafs {

struct SessionOptions {
  std::string mountpoint;
  std::string backing;  // for the source column of the mount table
  bool allow_other = false;
  bool default_permissions = true;
  bool show_control = false;      // list .ima in the root
  double timeout_seconds = 1;     // how long the kernel may believe names and attributes
  bool watch = true;              // believe them longer where changes beside the mount are told
  bool low_latency = true;        // keep processors awake between requests that follow each other quickly
  bool io_uring = false;
  bool passthrough = true;
  bool leases = true;
  bool inline_hashing = true;
  bool read_only = false;
  // Device and inode of directories and files that this process keeps open for itself.
  std::vector<std::pair<dev_t, ino_t>> own_files;
  // Takes the mount away at the end: for who may not call umount(2). Empty: umount(2) does.
  std::function<void()> unmount;
  // Asks for the attributes of the mount's root, in another process.
  std::function<void()> look_at_root;
  std::vector<std::string> extra_mount_options;  // for libfuse and mount(2), as given with -o
};

class FuseSession {
 public:
  // The parts outlive the session. The mount stands when this returns; requests wait until run().
  // EBUSY: something is mounted there by imafs already. Otherwise mount(2)'s errors.
  static Result<std::unique_ptr<FuseSession>> mount(SessionOptions options, BackingTree& tree, MeasureGate& gate,
                                                    ControlDir& control);
  virtual ~FuseSession() = default;

  // Serves until unmounted, or until SIGTERM, SIGINT or SIGHUP, which unmount. `ready` runs once the
  // kernel has been answered its first request.
  virtual Status run(std::function<void()> ready) = 0;

  struct Health {
    OpenFiles::Health files;
    std::uint64_t requests = 0;     // of the kernel, since the start
    std::uint64_t known_inodes = 0;
    std::size_t cached_descriptors = 0;
    bool io_uring = false;
    bool watched = false;  // changes beside the mount are told, on one file system at least
  };
  virtual Health health() const = 0;
};

}  // namespace imafs
