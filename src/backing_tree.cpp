#include "imafs/backing_tree.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>
#include <vector>

#include "imafs/posix_file.h"

namespace imafs {
namespace {

// They answer for the daemon instead of the caller, or are views of the machine, not files.
constexpr std::array<std::string_view, 20> kPseudoTypes{
    "proc",   "sysfs",    "devpts",      "cgroup",     "cgroup2",   "debugfs", "tracefs",   "securityfs", "bpf",   "fusectl",
    "configfs", "binfmt_misc", "mqueue", "hugetlbfs", "pstore", "efivarfs", "nsfs", "autofs", "selinuxfs", "rpc_pipefs"};

struct MountLine {
  unsigned long id = 0;
  unsigned long parent = 0;
  std::string device;  // "8:1"
  std::string root;    // which part of the file system
  std::string point;
  std::string type;
  std::uint64_t flags = 0;  // MOUNT_ATTR_...
};

constexpr std::pair<std::string_view, std::uint64_t> kFlagWords[] = {
    {"ro", MOUNT_ATTR_RDONLY},   {"nosuid", MOUNT_ATTR_NOSUID},         {"nodev", MOUNT_ATTR_NODEV},
    {"noexec", MOUNT_ATTR_NOEXEC}, {"nosymfollow", MOUNT_ATTR_NOSYMFOLLOW}, {"noatime", MOUNT_ATTR_NOATIME},
    {"nodiratime", MOUNT_ATTR_NODIRATIME}};

// Of the options of a mount in mountinfo: "rw,nosuid,relatime". Neither noatime nor relatime: each access moves the time.
std::uint64_t flags_in(const std::string& options) {
  std::uint64_t flags = MOUNT_ATTR_STRICTATIME;
  std::istringstream words(options);
  for (std::string word; std::getline(words, word, ',');) {
    if (word == "relatime" || word == "noatime") flags &= ~std::uint64_t{MOUNT_ATTR__ATIME};
    for (const auto& [name, flag] : kFlagWords) {
      if (word == name) flags |= flag;
    }
  }
  return flags;
}

// Gives the clone of a mount other flags. A clone that somebody writes to stays writable: false.
bool set_flags(int clone, std::uint64_t flags) {
  constexpr std::uint64_t all = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR__ATIME |
                                MOUNT_ATTR_NODIRATIME | MOUNT_ATTR_NOSYMFOLLOW;
  struct mount_attr change {};
  change.attr_set = flags & all;
  change.attr_clr = all & ~(flags & ~std::uint64_t{MOUNT_ATTR__ATIME});
  return ::syscall(SYS_mount_setattr, clone, "", AT_EMPTY_PATH, &change, sizeof change) == 0;
}

// mountinfo writes blanks and their like as octal.
std::string unescaped(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      out += static_cast<char>(std::strtoul(text.substr(i + 1, 3).c_str(), nullptr, 8));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

std::vector<MountLine> mount_lines() {
  std::vector<MountLine> lines;
  const auto text = read_file("/proc/self/mountinfo", 64 << 20);
  if (!text) return lines;
  std::istringstream input(*text);
  std::string line;
  while (std::getline(input, line)) {
    std::istringstream words(line);
    MountLine mount;
    std::string point, options, word;
    words >> mount.id >> mount.parent >> mount.device >> mount.root >> point >> options;
    mount.flags = flags_in(options);
    while (words >> word && word != "-") {
    }
    words >> mount.type;
    mount.point = unescaped(point);
    lines.push_back(std::move(mount));
  }
  return lines;
}

bool is_pseudo(const std::string& type) { return std::find(kPseudoTypes.begin(), kPseudoTypes.end(), type) != kPseudoTypes.end(); }

bool is_inside(const std::string& path, const std::string& directory) {
  if (directory == "/") return true;
  return path.size() > directory.size() && path.starts_with(directory) && path[directory.size()] == '/';
}

std::optional<unsigned long> mount_id_of(const char* path) {
  struct statx attr {};
  if (::statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_MNT_ID, &attr) != 0) return std::nullopt;
  return attr.stx_mnt_id;
}

// A descriptor that reads, of the root of a clone: open_by_handle_at() wants one that is not O_PATH.
UniqueFd readable_root(int clone) {
  UniqueFd fd(::openat(clone, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd || errno != ENOTDIR) return fd;
  fd.reset(::open(ProcPath(clone).get(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  return fd;
}

class Tree final : public BackingTree {
 public:
  Status open_tree(const Options& options) {
    std::array<char, PATH_MAX> real{};
    if (!::realpath(options.directory.c_str(), real.data())) {
      return fail(errno_error("cannot open the backing directory '" + options.directory + "'"));
    }
    const std::string path = real.data();
    UniqueFd plain(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!plain) return fail(errno_error("cannot open the backing directory '" + options.directory + "'"));
    lines_ = mount_lines();
    if (!add_clone(path, "", 0)) {
      mounts_.push_back(Mount{UniqueFd(), std::move(plain), path, {}, 0});
    } else {
      is_private_ = true;
      if (!options.one_file_system) add_mounts_below(path);
    }
    mounts_[0].id = mount_id_of(path.c_str()).value_or(0);
    flags_ = std::make_unique<std::atomic<std::uint64_t>[]>(mounts_.size());
    (void)read_flags(lines_);
    has_handles_ = find_handles();
    return {};
  }

  int root() const override { return mounts_[0].root.get(); }
  bool is_private() const override { return is_private_; }
  bool has_handles() const override { return has_handles_; }

  std::optional<std::uint16_t> mounted_on(std::uint16_t mount, dev_t device, ino_t inode) const override {
    const auto found = covered_.find(Place{mount, device, inode});
    if (found == covered_.end()) return std::nullopt;
    return found->second;
  }
  std::uint16_t mounts() const override { return static_cast<std::uint16_t>(mounts_.size()); }
  int root_of(std::uint16_t mount) const override { return mounts_[mount].root.get(); }

  std::uint64_t flags_of(std::uint16_t mount) const override { return flags_[mount]; }
  std::uint64_t flags_of_any() const override { return flags_of_any_; }
  bool flags_are_behind() const override {
    return std::any_of(mounts_.begin(), mounts_.end(), [](const Mount& mount) { return mount.is_behind; });
  }
  bool follow_flags() override { return read_flags(mount_lines()); }

  FileHandle handle_of(int fd, const char* name, std::uint16_t mount) override {
    FileHandle result;
    result.mount = mount;
    if (!can_open_handles_) return result;
    alignas(struct file_handle) std::array<char, sizeof(struct file_handle) + MAX_HANDLE_SZ> memory{};
    auto* const raw = reinterpret_cast<struct file_handle*>(memory.data());
    raw->handle_bytes = MAX_HANDLE_SZ;
    int mount_id = 0;
    if (::name_to_handle_at(fd, name, raw, &mount_id, *name == '\0' ? AT_EMPTY_PATH : 0) != 0) return result;
    result.type = raw->handle_type;
    result.bytes.assign(reinterpret_cast<const char*>(raw->f_handle), raw->handle_bytes);
    return result;
  }

  Result<UniqueFd> open_handle(const FileHandle& handle, int flags) override {
    alignas(struct file_handle) std::array<char, sizeof(struct file_handle) + MAX_HANDLE_SZ> memory{};
    auto* const raw = reinterpret_cast<struct file_handle*>(memory.data());
    raw->handle_bytes = static_cast<unsigned>(handle.bytes.size());
    raw->handle_type = handle.type;
    std::memcpy(raw->f_handle, handle.bytes.data(), handle.bytes.size());
    UniqueFd fd(::open_by_handle_at(mounts_[handle.mount].root.get(), raw, flags | O_CLOEXEC));
    if (!fd) return fail(errno_error("open by handle"));
    return fd;
  }

  const EventSource::FileSystem& file_system_of(int fd, dev_t device) override {
    const std::lock_guard lock(systems_mutex_);
    const auto found = systems_.find(device);
    if (found != systems_.end()) return found->second;
    EventSource::FileSystem& system = systems_[device];
    struct statfs answer {};
    if (::fstatfs(fd, &answer) == 0) system.magic = static_cast<std::uint64_t>(static_cast<std::uint32_t>(answer.f_type));
    const std::string numbers = std::to_string(major(device)) + ":" + std::to_string(minor(device));
    for (const MountLine& line : lines_) {
      if (line.device != numbers) continue;
      system.name = line.type.substr(0, line.type.find('.'));
      const std::size_t dot = line.type.find('.');
      if (dot != std::string::npos) system.subtype = line.type.substr(dot + 1);
      break;
    }
    system.uuid = uuid_of(fd);
    return system;
  }

 private:
  struct Mount {
    UniqueFd clone;  // keeps the detached mount alive
    UniqueFd root;
    std::string point;  // where it stands on the machine
    std::string inside;
    unsigned long id = 0;
    bool is_behind = false;  // the clone does not have all flags yet
  };
  struct Place {
    std::uint16_t mount = 0;
    dev_t device = 0;
    ino_t inode = 0;
    auto operator<=>(const Place&) const = default;
  };

  // A clone of one mount, without the mounts on it: only what it covers can show there.
  bool add_clone(const std::string& path, const std::string& inside, unsigned long id) {
    UniqueFd clone(static_cast<int>(::syscall(SYS_open_tree, AT_FDCWD, path.c_str(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)));
    if (!clone) return false;
    UniqueFd root = readable_root(clone.get());
    if (!root) return false;
    mounts_.push_back(Mount{std::move(clone), std::move(root), path, inside, id});
    return true;
  }

  void add_mounts_below(const std::string& directory) {
    mounts_[0].id = mount_id_of(directory.c_str()).value_or(0);
    for (const MountLine& line : lines_) {
      if (!is_inside(line.point, directory) || is_pseudo(line.type) || line.type == "fuse.imafs") continue;
      // Only what the path leads to today: a mount under another one is hidden.
      if (line.point == directory || mount_id_of(line.point.c_str()) != line.id || mounts_.size() >= UINT16_MAX) continue;
      const auto parent = std::find_if(mounts_.begin(), mounts_.end(), [&](const Mount& mount) { return mount.id == line.parent; });
      if (parent == mounts_.end()) continue;  // on something that is left out
      const std::size_t skip = parent->point == "/" ? 1 : parent->point.size() + 1;
      const auto mount = static_cast<std::uint16_t>(parent - mounts_.begin());
      struct stat covered {};
      if (::fstatat(parent->root.get(), line.point.c_str() + skip, &covered, AT_SYMLINK_NOFOLLOW) != 0) continue;
      if (!add_clone(line.point, line.point, line.id)) continue;
      covered_[Place{mount, covered.st_dev, covered.st_ino}] = static_cast<std::uint16_t>(mounts_.size() - 1);
    }
  }

  // A mount that is gone keeps the flags that it had, also when another one has its number.
  bool read_flags(const std::vector<MountLine>& lines) {
    bool changed = false;
    std::uint64_t any = 0;
    for (std::size_t i = 0; i < mounts_.size(); ++i) {
      Mount& mount = mounts_[i];
      const auto with_id = [&](const MountLine& line) { return line.id == mount.id; };
      const auto now = std::find_if(lines.begin(), lines.end(), with_id);
      const auto then = std::find_if(lines_.begin(), lines_.end(), with_id);
      const bool is_same = now != lines.end() && then != lines_.end() && now->device == then->device && now->root == then->root;
      const std::uint64_t before = flags_[i];
      const std::uint64_t flags = is_same ? now->flags : before;
      any |= flags;
      if (flags == before && !mount.is_behind) continue;
      flags_[i] = flags;
      changed = changed || flags != before;
      // At the start the clone has them.
      mount.is_behind = &lines != &lines_ && mount.clone && !set_flags(mount.clone.get(), flags);
      if (mount.is_behind) (void)set_flags(mount.clone.get(), flags & ~std::uint64_t{MOUNT_ATTR_RDONLY});
    }
    flags_of_any_ = any;
    return changed;
  }

  bool find_handles() {
    can_open_handles_ = true;
    const FileHandle handle = handle_of(root(), "", 0);
    can_open_handles_ = !handle.bytes.empty() && open_handle(handle, O_PATH).has_value();
    return can_open_handles_;
  }

  static std::optional<std::array<std::uint8_t, 16>> uuid_of(int fd) {
    // FS_IOC_GETFSUUID (Linux 6.9) and, before it, ext4's own.
    struct {
      std::uint8_t size;
      std::array<std::uint8_t, 16> uuid;
    } any{};
    if (::ioctl(fd, _IOR(0x15, 0, any), &any) == 0 && any.size == any.uuid.size()) return any.uuid;
    struct {
      std::uint32_t size = 16;
      std::uint32_t flags = 0;
      std::array<std::uint8_t, 16> uuid{};
    } ext4;
    if (::ioctl(fd, _IOR('f', 44, std::uint64_t), &ext4) == 0) return ext4.uuid;
    return std::nullopt;
  }

  std::vector<MountLine> lines_;  // as the machine was when the view was taken
  std::vector<Mount> mounts_;
  std::map<Place, std::uint16_t> covered_;
  std::unique_ptr<std::atomic<std::uint64_t>[]> flags_;  // of each mount
  std::atomic<std::uint64_t> flags_of_any_{0};
  bool is_private_ = false;
  bool has_handles_ = false;
  bool can_open_handles_ = false;
  std::mutex systems_mutex_;
  std::map<dev_t, EventSource::FileSystem> systems_;  // guarded by systems_mutex_; entries stay where they are
};

}  // namespace

Result<std::unique_ptr<BackingTree>> BackingTree::open(const Options& options) {
  auto tree = std::make_unique<Tree>();
  if (auto opened = tree->open_tree(options); !opened) return fail(opened.error());
  return tree;
}

}  // namespace imafs
