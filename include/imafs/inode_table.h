// The inodes the kernel knows, under numbers that are never used twice, with the names they were
// found by. Descriptors are bounded: a known inode costs memory, not a descriptor.
//
// Thread-safe: one mutex, never held across a system call that can block.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "imafs/backing_tree.h"
#include "imafs/descriptor_budget.h"
#include "imafs/reaper.h"
#include "imafs/result.h"
#include "imafs/unique_fd.h"

namespace imafs {

using NodeId = std::uint64_t;
inline constexpr NodeId kRootNode = 1;

// Which mount of the backing tree a node is on: a part of its number.
inline constexpr unsigned kMountShift = 48;
inline std::uint16_t mount_of_node(NodeId node) { return static_cast<std::uint16_t>(node >> kMountShift & 0x7fff); }

// An O_PATH descriptor, shared with the table's cache; valid as long as it is held.
using PathFd = std::shared_ptr<const UniqueFd>;

class InodeTable {
 public:
  static constexpr std::uint32_t kNobody = ~std::uint32_t{0};  // no thread has this number

  // `cached_descriptors`: the most O_PATH descriptors kept for speed alone (those of unlinked files
  // come on top, as do those of files on file systems without handles that were opened).
  // `budget` and `reaper` outlive the table.
  static std::unique_ptr<InodeTable> create(BackingTree& tree, std::size_t cached_descriptors, Reaper& reaper, DescriptorBudget& budget);
  virtual ~InodeTable() = default;

  struct Found {
    NodeId id = 0;
    struct stat attr {};
  };
  // Finds `name` ("." and ".." never come) in `parent` and takes one kernel reference on it.
  // `tid`: the thread that asked; path_of() prefers the name its thread looked up last. kNobody: the name
  // was just made by link(2), where another is in use; path_of() prefers that one.
  // ENOENT, ENAMETOOLONG, ENOTDIR, EACCES as the file system says; ESTALE: `parent` is gone.
  virtual Result<Found> look_up(NodeId parent, std::string_view name, std::uint32_t tid) = 0;
  // The same when we know `fd`, a descriptor of the child (after create, O_TMPFILE). An empty name:
  // it has none (O_TMPFILE); its path is then "/#TMPFILE-INODE" style of the parent's directory.
  virtual Result<Found> adopt(int fd, NodeId parent, std::string_view name, std::uint32_t tid) = 0;
  // Gives back `count` references. True when the kernel knows the inode no more (its number is dead).
  virtual bool forget(NodeId id, std::uint64_t count) = 0;
  virtual std::uint64_t size() const = 0;  // known inodes
  virtual std::size_t open_descriptors() const = 0;

  virtual Result<PathFd> path_fd(NodeId id) = 0;
  // By its name where that spares a descriptor, if it is still that file's.
  virtual Result<struct stat> attributes_of(NodeId id) = 0;
  // Whether it can be opened again wherever it is: it has a file handle.
  virtual bool has_handle(NodeId id) const = 0;
  virtual void let_go(NodeId id) = 0;  // closes what is kept of it for speed alone
  // A new open file description. `flags` without O_CREAT. Never follows a symlink.
  virtual Result<UniqueFd> open(NodeId id, int flags) = 0;
  // Device and inode number as found; for audit messages. {0, 0} for a dead number.
  virtual std::pair<dev_t, ino_t> identity_of(NodeId id) const = 0;

  // What the kernel believes of a file's owner, group, mode and ctime, and so judged an open by. look_up() and adopt() note it by
  // themselves.
  virtual void did_tell(NodeId id, const struct stat& attr) = 0;
  virtual bool is_as_told(NodeId id, const struct stat& attr) const = 0;
  virtual std::uint16_t mount_index_of(NodeId id) const = 0;  // which of the tree's mounts it is in; 0 for a dead number

  // The numbers of that inode: none, one, or one for each mount of its file system in the tree.
  virtual std::vector<NodeId> numbers_of(dev_t device, ino_t inode) const = 0;
  // The other numbers of the same inode: its other places in the tree.
  virtual std::vector<NodeId> twins_of(NodeId id) const = 0;
  virtual std::vector<NodeId> all() const = 0;
  // Whether it is that file or directory, or one below that directory.
  virtual bool is_inside(NodeId id, dev_t device, ino_t inode) const = 0;

  // Keeps names true to what was just done in the tree.
  virtual void did_rename(NodeId parent, std::string_view name, NodeId new_parent,
                          std::string_view new_name, bool exchanged) = 0;
  // A descriptor of a known inode whose last name is about to go, so that it stays reachable afterwards. It is given back
  // when this ends, unless the name has gone: then it stays until the kernel forgets the inode.
  class Pin {
   public:
    Pin() = default;
    Pin(InodeTable& table, NodeId id) : table_(&table), id_(id) {}
    Pin(Pin&& other) noexcept : table_(std::exchange(other.table_, nullptr)), id_(other.id_) {}
    Pin& operator=(Pin&&) = delete;
    ~Pin() {
      if (table_) table_->end_pin(id_, false);
    }
    void keep() {
      if (table_) std::exchange(table_, nullptr)->end_pin(id_, true);
    }

   private:
    InodeTable* table_ = nullptr;
    NodeId id_ = 0;
  };
  // Before a name is taken away (unlink, rmdir, rename over) by `user`. Empty: nothing behind it that would get lost. EMFILE: the
  // user has his share of our descriptors.
  virtual Result<Pin> will_unlink(NodeId parent, std::string_view name, uid_t user) = 0;

  // The absolute path inside the mount ("/usr/bin/env"), by the name `tid` looked up last, else the
  // name looked up last by anybody; a deleted file keeps its last name.
  virtual std::string path_of(NodeId id, std::uint32_t tid) const = 0;
  // Of a file with several names: the one that thread looked up last, if it was this file's, told once. An open takes it when it
  // comes: what others look up later does not change it. Nothing: it has one name, or the kernel knew it.
  struct Name {
    NodeId parent = 0;
    std::string name;
  };
  virtual std::optional<Name> take_lookup(NodeId id, std::uint32_t tid) = 0;
  virtual std::string path_of(const Name& name) const = 0;
  // All names by which somebody may have opened the file, those that it, or a directory above it, had before included.
  // `links`: how many it has now. Incomplete: there may be others.
  virtual EventSource::Names names_of(NodeId id, std::uint64_t links) const = 0;
  // It was moved outside the mount: its name is not known until it is looked up again, and may be another one for who has it.
  virtual void was_moved(NodeId id) = 0;
  // The name it was looked up by last, and in which directory; nothing for the root and dead numbers.
  virtual std::optional<std::pair<NodeId, std::string>> name_of(NodeId id) const = 0;

 private:
  virtual void end_pin(NodeId id, bool keep) = 0;
};

}  // namespace imafs
