#include "imafs/inode_table.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <random>
#include <unordered_map>
#include <vector>

#include "imafs/posix_file.h"
#include "path_cache.h"

namespace imafs {
namespace {

constexpr std::size_t kMaxNames = 64;      // of a file: those looked up last. Of who opens it by another one it is not known by which.
constexpr std::size_t kMaxPaths = 64;      // that these, and former names of directories, may add up to
constexpr std::size_t kMaxLookups = 16384;  // of threads that have not opened what they looked up

// Which file it is. The birth time tells a new file from an old one that had the same inode number.
struct Identity {
  std::uint16_t mount = 0;
  dev_t device = 0;
  ino_t inode = 0;
  bool operator==(const Identity&) const = default;
};

struct HashIdentity {
  // noexcept: the map then keeps no hashes, 16 bytes an inode.
  std::size_t operator()(const Identity& identity) const noexcept {
    return identity.inode * 0x9e3779b97f4a7c15ULL ^ identity.device << 17 ^ identity.mount;
  }
};

struct Alias {
  NodeId parent = 0;
  std::uint32_t tid = 0;  // of the thread that looked it up last
  std::string name;
  bool is_former = false;  // the file was moved, and who looked it up before may still open it
};

struct Node {
  Identity identity;
  std::int64_t birth_ns = 0;
  FileHandle handle;
  std::uint64_t lookups = 0;   // the kernel's references
  std::uint64_t told = 0;      // fingerprint of what the kernel was told last
  std::uint32_t children = 0;  // names of other nodes that lead through this one
  bool may_have_names = false;
  bool lacks_names = false;    // it has, or had, names that are not among these
  bool is_hidden_device = false;  // the kernel does not know which device it is
  std::vector<Alias> names;     // the last one looked up is at the end
};

struct Seen {
  struct stat attr {};
  std::int64_t birth_ns = 0;
};

// Of what decides who may open a file. Nobody can choose a ctime; the key is for those who try all the same.
std::uint64_t fingerprint_of(const struct stat& attr) {
  static const std::uint64_t key = std::random_device()() | std::uint64_t{std::random_device()()} << 32;
  std::uint64_t hash = key;
  const auto mix = [&](std::uint64_t value) {
    hash = (hash ^ value) * 0x9e3779b97f4a7c15ULL;
    hash ^= hash >> 29;
  };
  mix(static_cast<std::uint64_t>(attr.st_mode) << 32 | attr.st_uid);
  mix(attr.st_gid);
  mix(static_cast<std::uint64_t>(attr.st_ctim.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(attr.st_ctim.tv_nsec));
  return hash;
}

Result<Seen> look_at(int directory, const char* name, int flags) {
  struct statx answer {};
  if (::statx(directory, name, flags | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_BASIC_STATS | STATX_BTIME, &answer) != 0) {
    return fail(errno_error("lookup"));
  }
  Seen seen;
  struct stat& attr = seen.attr;
  attr.st_dev = makedev(answer.stx_dev_major, answer.stx_dev_minor);
  attr.st_ino = answer.stx_ino;
  attr.st_nlink = answer.stx_nlink;
  attr.st_mode = answer.stx_mode;
  attr.st_uid = answer.stx_uid;
  attr.st_gid = answer.stx_gid;
  attr.st_rdev = makedev(answer.stx_rdev_major, answer.stx_rdev_minor);
  attr.st_size = static_cast<off_t>(answer.stx_size);
  attr.st_blksize = answer.stx_blksize;
  attr.st_blocks = static_cast<blkcnt_t>(answer.stx_blocks);
  attr.st_atim = {answer.stx_atime.tv_sec, answer.stx_atime.tv_nsec};
  attr.st_mtim = {answer.stx_mtime.tv_sec, answer.stx_mtime.tv_nsec};
  attr.st_ctim = {answer.stx_ctime.tv_sec, answer.stx_ctime.tv_nsec};
  seen.birth_ns = answer.stx_btime.tv_sec * 1'000'000'000 + answer.stx_btime.tv_nsec;
  return seen;
}

class Table final : public InodeTable {
 public:
  Table(BackingTree& tree, std::size_t cached, Reaper& reaper, DescriptorBudget& budget)
      : tree_(tree), reaper_(reaper), budget_(budget), cache_(cached, reaper) {
    struct stat attr {};
    ::fstat(tree.root(), &attr);
    Node& root = nodes_[kRootNode];
    root.identity = {0, attr.st_dev, attr.st_ino};
    root.lookups = 1;
    pinned_[kRootNode].fd = std::make_shared<const UniqueFd>(::fcntl(tree.root(), F_DUPFD_CLOEXEC, 0));
    by_identity_[root.identity] = kRootNode;
  }

  Result<Found> look_up(NodeId parent, std::string_view name, std::uint32_t tid) override;
  Result<Found> adopt(int fd, NodeId parent, std::string_view name, std::uint32_t tid) override;
  bool forget(NodeId id, std::uint64_t count) noexcept override;
  std::uint64_t size() const override {
    const std::lock_guard lock(mutex_);
    return nodes_.size();
  }
  std::size_t open_descriptors() const override {
    const std::lock_guard lock(mutex_);
    return cache_.size() + pinned_.size();
  }
  Result<PathFd> path_fd(NodeId id) override;
  Result<struct stat> attributes_of(NodeId id) override;
  bool has_handle(NodeId id) const override {
    const std::lock_guard lock(mutex_);
    const auto found = nodes_.find(id);
    return found != nodes_.end() && !found->second.handle.bytes.empty();
  }
  void let_go(NodeId id) override {
    const std::lock_guard lock(mutex_);
    cache_.drop(id);
  }
  Result<UniqueFd> open(NodeId id, int flags) override;
  std::pair<dev_t, ino_t> identity_of(NodeId id) const override {
    const std::lock_guard lock(mutex_);
    const auto found = nodes_.find(id);
    if (found == nodes_.end()) return {0, 0};
    return {found->second.identity.device, found->second.identity.inode};
  }
  void did_tell(NodeId id, const struct stat& attr) override {
    const std::uint64_t told = fingerprint_of(attr);
    const std::lock_guard lock(mutex_);
    if (const auto found = nodes_.find(id); found != nodes_.end()) found->second.told = told;
  }
  bool is_as_told(NodeId id, const struct stat& attr) const override {
    const std::uint64_t now = fingerprint_of(attr);
    const std::lock_guard lock(mutex_);
    const auto found = nodes_.find(id);
    return found != nodes_.end() && found->second.told == now;
  }
  std::uint16_t mount_index_of(NodeId id) const override {
    const std::lock_guard lock(mutex_);
    return mount_of(id).value_or(0);
  }
  std::vector<NodeId> numbers_of(dev_t device, ino_t inode) const override {
    std::vector<NodeId> numbers;
    const std::lock_guard lock(mutex_);
    for (std::uint16_t mount = 0; mount < tree_.mounts(); ++mount) {
      const auto found = by_identity_.find(Identity{mount, device, inode});
      if (found != by_identity_.end()) numbers.push_back(found->second);
    }
    return numbers;
  }
  std::vector<NodeId> twins_of(NodeId id) const override {
    if (tree_.mounts() == 1) return {};
    const auto [device, inode] = identity_of(id);
    std::vector<NodeId> numbers = numbers_of(device, inode);
    std::erase(numbers, id);
    return numbers;
  }
  std::vector<NodeId> all() const override {
    std::vector<NodeId> numbers;
    const std::lock_guard lock(mutex_);
    numbers.reserve(nodes_.size());
    for (const auto& [number, node] : nodes_) numbers.push_back(number);
    return numbers;
  }
  bool is_inside(NodeId id, dev_t device, ino_t inode) const override;
  void did_rename(NodeId parent, std::string_view name, NodeId new_parent, std::string_view new_name, bool exchanged) noexcept override;
  Result<Pin> will_unlink(NodeId parent, std::string_view name, uid_t user) override;
  std::string path_of(NodeId id, std::uint32_t tid) const override;
  std::string path_of(const InodeTable::Name& name) const override;
  std::optional<InodeTable::Name> take_lookup(NodeId id, std::uint32_t tid) override;
  EventSource::Names names_of(NodeId id, std::uint64_t links) const override;
  void was_moved(NodeId id) override {
    const std::lock_guard lock(mutex_);
    const auto found = nodes_.find(id);
    if (found != nodes_.end()) found->second.lacks_names = true;
  }
  std::optional<std::pair<NodeId, std::string>> name_of(NodeId id) const override;

 private:
  // `fd`: the child's, or -1: then it is `name` in `directory`.
  Result<Found> enter(int fd, NodeId parent, int directory, std::uint16_t mount, std::string_view name, const Seen& seen,
                      std::uint32_t tid);
  void end_pin(NodeId id, bool keep) noexcept override;
  void set_name(NodeId id, NodeId parent, std::string_view name, std::uint32_t tid);
  void drop_name(Alias& name);
  void note_lookup(NodeId id, NodeId parent, std::string_view name, std::uint32_t tid);
  std::string path_from(NodeId id, std::string_view last, std::uint32_t tid) const;
  void erase_if_unused(NodeId id);
  std::optional<std::uint16_t> mount_of(NodeId id) const;
  NodeId known(std::uint16_t mount, const Seen& seen) const;
  bool is_hidden_device(std::uint16_t mount, const Seen& seen) const {
    return (S_ISCHR(seen.attr.st_mode) || S_ISBLK(seen.attr.st_mode)) && (tree_.flags_of(mount) & MOUNT_ATTR_NODEV) != 0;
  }
  void rename_one(NodeId parent, std::string_view name, NodeId new_parent, std::string_view new_name);

  BackingTree& tree_;
  Reaper& reaper_;
  DescriptorBudget& budget_;

  mutable std::mutex mutex_;  // everything below; never held across a system call
  std::unordered_map<NodeId, Node> nodes_;
  std::unordered_map<Identity, NodeId, HashIdentity> by_identity_;
  NodeId next_id_ = kRootNode + 1;
  std::unordered_map<std::uint32_t, std::pair<NodeId, InodeTable::Name>> lookups_;  // by thread, of files with several names
  std::atomic<bool> has_lookups_{false};
  PathCache cache_;
  struct Pinned {
    PathFd fd;
    unsigned attempts = 0;  // at unlinking it, under way
    bool unlinked = false;
    uid_t user = 0;  // whose share it is in
  };
  std::unordered_map<NodeId, Pinned> pinned_;  // the root, and what is about to be unlinked, or was
};

std::optional<std::uint16_t> Table::mount_of(NodeId id) const {
  const auto found = nodes_.find(id);
  if (found == nodes_.end()) return std::nullopt;
  return found->second.identity.mount;
}

NodeId Table::known(std::uint16_t mount, const Seen& seen) const {
  const auto found = by_identity_.find(Identity{mount, seen.attr.st_dev, seen.attr.st_ino});
  if (found == by_identity_.end()) return 0;
  const Node& node = nodes_.at(found->second);
  if (found->second == kRootNode) return kRootNode;
  // The kernel reads which device an inode is only once: a mount that has become nodev, or is no longer, needs new inodes.
  return node.birth_ns == seen.birth_ns && node.is_hidden_device == is_hidden_device(mount, seen) ? found->second : 0;
}

Result<InodeTable::Found> Table::look_up(NodeId parent, std::string_view name, std::uint32_t tid) {
  auto directory = path_fd(parent);
  if (!directory) return fail(directory.error());
  const std::string child(name);
  auto seen = look_at((*directory)->get(), child.c_str(), 0);
  if (!seen) return fail(seen.error());
  std::uint16_t mount = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto found = mount_of(parent);
    if (!found) return fail(ESTALE, "the directory is gone");
    mount = *found;
  }
  const auto above = tree_.mounted_on(mount, seen->attr.st_dev, seen->attr.st_ino);
  if (!above) return enter(-1, parent, (*directory)->get(), mount, name, *seen, tid);
  // A file system that does not answer must not hold up who lists the directory that it is mounted in.
  seen = look_at(tree_.root_of(*above), "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC);
  if (!seen) return fail(seen.error());
  return enter(tree_.root_of(*above), parent, -1, *above, name, *seen, tid);
}

Result<InodeTable::Found> Table::adopt(int fd, NodeId parent, std::string_view name, std::uint32_t tid) {
  const auto seen = look_at(fd, "", AT_EMPTY_PATH);
  if (!seen) return fail(seen.error());
  std::uint16_t mount = 0;
  {
    const std::lock_guard lock(mutex_);
    mount = mount_of(parent).value_or(0);
  }
  if (!name.empty()) return enter(fd, parent, -1, mount, name, *seen, tid);
  return enter(fd, parent, -1, mount, "#" + std::to_string(seen->attr.st_ino), *seen, tid);
}

Result<InodeTable::Found> Table::enter(int fd, NodeId parent, int directory, std::uint16_t mount, std::string_view name,
                                       const Seen& seen, std::uint32_t tid) {
  {
    const std::lock_guard lock(mutex_);
    if (const NodeId id = known(mount, seen); id != 0) {
      ++nodes_.at(id).lookups;
      nodes_.at(id).told = fingerprint_of(seen.attr);
      nodes_.at(id).may_have_names = S_ISREG(seen.attr.st_mode) && seen.attr.st_nlink > 1;
      if (id != kRootNode) set_name(id, parent, name, tid);
      return Found{id, seen.attr};
    }
  }
  // New to us. If another file takes the name before its handle is taken, the handle is what counts: data and
  // measurement both come from it.
  FileHandle handle = fd < 0 ? tree_.handle_of(directory, std::string(name).c_str(), mount) : tree_.handle_of(fd, "", mount);
  const std::lock_guard lock(mutex_);
  NodeId id = known(mount, seen);
  if (id == 0) {
    id = next_id_++ | static_cast<NodeId>(mount & 0x7fff) << kMountShift;
    Node& node = nodes_[id];
    node.identity = {mount, seen.attr.st_dev, seen.attr.st_ino};
    node.birth_ns = seen.birth_ns;
    node.is_hidden_device = is_hidden_device(mount, seen);
    node.handle = std::move(handle);
    by_identity_[node.identity] = id;  // a file that had the number before is gone, whoever still knows it
  }
  Node& node = nodes_.at(id);
  ++node.lookups;
  node.told = fingerprint_of(seen.attr);
  node.may_have_names = S_ISREG(seen.attr.st_mode) && seen.attr.st_nlink > 1;
  set_name(id, parent, name, tid);
  return Found{id, seen.attr};
}

void Table::set_name(NodeId id, NodeId parent, std::string_view name, std::uint32_t tid) {
  Node& node = nodes_.at(id);
  if (node.may_have_names) note_lookup(id, parent, name, tid);
  const auto found = std::find_if(node.names.begin(), node.names.end(),
                                  [&](const Alias& one) { return one.parent == parent && one.name == name; });
  const bool is_known = found != node.names.end();
  if (is_known && !found->is_former && (tid == kNobody || (node.names.size() == 1))) {
    if (tid != kNobody) found->tid = tid;
    return;
  }
  // Directories and files with one link have one name: the last.
  for (Alias& one : node.names) one.is_former = one.is_former || !node.may_have_names;
  if (is_known) {
    found->is_former = false;
    found->tid = tid;
    std::rotate(found, found + 1, node.names.end());
    return;
  }
  const auto above = nodes_.find(parent);
  if (above == nodes_.end()) return;
  ++above->second.children;
  while (node.names.size() >= kMaxNames) {
    Alias old = std::move(node.names.front());
    node.names.erase(node.names.begin());
    node.lacks_names = true;
    drop_name(old);
  }
  // A name that nobody used yet goes before the one in use.
  node.names.insert(tid == kNobody ? node.names.begin() : node.names.end(), {parent, tid, std::string(name)});
  if (!node.may_have_names) node.names.shrink_to_fit();
}

void Table::note_lookup(NodeId id, NodeId parent, std::string_view name, std::uint32_t tid) {
  if (tid == kNobody) return;
  if (lookups_.size() >= kMaxLookups) lookups_.clear();
  lookups_[tid] = {id, {parent, std::string(name)}};
  has_lookups_ = true;
}

std::optional<InodeTable::Name> Table::take_lookup(NodeId id, std::uint32_t tid) {
  if (!has_lookups_) return std::nullopt;
  const std::lock_guard lock(mutex_);
  const auto found = lookups_.find(tid);
  if (found == lookups_.end()) return std::nullopt;
  auto lookup = std::move(found->second);
  lookups_.erase(found);
  has_lookups_ = !lookups_.empty();
  if (lookup.first != id) return std::nullopt;
  return std::move(lookup.second);
}

void Table::drop_name(Alias& name) {
  const auto above = nodes_.find(name.parent);
  if (above == nodes_.end()) return;
  --above->second.children;
  erase_if_unused(name.parent);
}

void Table::erase_if_unused(NodeId id) {
  while (id != 0) {
    const auto found = nodes_.find(id);
    if (found == nodes_.end() || id == kRootNode || found->second.lookups > 0 || found->second.children > 0) return;
    Node& node = found->second;
    const auto mine = by_identity_.find(node.identity);
    if (mine != by_identity_.end() && mine->second == id) by_identity_.erase(mine);
    cache_.drop(id);
    if (const auto pin = pinned_.find(id); pin != pinned_.end()) {
      budget_.give_back(pin->second.user);
      cache_.close_later(std::move(pin->second.fd));
      pinned_.erase(pin);
    }
    std::vector<Alias> names = std::move(node.names);
    nodes_.erase(found);
    // Several names are rare; the chain of parents is walked without recursion for the first.
    for (std::size_t i = 1; i < names.size(); ++i) drop_name(names[i]);
    id = 0;
    if (!names.empty()) {
      const auto above = nodes_.find(names[0].parent);
      if (above != nodes_.end()) {
        --above->second.children;
        id = names[0].parent;
      }
    }
  }
}

bool Table::forget(NodeId id, std::uint64_t count) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = nodes_.find(id);
  if (found == nodes_.end() || id == kRootNode) return false;
  Node& node = found->second;
  node.lookups -= std::min(node.lookups, count);
  if (node.lookups > 0) return false;
  erase_if_unused(id);
  return true;
}

Result<PathFd> Table::path_fd(NodeId id) {
  FileHandle handle;
  Identity identity;
  NodeId parent = 0;
  std::string name;
  {
    const std::lock_guard lock(mutex_);
    if (auto kept = cache_.use(id)) return kept;
    if (const auto pin = pinned_.find(id); pin != pinned_.end()) return pin->second.fd;
    const auto found = nodes_.find(id);
    if (found == nodes_.end()) return fail(ESTALE, "the file is not known any more");
    handle = found->second.handle;
    identity = found->second.identity;
    if (!found->second.names.empty()) {
      parent = found->second.names.back().parent;
      name = found->second.names.back().name;
    }
  }
  reaper_.keep_up();
  UniqueFd fd;
  if (!handle.bytes.empty()) {
    auto opened = tree_.open_handle(handle, O_PATH);
    if (!opened) return fail(opened.error());
    fd = std::move(*opened);
  } else {
    // A file system without handles: by name, and only if it is still the same file.
    auto directory = path_fd(parent);
    if (!directory) return fail(directory.error());
    fd.reset(::openat((*directory)->get(), name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
    struct stat attr {};
    if (!fd) return fail(errno == ENOENT ? ESTALE : errno, "the file is not where it was");
    if (::fstat(fd.get(), &attr) != 0 || attr.st_dev != identity.device || attr.st_ino != identity.inode) {
      return fail(ESTALE, "another file has taken its place");
    }
  }
  auto shared = std::make_shared<const UniqueFd>(std::move(fd));
  const std::lock_guard lock(mutex_);
  cache_.add(id, shared);
  return shared;
}

Result<struct stat> Table::attributes_of(NodeId id) {
  NodeId parent = 0;
  std::string name;
  Identity identity;
  std::int64_t birth_ns = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto found = nodes_.find(id);
    if (found != nodes_.end() && !pinned_.contains(id) && !cache_.contains(id) && !found->second.names.empty()) {
      const Node& node = found->second;
      parent = node.names.back().parent;
      name = node.names.back().name;
      identity = node.identity;
      birth_ns = node.birth_ns;
    }
  }
  // The directory's descriptor serves its other files too.
  if (const auto directory = parent != 0 ? path_fd(parent) : Result<PathFd>(PathFd()); directory && *directory) {
    const auto seen = look_at((*directory)->get(), name.c_str(), 0);
    if (seen && seen->attr.st_dev == identity.device && seen->attr.st_ino == identity.inode && seen->birth_ns == birth_ns) return seen->attr;
  }
  auto fd = path_fd(id);
  if (!fd) return fail(fd.error());
  const auto seen = look_at((*fd)->get(), "", AT_EMPTY_PATH);
  if (!seen) return fail(seen.error());
  return seen->attr;
}

Result<UniqueFd> Table::open(NodeId id, int flags) {
  FileHandle handle;
  {
    const std::lock_guard lock(mutex_);
    const auto found = nodes_.find(id);
    if (found == nodes_.end()) return fail(ESTALE, "the file is not known any more");
    if (!pinned_.contains(id)) handle = found->second.handle;
  }
  if (!handle.bytes.empty()) return tree_.open_handle(handle, flags);
  auto path = path_fd(id);
  if (!path) return fail(path.error());
  UniqueFd fd(::open(ProcPath((*path)->get()).get(), flags | O_CLOEXEC));
  if (!fd) return fail(errno_error("open"));
  return fd;
}

Result<InodeTable::Pin> Table::will_unlink(NodeId parent, std::string_view name, uid_t user) {
  auto directory = path_fd(parent);
  if (!directory) return Pin();
  UniqueFd fd(::openat((*directory)->get(), std::string(name).c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  if (!fd) return Pin();
  const auto seen = look_at(fd.get(), "", AT_EMPTY_PATH);
  if (!seen || (!S_ISDIR(seen->attr.st_mode) && seen->attr.st_nlink > 1)) return Pin();
  auto pin = std::make_shared<const UniqueFd>(std::move(fd));
  const std::lock_guard lock(mutex_);
  const NodeId id = known(mount_of(parent).value_or(0), *seen);
  if (id == 0 || id == kRootNode) return Pin();
  if (!pinned_.contains(id)) {
    if (!budget_.take(user)) return fail(EMFILE, "the user's share of descriptors is taken");
    pinned_[id] = {std::move(pin), 0, false, user};
  }
  ++pinned_.at(id).attempts;
  return Pin(*this, id);
}

void Table::end_pin(NodeId id, bool keep) noexcept {
  const std::lock_guard lock(mutex_);
  const auto pin = pinned_.find(id);
  if (pin == pinned_.end()) return;  // the kernel has forgotten it meanwhile
  --pin->second.attempts;
  pin->second.unlinked |= keep;
  if (pin->second.attempts > 0 || pin->second.unlinked) return;
  budget_.give_back(pin->second.user);
  cache_.close_later(std::move(pin->second.fd));
  pinned_.erase(pin);
}

void Table::rename_one(NodeId parent, std::string_view name, NodeId new_parent, std::string_view new_name) {
  auto directory = path_fd(new_parent);
  if (!directory) return;
  const auto seen = look_at((*directory)->get(), std::string(new_name).c_str(), 0);
  if (!seen) return;
  const std::lock_guard lock(mutex_);
  const NodeId id = known(mount_of(new_parent).value_or(0), *seen);
  if (id == 0 || id == kRootNode) return;
  Node& node = nodes_.at(id);
  const auto old = std::find_if(node.names.begin(), node.names.end(),
                                [&](const Alias& one) { return one.parent == parent && one.name == name; });
  const std::uint32_t tid = old == node.names.end() ? 0 : old->tid;
  if (old != node.names.end()) old->is_former = true;
  set_name(id, new_parent, new_name, tid);
}

void Table::did_rename(NodeId parent, std::string_view name, NodeId new_parent, std::string_view new_name, bool exchanged) noexcept {
  rename_one(parent, name, new_parent, new_name);
  if (exchanged) rename_one(new_parent, new_name, parent, name);
}

bool Table::is_inside(NodeId id, dev_t device, ino_t inode) const {
  const std::lock_guard lock(mutex_);
  for (std::size_t steps = 0; steps <= nodes_.size(); ++steps) {
    const auto found = nodes_.find(id);
    if (found == nodes_.end()) return false;
    if (found->second.identity.device == device && found->second.identity.inode == inode) return true;
    if (found->second.names.empty()) return false;
    id = found->second.names.back().parent;
  }
  return false;
}

std::string Table::path_of(NodeId id, std::uint32_t tid) const {
  const std::lock_guard lock(mutex_);
  return path_from(id, "", tid);
}

std::string Table::path_of(const InodeTable::Name& name) const {
  const std::lock_guard lock(mutex_);
  return path_from(name.parent, name.name, kNobody);
}

// REQUIRES: the mutex is held.
std::string Table::path_from(NodeId id, std::string_view last, std::uint32_t tid) const {
  std::vector<std::string_view> parts;
  if (!last.empty()) parts.push_back(last);
  while (id != kRootNode && parts.size() <= nodes_.size()) {  // moves outside the mount can make the table's view of it a loop
    const auto found = nodes_.find(id);
    if (found == nodes_.end() || found->second.names.empty()) break;
    const std::vector<Alias>& names = found->second.names;
    const auto own = std::find_if(names.rbegin(), names.rend(), [&](const Alias& name) { return name.tid == tid; });
    const Alias& name = own == names.rend() ? names.back() : *own;
    parts.push_back(name.name);
    id = name.parent;
  }
  std::string path;
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    path += '/';
    path += *part;
  }
  return path.empty() ? "/" : path;
}

EventSource::Names Table::names_of(NodeId id, std::uint64_t links) const {
  struct Partial {
    NodeId above;
    std::string reversed;  // what is below it, last byte first
    std::size_t depth;
  };
  EventSource::Names all;
  const std::lock_guard lock(mutex_);
  const auto file = nodes_.find(id);
  const auto is_current = [](const Alias& one) { return !one.is_former; };
  all.is_complete = file != nodes_.end() && static_cast<std::uint64_t>(std::count_if(file->second.names.begin(), file->second.names.end(), is_current)) >= links;
  std::vector<Partial> open{{id, "", 0}};
  while (!open.empty() && all.is_complete) {
    Partial one = std::move(open.back());
    open.pop_back();
    if (one.above == kRootNode) {
      all.paths.emplace_back(one.reversed.rbegin(), one.reversed.rend());
      continue;
    }
    const auto found = nodes_.find(one.above);
    // No way up, an unknown one, or a loop: the table's view of what was moved outside the mount.
    if (found == nodes_.end() || found->second.names.empty() || found->second.lacks_names || one.depth > nodes_.size()) {
      all.is_complete = false;
      break;
    }
    const std::vector<Alias>& names = found->second.names;
    for (std::size_t i = 0; i < names.size(); ++i) {
      Partial next{names[i].parent, i + 1 < names.size() ? one.reversed : std::move(one.reversed), one.depth + 1};
      next.reversed.append(names[i].name.rbegin(), names[i].name.rend());
      next.reversed += '/';
      open.push_back(std::move(next));
    }
    if (all.paths.size() + open.size() > kMaxPaths) all.is_complete = false;
  }
  return all;
}

std::optional<std::pair<NodeId, std::string>> Table::name_of(NodeId id) const {
  const std::lock_guard lock(mutex_);
  const auto found = nodes_.find(id);
  if (found == nodes_.end() || found->second.names.empty()) return std::nullopt;
  const Alias& name = found->second.names.back();
  return std::pair(name.parent, name.name);
}

}  // namespace

std::unique_ptr<InodeTable> InodeTable::create(BackingTree& tree, std::size_t cached_descriptors, Reaper& reaper, DescriptorBudget& budget) {
  return std::make_unique<Table>(tree, cached_descriptors, reaper, budget);
}

}  // namespace imafs
