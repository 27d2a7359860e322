// The tree below the mount: a private view of it, taken before the mount exists, and the ways to
// reach a file in it without keeping a descriptor open.
//
// Thread-safe after open().
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "imafs/policy_matcher.h"
#include "imafs/result.h"
#include "imafs/unique_fd.h"

namespace imafs {

// A file's identity in the tree: what name_to_handle_at() gave, and the mount it belongs to.
// Empty bytes: the file system has no handles.
struct FileHandle {
  std::uint16_t mount = 0;  // index into the tree's mounts
  std::int32_t type = 0;
  std::string bytes;  // at most MAX_HANDLE_SZ
};

class BackingTree {
 public:
  struct Options {
    std::string directory;
    bool one_file_system = false;
  };
  // As root: detached clones of the mounts in it, pseudo file systems left out. As a plain user: the
  // directory itself. The sentence of an error names the directory.
  static Result<std::unique_ptr<BackingTree>> open(const Options& options);
  virtual ~BackingTree() = default;

  virtual int root() const = 0;           // O_RDONLY | O_DIRECTORY
  virtual bool is_private() const = 0;    // a clone: nothing mounted later shows in it
  virtual bool has_handles() const = 0;   // the root's file system gives and opens handles

  // The tree is one view of several mounts; each is cloned by itself, so what a mount covers shows where the
  // mount is left out. 0 is the root's. The mount that stands on the file with that identity, in `mount`.
  virtual std::optional<std::uint16_t> mounted_on(std::uint16_t mount, dev_t device, ino_t inode) const = 0;
  virtual std::uint16_t mounts() const = 0;
  virtual int root_of(std::uint16_t mount) const = 0;  // as root(); a file's descriptor if the mount is of one file

  // The flags of a mount (MOUNT_ATTR_NOSUID and so on) as the machine has them now, and those that any mount has. follow_flags()
  // reads them again and gives them to the clones; true if one has changed. It is called by one thread at a time.
  virtual std::uint64_t flags_of(std::uint16_t mount) const = 0;
  virtual std::uint64_t flags_of_any() const = 0;
  virtual bool follow_flags() = 0;
  virtual bool flags_are_behind() const = 0;  // a clone cannot become read-only yet, because somebody writes to it

  // Of `name` in a directory, or with an empty name of `fd` itself. Never fails: an empty handle says "none".
  virtual FileHandle handle_of(int fd, const char* name, std::uint16_t mount) = 0;
  // `flags` as for open(2), O_PATH included. ESTALE: the file is gone.
  virtual Result<UniqueFd> open_handle(const FileHandle& handle, int flags) = 0;

  // Facts of the file system that holds `fd` (for fsmagic=, fsname=, fsuuid=). Cached by device; the
  // reference lives as long as the tree.
  virtual const EventSource::FileSystem& file_system_of(int fd, dev_t device) = 0;
};

}  // namespace imafs
