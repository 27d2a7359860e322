#include "imafs/tree_watch.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "imafs/boundary.h"
#include "imafs/posix_file.h"
#include "imafs/unique_fd.h"

namespace imafs {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kSettling{1};
constexpr std::chrono::milliseconds kBehind{200};

constexpr std::size_t kLargestEvent = 1024;           // a name of 255 bytes and two file handles of 128
constexpr std::size_t kMostBacklog = 4 * 1024 * 1024;
constexpr unsigned kSlotBits = 17;                    // 1 MiB

constexpr std::uint64_t kNameEvents = FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO;
constexpr std::uint64_t kWriteEvents = FAN_MODIFY | FAN_CLOSE_WRITE;

// Local file systems, on which every change goes through this kernel.
constexpr unsigned long kXfs = 0x58465342;  // not in <linux/magic.h> of Debian 12
constexpr std::array<unsigned long, 5> kLocalTypes{EXT4_SUPER_MAGIC, TMPFS_MAGIC, BTRFS_SUPER_MAGIC, F2FS_SUPER_MAGIC, kXfs};

struct Inode {
  dev_t device = 0;
  ino_t number = 0;
  bool operator==(const Inode&) const = default;
};

struct HashInode {
  std::size_t operator()(const Inode& inode) const { return inode.number * 0x9e3779b97f4a7c15ULL ^ inode.device; }
};

// The inode number that a file handle holds; nothing where only the file system can tell. Opening the handle instead costs
// twenty times as much, for every file that anybody writes on the file system. Sources: generic_encode_ino32_fh in fs/libfs.c
// (ext4, f2fs), shmem_encode_fh in mm/shmem.c, fs/xfs/xfs_export.h.
std::optional<ino_t> number_in(std::string_view handle, int handle_type, unsigned long type) {
  std::array<std::uint32_t, 3> words{};
  if (handle.size() > sizeof words) return std::nullopt;
  std::memcpy(words.data(), handle.data(), handle.size());
  const auto wide = [](std::uint32_t low, std::uint32_t high) { return static_cast<ino_t>(high) << 32 | low; };
  if (type == TMPFS_MAGIC && handle_type == 1 && handle.size() == 12) return wide(words[1], words[2]);
  if (type == kXfs && handle_type == 0x81 && handle.size() == 12) return wide(words[0], words[1]);
  if (type != BTRFS_SUPER_MAGIC && handle_type == 1 && handle.size() == 8) return words[0];
  return std::nullopt;
}

class Watch final : public TreeWatch {
 public:
  explicit Watch(Listener listener) : listener_(std::move(listener)) {}
  ~Watch() override { stop(); }

  void stop() override {
    stopping_ = true;
    const std::uint64_t one = 1;
    if (thread_.joinable() && ::write(wake_.get(), &one, sizeof one) == sizeof one) thread_.join();
  }

  bool begin(BackingTree& tree) {
    // With the file that a name is of, where the kernel tells (Linux 5.17); <sys/fanotify.h> of Debian 12 has no name for it.
    constexpr unsigned flags = FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_FID | FAN_REPORT_DFID_NAME, target = 0x1000;
    events_.reset(::fanotify_init(flags | target, O_RDONLY));
    if (!events_) events_.reset(::fanotify_init(flags, O_RDONLY));
    wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!events_ || !wake_) return false;
    for (std::uint16_t mount = 0; mount < tree.mounts(); ++mount) add(tree, mount);
    if (systems_.empty()) return false;
    thread_ = std::thread([this] { run(); });
    return true;
  }

  bool is_settled(dev_t device, ino_t inode) const override {
    if (!covers(device)) return false;
    if (lost_) return false;
    if (!any_restless_) return true;
    const std::lock_guard lock(mutex_);
    const auto found = restless_.find(Inode{device, inode});
    return found == restless_.end() || found->second < Clock::now();
  }

  std::optional<std::uint64_t> take_reports(dev_t device) override {
    if (!covers(device)) return std::nullopt;
    read_reports();
    return reports_;
  }

  std::uint64_t last_report_of(ino_t inode) const override { return std::max<std::uint64_t>(all_written_, written_[slot_of(inode)]); }

 private:
  struct System {
    dev_t device;
    std::array<int, 2> id;  // as events name it
    int root;               // of the tree's clone
    unsigned long type;
    bool numbered;          // its file handles say which inode they are of
  };
  // A writer that goes on and on: its writes are not told while the mark stands, which the kernel lifts
  // by itself if it drops the inode.
  struct Ignored {
    Inode inode;
    UniqueFd fd;
    Clock::time_point until;
  };

  bool covers(dev_t device) const {
    return std::any_of(systems_.begin(), systems_.end(), [&](const System& system) { return system.device == device; });
  }

  static std::size_t slot_of(ino_t inode) { return static_cast<std::size_t>(inode * 0x9e3779b97f4a7c15ULL >> (64 - kSlotBits)); }

  void add(BackingTree& tree, std::uint16_t mount) {
    const int root = tree.root_of(mount);
    struct statfs answer {};
    struct stat attr {};
    if (::fstatfs(root, &answer) != 0 || ::fstat(root, &attr) != 0) return;
    if (std::find(kLocalTypes.begin(), kLocalTypes.end(), static_cast<unsigned long>(answer.f_type)) == kLocalTypes.end()) return;
    if (std::any_of(systems_.begin(), systems_.end(), [&](const System& one) { return one.device == attr.st_dev; })) return;
    if (::fanotify_mark(events_.get(), FAN_MARK_ADD | FAN_MARK_FILESYSTEM, kNameEvents | kWriteEvents | FAN_ATTRIB | FAN_ONDIR, root,
                        ".") != 0) {
      return;
    }
    System system{attr.st_dev, {}, root, static_cast<unsigned long>(answer.f_type), false};
    const FileHandle handle = tree.handle_of(root, "", mount);
    system.numbered = number_in(handle.bytes, handle.type, system.type) == attr.st_ino;
    std::memcpy(system.id.data(), &answer.f_fsid, sizeof system.id);
    systems_.push_back(system);
  }

  void run() {
    std::array<struct pollfd, 2> watched{{{wake_.get(), POLLIN, 0}, {events_.get(), POLLIN, 0}}};
    std::vector<char> events;
    while (!stopping_) {
      (void)::poll(watched.data(), watched.size(), any_restless_ ? 1000 : -1);
      std::uint64_t woken = 0;
      (void)!::read(wake_.get(), &woken, sizeof woken);
      // Many events, few awakenings: what the tree's own users do comes here too.
      if (!stopping_) (void)::poll(watched.data(), 1, static_cast<int>(lost_ ? kSettling / std::chrono::milliseconds(1) : kDelay.count()));
      lost_ = false;
      read_reports();
      bool dropped = false;
      {
        const std::lock_guard lock(reading_);
        events.swap(backlog_);
        backlog_.clear();
        dropped = std::exchange(backlog_is_cut_, false);
      }
      // What cannot be judged for want of memory is lost.
      if (!contain("the watch", [&] { dropped = dropped || !take_all(events); })) dropped = true;
      if (dropped) lose();
      directories_.clear();
      settle();
    }
  }

  // Moves what the kernel has reported to the backlog, and notes at once which inodes may have been written. The kernel reports
  // once: a report that could not be noted for want of memory would be a writer nobody knows of, so that ends the daemon.
  void read_reports() noexcept {
    const std::lock_guard lock(reading_);
    const bool was_empty = backlog_.empty();
    for (bool more = true; more;) {
      if (backlog_.size() > kMostBacklog) {
        backlog_.clear();
        backlog_is_cut_ = true;
      }
      const ssize_t size = ::read(events_.get(), buffer_.data(), buffer_.size());
      if (size <= 0) break;
      const std::span<const char> events(buffer_.data(), static_cast<std::size_t>(size));
      each_event(events, [this](const auto& head, const char* event) { note_write(head, event); });
      backlog_.insert(backlog_.end(), events.begin(), events.end());
      more = events.size() > buffer_.size() - kLargestEvent;  // or the queue was empty a moment ago
    }
    const std::uint64_t one = 1;
    if (was_empty && !backlog_.empty()) (void)!::write(wake_.get(), &one, sizeof one);
  }

  // Also what we wrote ourselves: the tree may show one file at two places.
  // REQUIRES: reading_ is held.
  void note_write(const struct fanotify_event_metadata& head, const char* event) {
    if ((head.mask & FAN_Q_OVERFLOW) != 0) all_written_ = ++reports_;
    if ((head.mask & kWriteEvents) == 0) return;
    each_info(head, event, [&](const struct fanotify_event_info_fid& info) {
      if (info.hdr.info_type != FAN_EVENT_INFO_TYPE_FID) return;
      const auto number = number_of(info);
      ++reports_;
      (number ? written_[slot_of(*number)] : all_written_) = reports_.load();
    });
  }

  // False: it takes too long. Somebody fills the disk: to know that something changed is soon, to know what is not.
  bool take_all(std::span<const char> events) {
    const auto start = Clock::now();
    bool behind = false;
    each_event(events, [&](const struct fanotify_event_metadata& head, const char* event) {
      behind = behind || Clock::now() - start > kBehind;
      if (!behind) take(head, event);
    });
    return !behind;
  }

  template <class Use>
  static void each_event(std::span<const char> events, Use&& use) {
    struct fanotify_event_metadata head {};  // a copy: it wants 8 bytes of alignment, and an event begins at any 4
    for (std::size_t at = 0; events.size() - at >= sizeof head; at += head.event_len) {
      std::memcpy(&head, events.data() + at, sizeof head);
      if (!FAN_EVENT_OK(&head, static_cast<long>(events.size() - at))) break;
      use(head, events.data() + at);
    }
  }

  template <class Use>
  static void each_info(const struct fanotify_event_metadata& head, const char* event, Use&& use) {
    const char* at = event + head.metadata_len;
    const char* const end = event + head.event_len;
    while (end - at >= static_cast<std::ptrdiff_t>(sizeof(struct fanotify_event_info_header))) {
      const auto& info = *reinterpret_cast<const struct fanotify_event_info_fid*>(at);
      if (info.hdr.len < sizeof info.hdr) return;
      use(info);
      at += info.hdr.len;
    }
  }

  void take(const struct fanotify_event_metadata& head, const char* event) {
    if ((head.mask & FAN_Q_OVERFLOW) != 0) lose();
    if (head.pid == self_) return;
    each_info(head, event, [&](const struct fanotify_event_info_fid& info) {
      if (info.hdr.info_type == FAN_EVENT_INFO_TYPE_DFID_NAME && (head.mask & kNameEvents) != 0) name_changed(info);
      if (info.hdr.info_type == FAN_EVENT_INFO_TYPE_FID && (head.mask & (FAN_ATTRIB | kWriteEvents)) != 0) inode_changed(info, head.mask);
      if (info.hdr.info_type == FAN_EVENT_INFO_TYPE_FID && (head.mask & (FAN_MOVED_FROM | FAN_MOVED_TO)) != 0) inode_moved(info);
    });
  }

  // Nothing is believed for long until it is known again what changes.
  // No memory for that: who is not told must not go on serving, so it ends the daemon.
  void lose() noexcept {
    lost_ = true;
    listener_.events_lost();
  }

  const System* system_of(const struct fanotify_event_info_fid& info) const {
    const auto found = std::find_if(systems_.begin(), systems_.end(),
                                    [&](const System& one) { return std::memcmp(one.id.data(), &info.fsid, sizeof one.id) == 0; });
    return found != systems_.end() ? &*found : nullptr;
  }

  static const struct file_handle& handle_of(const struct fanotify_event_info_fid& info) {
    return *reinterpret_cast<const struct file_handle*>(info.handle);
  }

  // The inode number of a file that was written, without asking the file system.
  std::optional<ino_t> number_of(const struct fanotify_event_info_fid& info) const {
    const System* const system = system_of(info);
    if (system == nullptr) return std::nullopt;
    const struct file_handle& handle = handle_of(info);
    if (system->numbered) return number_in({reinterpret_cast<const char*>(handle.f_handle), handle.handle_bytes}, handle.handle_type, system->type);
    // struct btrfs_fid, fs/btrfs/export.h: the number, then the subvolume's. A number alone is enough to suspect.
    ino_t number = 0;
    if (system->type != BTRFS_SUPER_MAGIC || handle.handle_bytes < sizeof number) return std::nullopt;
    std::memcpy(&number, handle.f_handle, sizeof number);
    return number;
  }

  // What an event is about, without asking the file system.
  std::optional<Inode> inode_of(const struct fanotify_event_info_fid& info) const {
    const System* const system = system_of(info);
    if (system == nullptr || !system->numbered) return std::nullopt;
    const struct file_handle& handle = handle_of(info);
    const auto number = number_in({reinterpret_cast<const char*>(handle.f_handle), handle.handle_bytes}, handle.handle_type, system->type);
    return number ? std::optional(Inode{system->device, *number}) : std::nullopt;
  }

  // An O_PATH descriptor of it; none if it is gone, or nothing of ours.
  UniqueFd open(const struct fanotify_event_info_fid& info, struct stat& attr) const {
    const System* const system = system_of(info);
    if (system == nullptr) return {};
    UniqueFd fd(::open_by_handle_at(system->root, const_cast<struct file_handle*>(&handle_of(info)), O_PATH | O_CLOEXEC));
    if (fd && ::fstat(fd.get(), &attr) != 0) fd.reset();
    return fd;
  }

  void name_changed(const struct fanotify_event_info_fid& info) {
    const struct file_handle& handle = handle_of(info);
    const auto* const from = reinterpret_cast<const char*>(&info.fsid);
    const char* const name = reinterpret_cast<const char*>(handle.f_handle) + handle.handle_bytes;
    std::optional<Inode> directory = inode_of(info);
    if (!directory) {
      const auto [found, is_new] = directories_.try_emplace(std::string(from, name));
      struct stat attr {};
      if (is_new && open(info, attr)) found->second = Inode{attr.st_dev, attr.st_ino};
      directory = found->second;
    }
    if (!directory) return;
    disturb(*directory);
    listener_.name_changed(directory->device, directory->number, name);
  }

  void inode_moved(const struct fanotify_event_info_fid& info) {
    struct stat attr {};
    auto inode = inode_of(info);
    if (!inode && open(info, attr)) inode = Inode{attr.st_dev, attr.st_ino};
    if (inode) listener_.moved(inode->device, inode->number);
  }

  void inode_changed(const struct fanotify_event_info_fid& info, std::uint64_t mask) {
    struct stat attr {};
    UniqueFd fd;
    const auto opened = [&] { return fd || (fd = open(info, attr)); };
    std::optional<Inode> inode = inode_of(info);
    if (!inode && opened()) inode = Inode{attr.st_dev, attr.st_ino};
    if (!inode) return;
    const bool again = disturb(*inode);
    listener_.attributes_changed(inode->device, inode->number, [&] {
      return (mask & FAN_ATTRIB) != 0 && opened() ? std::optional<nlink_t>(attr.st_nlink) : std::nullopt;
    });
    if ((mask & FAN_MODIFY) == 0 || !again || !opened()) return;
    if (::fanotify_mark(events_.get(), FAN_MARK_ADD | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY | FAN_MARK_EVICTABLE,
                        FAN_MODIFY, AT_FDCWD, ProcPath(fd.get()).get()) == 0) {
      ignored_.push_back({*inode, std::move(fd), Clock::now() + kSettling});
    }
  }

  // True if it was disturbed before, a moment ago.
  bool disturb(const Inode& inode) {
    const std::lock_guard lock(mutex_);
    const bool added = restless_.insert_or_assign(inode, Clock::now() + kSettling).second;
    any_restless_ = true;
    return !added;
  }

  // Ends what has lasted long enough. A writer that was ignored may have written since: its attributes once more.
  void settle() {
    const auto now = Clock::now();
    const auto kept = std::partition(ignored_.begin(), ignored_.end(), [&](const Ignored& one) { return one.until > now; });
    for (auto one = kept; one != ignored_.end(); ++one) {
      ::fanotify_mark(events_.get(), FAN_MARK_REMOVE | FAN_MARK_IGNORED_MASK, FAN_MODIFY, AT_FDCWD, ProcPath(one->fd.get()).get());
      disturb(one->inode);
      listener_.attributes_changed(one->inode.device, one->inode.number, [] { return std::nullopt; });
    }
    ignored_.erase(kept, ignored_.end());
    const std::lock_guard lock(mutex_);
    std::erase_if(restless_, [&](const auto& one) { return one.second < now; });
    any_restless_ = !restless_.empty();
  }

  const Listener listener_;
  const pid_t self_ = ::getpid();
  UniqueFd events_;
  UniqueFd wake_;  // of the watch's thread: its end, or a backlog that another thread has read
  std::vector<System> systems_;  // constant once begun
  // Of the watch's thread.
  std::vector<Ignored> ignored_;
  std::unordered_map<std::string, std::optional<Inode>> directories_;  // of the events at hand, by file system and handle

  std::mutex reading_;            // what is read of events_ is in backlog_, and noted in written_
  alignas(struct fanotify_event_info_fid) std::array<char, 64 * 1024> buffer_{};  // guarded by reading_
  std::vector<char> backlog_;     // guarded by reading_: events that the watch's thread has not looked at
  bool backlog_is_cut_ = false;   // guarded by reading_: it became too large
  // Changed under reading_: the number of the last report, of the last one that may have been anybody's, and for each group of
  // inodes of the last one that was of one of them. Groups are fixed: memory does not grow with what is written.
  std::atomic<std::uint64_t> reports_{0}, all_written_{0};
  std::vector<std::atomic<std::uint64_t>> written_ = std::vector<std::atomic<std::uint64_t>>(std::size_t{1} << kSlotBits);

  mutable std::mutex mutex_;
  std::unordered_map<Inode, Clock::time_point, HashInode> restless_;  // guarded by mutex_: changed, until when
  std::atomic<bool> any_restless_{false};                             // whether restless_ has any

  std::atomic<bool> lost_{false};  // events, a moment ago
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace

std::unique_ptr<TreeWatch> TreeWatch::start(BackingTree& tree, Listener listener) {
  auto watch = std::make_unique<Watch>(std::move(listener));
  if (!watch->begin(tree)) return nullptr;
  return watch;
}

}  // namespace imafs
