// libfuse's low-level operations over TreeOps, OpenFiles and ControlDir: the only code, with
// fuse_session.cpp, that sees libfuse's types.
#pragma once

#define FUSE_USE_VERSION 317
#include <fuse_lowlevel.h>

#include <functional>

#include "absent_names.h"
#include "directory_stream.h"
#include "imafs/control_dir.h"
#include "imafs/fair_workers.h"
#include "imafs/fuse_session.h"
#include "imafs/inode_table.h"
#include "imafs/notice_queue.h"
#include "imafs/open_files.h"
#include "imafs/reaper.h"
#include "imafs/tree_ops.h"
#include "imafs/tree_watch.h"
#include "inode_numbers.h"
#include "lanes.h"
#include "mount_masks.h"
#include "wake_latency.h"

namespace imafs {

// What the operations work on: the session's user data.
struct FuseContext {
  const SessionOptions& options;
  InodeTable& table;
  OpenFiles& files;
  TreeOps& ops;
  Reaper& reaper;
  FairWorkers& workers;
  DescriptorBudget& budget;
  OpenDirectories& directories;
  ControlDir& control;
  const TreeWatch* watch;  // null: nobody tells of changes beside the mount
  const NoticeQueue& notices;
  InodeNumbers& numbers;
  const MountMasks& masks;
  AbsentNames& absent;
  WakeLatency& wake;
  Lanes& lanes;
  std::function<void(struct fuse_conn_info*)> on_init;
  std::function<void(NodeId parent, std::string name)> expire_name;  // from another thread, soon
};

const struct fuse_lowlevel_ops& fuse_operations();

}  // namespace imafs
