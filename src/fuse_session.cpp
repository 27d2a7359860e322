#include "imafs/fuse_session.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <stop_token>
#include <thread>
#include <utility>

#include "fuse_ops.h"
#include "imafs/neighbours.h"
#include "imafs/notice_queue.h"
#include "imafs/unreserved.h"
#include "inode_numbers.h"
#include "mount_masks.h"
#include "mount_watch.h"

namespace imafs {
namespace {

// O_PATH descriptors kept for speed; as many may wait to be closed.
constexpr std::size_t kCachedDescriptors = 300;
constexpr std::size_t kOpenDirectories = 256;  // that keep their descriptor between two readdirs
constexpr unsigned kIdleThreads = 16;  // stay when there is nothing to do
constexpr unsigned kOtherThreads = 16;  // for requests that are in no lane
constexpr unsigned kMostThreads = 1024;

// <linux/fuse.h> of Debian 12 does not have these yet. Source: include/uapi/linux/fuse.h, since 6.9.
struct BackingMap {
  std::int32_t fd;
  std::uint32_t flags;
  std::uint64_t padding;
};
constexpr unsigned long kBackingOpen = _IOW(229, 1, BackingMap);
constexpr unsigned long kBackingClose = _IOW(229, 2, std::uint32_t);

// Flags of the root's mount that become the FUSE mount's.
constexpr std::pair<const char*, std::uint64_t> kInherited[] = {
    {"nosuid", MOUNT_ATTR_NOSUID}, {"nodev", MOUNT_ATTR_NODEV},           {"noexec", MOUNT_ATTR_NOEXEC}, {"nosymfollow", MOUNT_ATTR_NOSYMFOLLOW},
    {"noatime", MOUNT_ATTR_NOATIME}, {"nodiratime", MOUNT_ATTR_NODIRATIME}};

// How many descriptors this process may have: the limit that programs are started with, often 1,024, is low for the sake
// of select(2), which nobody here calls.
std::size_t descriptor_limit() {
  struct rlimit limit {1024, 1024};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const struct rlimit raised {limit.rlim_max, limit.rlim_max};
  return ::setrlimit(RLIMIT_NOFILE, &raised) == 0 ? limit.rlim_max : limit.rlim_cur;
}

// The arguments of a libfuse session, as its option parser wants them.
class Arguments {
 public:
  Arguments() { ::fuse_opt_add_arg(&args_, "imafs"); }
  ~Arguments() { ::fuse_opt_free_args(&args_); }
  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;
  void add_option(const std::string& option) {
    ::fuse_opt_add_arg(&args_, "-o");
    ::fuse_opt_add_arg(&args_, option.c_str());
  }
  struct fuse_args* get() { return &args_; }

 private:
  struct fuse_args args_ {};
};

// A comma ends an option, a backslash keeps it from doing so.
std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == ',' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

// The end of a session that is no longer connected. libfuse's own way to unmount runs a program, which the daemon may not.
struct Destroy {
  std::function<void()> unmount;  // empty: it is not mounted, or not ours any more
  void operator()(struct fuse_session* session) const {
    if (unmount) unmount();
    ::fuse_session_destroy(session);
  }
};

class Session final : public FuseSession {
 public:
  Session(SessionOptions options, BackingTree& tree, MeasureGate& gate, ControlDir& control)
      : options_(std::move(options)),
        budget_(options_.allow_other ? descriptor_limit_ : 0),
        directories_(std::min(kOpenDirectories, descriptor_limit_ / 32)),
        reaper_(cached_descriptors()),
        table_(InodeTable::create(tree, cached_descriptors(), reaper_, budget_)),
        neighbours_(tree),
        files_(open_file_options(), kernel(), tree, *table_, gate, reaper_, workers_, budget_),
        ops_(*table_, files_, options_.passthrough),
        numbers_(table_->identity_of(kRootNode).first),
        masks_(tree, *table_),
        wake_(options_.low_latency),
        lanes_(std::size_t{2} * tree.mounts()),
        context_{options_, *table_, files_, ops_, reaper_, workers_, budget_, directories_, control, nullptr, notices_, numbers_, masks_, absent_, wake_, lanes_, [this](auto* connection) { initialize(connection); },
                 [this](NodeId parent, std::string name) { expire(parent, std::move(name)); }} {}

  ~Session() override {
    disconnect();
    mount_watch_.reset();
    if (watch_) watch_->stop();
    files_.drop_idle();
  }

  Status start(BackingTree& tree) {
    Arguments arguments;
    arguments.add_option("fsname=" + escaped(options_.backing));
    arguments.add_option("subtype=imafs");
    if (options_.default_permissions) arguments.add_option("default_permissions");
    if (options_.allow_other) arguments.add_option("allow_other");
    struct statvfs backing {};
    // The kernel then refuses changes in the order it does below: that there can be none comes before who may not.
    const bool fixed = ::fstatvfs(tree.root(), &backing) == 0 && (backing.f_flag & ST_RDONLY) != 0;
    if (options_.read_only || fixed) arguments.add_option("ro");
    if (::geteuid() == 0) arguments.add_option("suid,dev");  // libfuse's own are nosuid and nodev
    // As a bind mount would be: what the root's mount forbids the kernel forbids for all that is above it.
    const std::uint64_t inherited = ::geteuid() == 0 ? tree.flags_of(0) : 0;
    for (const auto& [name, flag] : kInherited) {
      if ((inherited & flag) != 0) arguments.add_option(name);
    }
    if (options_.io_uring) arguments.add_option("io_uring");
    for (const std::string& option : options_.extra_mount_options) arguments.add_option(option);
    session_.reset(
        fuse_session_new(arguments.get(), &fuse_operations(), sizeof(struct fuse_lowlevel_ops), &context_));
    if (!session_) return fail(EINVAL, "libfuse refuses the mount options");
    if (::fuse_session_mount(session_.get(), options_.mountpoint.c_str()) != 0) {
      const int code = errno != 0 ? errno : EIO;
      return fail(error_of(code, "cannot mount on '" + options_.mountpoint + "'"));
    }
    masks_.set_mounted(inherited);
    connected_ = true;
    null_.reset(::open("/dev/null", O_RDWR | O_CLOEXEC));
    if (!null_) return fail(errno_error("open /dev/null"));
    open_connection();
    if (options_.watch) watch_ = TreeWatch::start(tree, listener());
    if (options_.timeout_seconds > 0) context_.watch = watch_.get();
    mount_watch_ = std::make_unique<MountWatch>([this, &tree] {
      if (tree.follow_flags()) everything_changed();
      return tree.flags_are_behind();
    });
    return {};
  }

  // What the kernel says of this connection, in the fuse control file system: our own view of it, which no path leads to,
  // because it is not mounted everywhere; who may not mount looks where it usually is.
  void open_connection() {
    struct statx root {};  // what the kernel knows: nobody answers yet
    if (::statx(AT_FDCWD, options_.mountpoint.c_str(), AT_STATX_DONT_SYNC, 0, &root) != 0 || root.stx_dev_major != 0) return;
    UniqueFd all;
    const UniqueFd context(::fsopen("fusectl", FSOPEN_CLOEXEC));
    if (context && ::fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) == 0) {
      all.reset(::fsmount(context.get(), FSMOUNT_CLOEXEC, 0));
    }
    if (!all) all.reset(::open("/sys/fs/fuse/connections", O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (all) connection_.reset(::openat(all.get(), std::to_string(root.stx_dev_minor).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  }

  // At the end the loop waits for its threads. One that is stuck in a file system which does not answer ends when that does;
  // the clients, and who has to end us, need not wait for it.
  void end_without_the_stuck(const std::stop_token& over) {
    constexpr auto kLook = std::chrono::milliseconds(200);
    std::mutex mutex;  // nobody else's: what is waited for is `over`
    std::condition_variable_any wake;
    const auto wait = [&] {
      std::unique_lock lock(mutex);
      wake.wait_for(lock, over, kLook, [] { return false; });
    };
    while (!over.stop_requested() && ::fuse_session_exited(session_.get()) == 0) wait();
    if (!over.stop_requested()) wait();
    if (over.stop_requested()) return;
    disconnect();
    if (auto unmount_now = std::exchange(session_.get_deleter().unmount, nullptr)) unmount_now();
  }

  // How many requests the kernel has under way. Its file gives one number for each time it is opened.
  std::optional<unsigned> requests() const {
    const UniqueFd waiting(::openat(connection_.get(), "waiting", O_RDONLY | O_CLOEXEC));
    std::array<char, 16> text{};
    const ssize_t length = waiting ? ::read(waiting.get(), text.data(), text.size()) : -1;
    unsigned number = 0;
    if (length <= 0 || std::from_chars(text.data(), text.data() + length, number).ec != std::errc()) return std::nullopt;
    return number;
  }

  Status run(std::function<void()> ready) override {
    ready_ = std::move(ready);
    if (::fuse_set_signal_handlers(session_.get()) != 0) return fail(EIO, "cannot install signal handlers");
    // The threads made below inherit it: one that is woken does not take the processor from the client that woke it and is
    // about to wait. Otherwise it is moved to another one, and each request costs two awakenings of an idle processor.
    const struct sched_param no_priority {};
    (void)::sched_setscheduler(0, SCHED_BATCH, &no_priority);
    struct fuse_loop_config* const config = ::fuse_loop_cfg_create();
    ::fuse_loop_cfg_set_clone_fd(config, 0);
    ::fuse_loop_cfg_set_max_threads(config, most_threads());
    ::fuse_loop_cfg_set_idle_threads(config, kIdleThreads);
    std::jthread ender([this](const std::stop_token& over) { end_without_the_stuck(over); });
    const int result = ::fuse_session_loop_mt(session_.get(), config);
    ender.request_stop();
    ender.join();
    ::fuse_loop_cfg_destroy(config);
    ::fuse_remove_signal_handlers(session_.get());
    disconnect();
    if (result < 0) return fail(error_of(-result, "the session ended"));
    return {};
  }

  Health health() const override { return {files_.health(), wake_.requests(), table_->size(), table_->open_descriptors(), uring_, watch_ != nullptr}; }

 private:
  std::size_t cached_descriptors() const { return std::min(kCachedDescriptors, descriptor_limit_ / 16); }

  // A thread that waits in a file system which does not answer keeps none of the others' requests waiting.
  unsigned most_threads() const { return std::min(kMostThreads, lanes_.most_threads() + kOtherThreads); }

  OpenFiles::Options open_file_options() const {
    OpenFiles::Options options;
    options.passthrough = options_.passthrough;
    options.leases = options_.leases;
    if (!options_.inline_hashing || options_.io_uring) options.inline_hashes = 0;
    options.idle_descriptors = std::min(options.idle_descriptors, descriptor_limit_ / 4);
    options.returned_descriptors = std::min(options.returned_descriptors, descriptor_limit_ / 2);
    options.descriptors = descriptor_limit_ / 4 * 3;
    return options;
  }

  OpenFiles::Kernel kernel() {
    return {[this](int fd) {
              BackingMap map{fd, 0, 0};
              if (!can_pass_through_) return -EOPNOTSUPP;
              // The kernel writes with what the registering thread was: whoever may write to a file must not get root's blocks by it.
              const Unreserved unreserved;
              const int id = ::ioctl(::fuse_session_fd(session_.get()), kBackingOpen, &map);
              return id > 0 ? id : -errno;
            },
            [this](int id) {
              const auto number = static_cast<std::uint32_t>(id);
              ::ioctl(::fuse_session_fd(session_.get()), kBackingClose, &number);
            },
            [this](NodeId node) {
              notices_.post(node, [this, node] { ::fuse_lowlevel_notify_inval_inode(session_.get(), node, 0, 0); });
            },
            [this](NodeId node) { drop_attributes(node); },
            [this] { return requests(); },
            [this] { return neighbours_.exist(); },
            [this](NodeId node) {
              return std::any_of(options_.own_files.begin(), options_.own_files.end(),
                                 [&](const auto& own) { return table_->is_inside(node, own.first, own.second); });
            },
            [this] { return watch_.get(); }};
  }

  // What others changed, the kernel asks for again.
  TreeWatch::Listener listener() {
    return {[this](dev_t device, ino_t inode, const std::function<std::optional<nlink_t>()>& links) {
              const auto nodes = table_->numbers_of(device, inode);
              if (nodes.empty()) return;
              const auto left = links();
              const bool deleted = left && *left == 0;
              for (const NodeId node : nodes) {
                drop_attributes(node);
                // From now on each of its names must be looked up, so that an open is judged and logged by the one it used.
                if (const auto name = left && *left > 1 ? table_->name_of(node) : std::nullopt) expire_now(name->first, name->second);
                if (!deleted) continue;
                files_.let_go(node);
                table_->let_go(node);
              }
            },
            [this](dev_t device, ino_t inode) {
              for (const NodeId node : table_->numbers_of(device, inode)) table_->was_moved(node);
            },
            [this](dev_t device, ino_t directory, const std::string& name) {
              for (const NodeId node : table_->numbers_of(device, directory)) {
                expire(node, name);
                drop_attributes(node);
              }
            },
            [this] { everything_changed(); }};
  }

  // One by one: a new epoch makes the kernel drop names instead of asking, and with them what is mounted there.
  void everything_changed() {
    for (const NodeId node : table_->all()) {
      if (const auto name = table_->name_of(node)) expire(name->first, name->second);
      drop_attributes(node);
    }
    for (const auto& one : absent_.take_all()) expire(one.directory, one.name);
  }

  void expire_now(NodeId parent, const std::string& name) {
    ::fuse_lowlevel_notify_expire_entry(session_.get(), parent, name.c_str(), name.size());
  }

  void drop_attributes(NodeId node) {
    if (node == kRootNode && !root_is_known_) return;
    ::fuse_lowlevel_notify_inval_inode(session_.get(), node, -1, 0);
  }

  // Until the kernel has asked for the root's attributes the root has no permissions for anybody, and a notice makes the
  // kernel throw away an answer that is on its way: we ask, undisturbed, before others do.
  void make_root_known() {
    options_.look_at_root();
    root_is_known_ = true;
    drop_attributes(kRootNode);  // what changed meanwhile was not told
    if (ready_) ready_();
  }

  // A notice to the kernel may wait for locks that the request at hand holds: another thread sends it.
  void expire(NodeId parent, std::string name) {
    notices_.post(parent, [this, parent, name = std::move(name)] { expire_now(parent, name); });
  }

  void initialize(struct fuse_conn_info* connection) {
    // What each is worth was measured: docs/PERFORMANCE.md.
    ::fuse_unset_feature_flag(connection, FUSE_CAP_SPLICE_READ);
    ::fuse_unset_feature_flag(connection, FUSE_CAP_SPLICE_WRITE);
    ::fuse_unset_feature_flag(connection, FUSE_CAP_WRITEBACK_CACHE);
    ::fuse_unset_feature_flag(connection, FUSE_CAP_HANDLE_KILLPRIV);
    ::fuse_set_feature_flag(connection, FUSE_CAP_HANDLE_KILLPRIV_V2);
    ::fuse_set_feature_flag(connection, FUSE_CAP_ATOMIC_O_TRUNC);
    ::fuse_set_feature_flag(connection, FUSE_CAP_DONT_MASK);
    ::fuse_set_feature_flag(connection, FUSE_CAP_POSIX_ACL);
    ::fuse_set_feature_flag(connection, FUSE_CAP_IOCTL_DIR);
    ::fuse_set_feature_flag(connection, FUSE_CAP_CACHE_SYMLINKS);
    ::fuse_set_feature_flag(connection, FUSE_CAP_PARALLEL_DIROPS);
    ::fuse_set_feature_flag(connection, FUSE_CAP_READDIRPLUS);
    ::fuse_set_feature_flag(connection, FUSE_CAP_READDIRPLUS_AUTO);
    ::fuse_set_feature_flag(connection, FUSE_CAP_NO_EXPORT_SUPPORT);
    can_pass_through_ = options_.passthrough && ::fuse_set_feature_flag(connection, FUSE_CAP_PASSTHROUGH);
    uring_ = options_.io_uring && ::fuse_get_feature_flag(connection, FUSE_CAP_OVER_IO_URING);
    connection->time_gran = 1;
    notices_.post(kRootNode, [this] { make_root_known(); });
  }

  // Ends the connection: who waits for an answer, or in a notification, goes on with an error. Threads of ours may still
  // speak to the session, so its descriptor's number stays taken until they have ended: nobody else's file gets their words.
  void disconnect() {
    files_.stop();
    if (!connected_.exchange(false)) return;
    const int fd = ::fuse_session_fd(session_.get());
    struct pollfd state {fd, 0, 0};
    const bool gone = ::poll(&state, 1, 0) == 1 && (state.revents & POLLERR) != 0;
    if (!gone) session_.get_deleter().unmount = [this] { unmount(); };  // else what is mounted there now is somebody else's
    ::dup3(null_.get(), fd, O_CLOEXEC);
  }

  void unmount() const {
    if (options_.unmount) return options_.unmount();
    ::umount2(options_.mountpoint.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW);
  }

  const SessionOptions options_;
  std::function<void()> ready_;
  // Destroyed last: until the threads of files_, notices_ and watch_ have ended they may speak to it.
  std::unique_ptr<struct fuse_session, Destroy> session_;
  const std::size_t descriptor_limit_ = descriptor_limit();
  DescriptorBudget budget_;
  OpenDirectories directories_;
  Reaper reaper_;
  std::unique_ptr<InodeTable> table_;
  UniqueFd connection_;  // its directory in the fuse control file system
  UniqueFd null_;  // for disconnect(), which may come when no descriptor is left
  std::atomic<bool> connected_{false};
  bool can_pass_through_ = false;
  bool uring_ = false;
  std::atomic<bool> root_is_known_{false};
  const Neighbours neighbours_;
  NoticeQueue notices_;
  std::unique_ptr<TreeWatch> watch_;  // null: not wanted, or not to be had; opens that are under way ask it to the end
  FairWorkers workers_{{}};
  OpenFiles files_;
  TreeOps ops_;
  InodeNumbers numbers_;
  MountMasks masks_;
  AbsentNames absent_;
  WakeLatency wake_;
  Lanes lanes_;
  std::unique_ptr<MountWatch> mount_watch_;
  FuseContext context_;
};

}  // namespace

Result<std::unique_ptr<FuseSession>> FuseSession::mount(SessionOptions options, BackingTree& tree, MeasureGate& gate,
                                                        ControlDir& control) {
  auto session = std::make_unique<Session>(std::move(options), tree, gate, control);
  if (auto status = session->start(tree); !status) return fail(status.error());
  return session;
}

}  // namespace imafs
