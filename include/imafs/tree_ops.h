// What a file system does with names and attributes, carried out on the backing tree. Plain types, no
// libfuse; opens and data are open_files' business.
//
// Thread-safe. Changes are made as the caller (caller_identity.h): the backing file system judges them, by what is true at that
// moment, and every error is its own.
#pragma once

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "imafs/caller_identity.h"
#include "imafs/inode_table.h"
#include "imafs/open_files.h"
#include "imafs/result.h"

struct statx;

namespace imafs {

class TreeOps {
 public:
  using Found = InodeTable::Found;

  TreeOps(InodeTable& table, OpenFiles& files, bool passthrough)
      : table_(table), files_(files), passthrough_(passthrough) {}

  Result<Found> look_up(NodeId parent, const char* name, const Caller& caller) {
    return table_.look_up(parent, name, caller.pid);
  }
  Result<struct stat> get_attr(NodeId node);
  Status get_statx(NodeId node, int flags, unsigned mask, struct statx& out);

  struct AttrChange {
    std::optional<mode_t> mode;
    std::optional<uid_t> uid;
    std::optional<gid_t> gid;
    std::optional<off_t> size;
    std::optional<struct timespec> atime, mtime;  // UTIME_NOW is kept
    bool kill_suidgid = false;                     // clear setuid, setgid and file capabilities
    // Nothing at all is asked for: a chown(2) to nobody, or what comes before a write by who must not keep those bits.
    bool is_empty = false;
    std::uint64_t handle = 0;                      // through an open file; 0: none
  };
  // EWOULDBLOCK: somebody else's lease is in the way of the new size; nothing was changed, and it may be tried again.
  Result<struct stat> set_attr(NodeId node, const AttrChange& change, const Caller& caller);

  Result<std::string> read_link(NodeId node);
  Result<Found> make_node(NodeId parent, const char* name, mode_t mode, dev_t device, const Caller& caller);
  Result<Found> make_directory(NodeId parent, const char* name, mode_t mode, const Caller& caller);
  Result<Found> make_symlink(NodeId parent, const char* name, const char* target, const Caller& caller);
  Result<Found> make_link(NodeId node, NodeId parent, const char* name, const Caller& caller);
  Status unlink(NodeId parent, const char* name, const Caller& caller);
  Status remove_directory(NodeId parent, const char* name, const Caller& caller);
  Status rename(NodeId parent, const char* name, NodeId new_parent, const char* new_name, unsigned flags, const Caller& caller);

  // A new file, and the descriptor it was made with (for OpenFiles::Request::created). EEXIST: it was
  // there already, also without O_EXCL; what is there is never opened.
  struct Made {
    Found found;
    UniqueFd fd;
  };
  Result<Made> create(NodeId parent, const char* name, int flags, mode_t mode, const Caller& caller);
  Result<Made> create_unnamed(NodeId parent, int flags, mode_t mode, const Caller& caller);

  Result<std::size_t> get_xattr(NodeId node, const char* name, std::span<char> out, const Caller& caller);
  Result<std::size_t> list_xattrs(NodeId node, std::span<char> out, const Caller& caller);
  Status set_xattr(NodeId node, const char* name, std::string_view value, int flags, const Caller& caller);
  Status remove_xattr(NodeId node, const char* name, const Caller& caller);

  Result<struct statvfs> statistics(NodeId node);

 private:
  // What calls about one inode go to: the descriptor of who has it open already, or one of O_PATH.
  class Target {
   public:
    explicit Target(OpenFiles::Borrowed open) : open_(std::move(open)) {}
    explicit Target(PathFd path) : path_(std::move(path)) {}
    int fd() const { return path_ ? path_->get() : open_.fd(); }
    bool is_open() const { return !path_; }

   private:
    OpenFiles::Borrowed open_;
    PathFd path_;
  };
  Result<Target> target_of(NodeId node);

  Status resize(NodeId node, int fd, off_t size, std::uint64_t handle, const Caller& caller);
  Status change_owner(int fd, uid_t uid, gid_t gid, const Caller& caller);
  Status change_nothing(NodeId node, int fd, const Caller& caller);
  Result<Made> made(UniqueFd fd, NodeId parent, const char* name, const Caller& caller);

  InodeTable& table_;
  OpenFiles& files_;
  const bool passthrough_;
};

// Clears setuid, setgid and file capabilities of an open file. The kernel asks for it when `writer`, who
// lacks the privilege to keep them, writes. Setgid without group execute stays if the writer is in the group.
Status kill_privileges(int fd, const Caller& writer);

}  // namespace imafs
