#include "fuse_ops.h"

#include <fcntl.h>
#include <linux/ioctl.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "fuse_control.h"
#include "fuse_directory.h"
#include "fuse_ioctl.h"
#include "fuse_reply.h"
#include "imafs/unreserved.h"

namespace imafs {
namespace {

// What is deleted gives its room back a little later: when the kernel has told that nobody has it any more, and the
// reaper has closed it. Who finds no room tries again then.
template <class Call>
auto with_room(FuseContext& context, Call&& call) {
  constexpr std::chrono::milliseconds kKernelTells{5};
  auto result = call();
  for (const auto wait : {std::chrono::milliseconds(0), kKernelTells}) {
    if (result || (result.error().code != ENOSPC && result.error().code != EDQUOT)) break;
    std::this_thread::sleep_for(wait);
    context.reaper.settle();
    result = call();
  }
  return result;
}

// ---- names and attributes ----

void do_init(void* data, struct fuse_conn_info* connection) { static_cast<FuseContext*>(data)->on_init(connection); }

void do_lookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
  FuseContext& context = context_of(request);
  if (is_control(parent, name)) return control_lookup(request, parent, name);
  const auto found = context.ops.look_up(parent, name, caller_of(request));
  if (!found && found.error().code == ENOENT) {
    struct fuse_entry_param entry {};
    entry.entry_timeout = timeout_of_absent(context, parent, name);
    answer(::fuse_reply_entry, request, &entry);
    return;
  }
  reply_entry(request, parent, found);
}

void do_forget(fuse_req_t request, fuse_ino_t node, uint64_t count) {
  FuseContext& context = context_of(request);
  if (!ControlDir::owns(node) && context.table.forget(node, count)) context.files.forget(node);
  answer(::fuse_reply_none, request);
}

void do_forget_multi(fuse_req_t request, size_t count, struct fuse_forget_data* forgets) {
  FuseContext& context = context_of(request);
  for (const auto& one : std::span(forgets, count)) {
    if (!ControlDir::owns(one.ino) && context.table.forget(one.ino, one.nlookup)) context.files.forget(one.ino);
  }
  answer(::fuse_reply_none, request);
}

void do_getattr(fuse_req_t request, fuse_ino_t node, struct fuse_file_info*) {
  if (ControlDir::owns(node)) return control_getattr(request, node);
  reply_attr(request, node, context_of(request).ops.get_attr(node));
}

void do_statx(fuse_req_t request, fuse_ino_t node, int flags, int mask, struct fuse_file_info*) {
  if (ControlDir::owns(node)) return control_statx(request, node);
  FuseContext& context = context_of(request);
  struct statx attr {};
  if (auto status = context.ops.get_statx(node, flags, static_cast<unsigned>(mask), attr); !status) {
    return reply(request, status);
  }
  const dev_t device = makedev(attr.stx_dev_major, attr.stx_dev_minor);
  const double timeout = timeout_of_attributes(context, node, device, attr.stx_ino);
  attr.stx_ino = context.numbers.shown(device, attr.stx_ino);
  struct stat told {};
  told.st_mode = attr.stx_mode;
  told.st_uid = attr.stx_uid;
  told.st_gid = attr.stx_gid;
  told.st_ctim = {attr.stx_ctime.tv_sec, attr.stx_ctime.tv_nsec};
  if ((attr.stx_mask & STATX_BASIC_STATS) == STATX_BASIC_STATS) context.table.did_tell(node, told);
  mode_t mode = attr.stx_mode;
  dev_t node_device = makedev(attr.stx_rdev_major, attr.stx_rdev_minor);
  context.masks.hide(node, mode, node_device);
  attr.stx_mode = static_cast<std::uint16_t>(mode);
  attr.stx_rdev_major = major(node_device);
  attr.stx_rdev_minor = minor(node_device);
  answer(::fuse_reply_statx, request, 0, &attr, timeout);
}

void do_setattr(fuse_req_t request, fuse_ino_t node, struct stat* attr, int what, struct fuse_file_info* file) {
  if (ControlDir::owns(node)) return control_setattr(request, node, what);
  TreeOps::AttrChange change;
  const struct timespec now {0, UTIME_NOW};
  if ((what & FUSE_SET_ATTR_MODE) != 0) change.mode = attr->st_mode;
  if ((what & FUSE_SET_ATTR_UID) != 0) change.uid = attr->st_uid;
  if ((what & FUSE_SET_ATTR_GID) != 0) change.gid = attr->st_gid;
  if ((what & FUSE_SET_ATTR_SIZE) != 0) change.size = attr->st_size;
  if ((what & FUSE_SET_ATTR_ATIME) != 0) change.atime = attr->st_atim;
  if ((what & FUSE_SET_ATTR_MTIME) != 0) change.mtime = attr->st_mtim;
  if ((what & FUSE_SET_ATTR_ATIME_NOW) != 0) change.atime = now;
  if ((what & FUSE_SET_ATTR_MTIME_NOW) != 0) change.mtime = now;
  const Caller caller = caller_of(request);
  // Of a request to clear setuid and setgid libfuse 3.18 hands on what else it asks for: nothing, or the size.
  constexpr int kill = FUSE_SET_ATTR_KILL_SUID | FUSE_SET_ATTR_KILL_SGID;
  change.kill_suidgid = (what & kill) != 0 || ((what & FUSE_SET_ATTR_SIZE) != 0 && caller.uid != 0);
  change.is_empty = what == 0;
  if (file) change.handle = file->fh;
  FuseContext& context = context_of(request);
  auto changed = context.ops.set_attr(node, change, caller);
  tell_twins(context, node);
  if (changed || changed.error().code != EWOULDBLOCK) return reply_attr(request, node, std::move(changed));
  // A lease of somebody else, who may take a minute to give it back.
  const auto owned = std::make_shared<OwnedRequest>(request);
  context.workers.post(caller.uid, [&context, owned, request, node, change, caller] {
    owned->answer_by([&] {
      constexpr std::chrono::milliseconds kAskAgain{10};
      auto later = context.ops.set_attr(node, change, caller);
      tell_twins(context, node);
      while (!later && later.error().code == EWOULDBLOCK) {
        if (context.files.is_stopping() || is_killed(request)) return refuse(request, EINTR);
        std::this_thread::sleep_for(kAskAgain);
        later = context.ops.set_attr(node, change, caller);
      }
      reply_attr(request, node, std::move(later));
    });
  });
}

void do_readlink(fuse_req_t request, fuse_ino_t node) {
  // Following a link and reading it are one request.
  if (context_of(request).masks.forbids_following(node)) return refuse(request, ELOOP);
  const auto target = context_of(request).ops.read_link(node);
  if (!target) return reply_error(request, target.error());
  answer(::fuse_reply_readlink, request, target->c_str());
}

void do_mknod(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode, dev_t device) {
  if (is_control(parent, name)) return control_make(request, parent, name, mode);
  FuseContext& context = context_of(request);
  reply_entry(request, parent, with_room(context, [&] { return context.ops.make_node(parent, name, mode, device, caller_of(request)); }));
  tell_twins(context, parent, name);
}

void do_mkdir(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode) {
  if (is_control(parent, name)) return control_make(request, parent, name, S_IFDIR | mode);
  FuseContext& context = context_of(request);
  reply_entry(request, parent, with_room(context, [&] { return context.ops.make_directory(parent, name, mode, caller_of(request)); }));
  tell_twins(context, parent, name);
}

void do_symlink(fuse_req_t request, const char* target, fuse_ino_t parent, const char* name) {
  if (is_control(parent, name)) return refuse(request, EPERM);
  FuseContext& context = context_of(request);
  reply_entry(request, parent, with_room(context, [&] { return context.ops.make_symlink(parent, name, target, caller_of(request)); }));
  tell_twins(context, parent, name);
}

void do_link(fuse_req_t request, fuse_ino_t node, fuse_ino_t parent, const char* name) {
  if (ControlDir::owns(node) || is_control(parent, name)) return refuse(request, EPERM);
  FuseContext& context = context_of(request);
  // The kernel still believes the old name; from now on each name must be looked up, so that an open
  // is logged under the one it used.
  const auto old_name = context.table.name_of(node);
  const auto found = with_room(context, [&] { return context.ops.make_link(node, parent, name, caller_of(request)); });
  reply_entry(request, parent, found);
  tell_twins(context, parent, name);
  tell_twins(context, node);
  if (found && old_name) context.expire_name(old_name->first, old_name->second);
}

void do_unlink(fuse_req_t request, fuse_ino_t parent, const char* name) {
  if (is_control(parent, name)) return refuse(request, EPERM);
  FuseContext& context = context_of(request);
  const auto status = context.ops.unlink(parent, name, caller_of(request));
  tell_twins(context, parent, name);
  reply(request, status);
}

void do_rmdir(fuse_req_t request, fuse_ino_t parent, const char* name) {
  if (is_control(parent, name)) return refuse(request, EPERM);
  FuseContext& context = context_of(request);
  const auto status = context.ops.remove_directory(parent, name, caller_of(request));
  tell_twins(context, parent, name);
  reply(request, status);
}

void do_rename(fuse_req_t request, fuse_ino_t parent, const char* name, fuse_ino_t new_parent, const char* new_name,
               unsigned int flags) {
  if (is_control(parent, name) || is_control(new_parent, new_name)) return refuse(request, EPERM);
  FuseContext& context = context_of(request);
  const auto status = with_room(context, [&] { return context.ops.rename(parent, name, new_parent, new_name, flags, caller_of(request)); });
  tell_twins(context, parent, name);
  tell_twins(context, new_parent, new_name);
  reply(request, status);
}

void do_statfs(fuse_req_t request, fuse_ino_t node) {
  FuseContext& context = context_of(request);
  context.reaper.settle();  // what is deleted is counted as free
  const auto numbers = context.ops.statistics(ControlDir::owns(node) ? kRootNode : node);
  if (!numbers) return reply_error(request, numbers.error());
  answer(::fuse_reply_statfs, request, &*numbers);
}

// ---- extended attributes ----

constexpr const char* kCapabilityName = "security.capability";
constexpr int kExecFlag = 0x20;  // __FMODE_EXEC: of execve's open

void do_getxattr(fuse_req_t request, fuse_ino_t node, const char* name, size_t size) {
  if (ControlDir::owns(node)) return refuse(request, ENODATA);
  if (std::strcmp(name, kCapabilityName) == 0 && context_of(request).masks.hides_capabilities(node)) return refuse(request, ENODATA);
  reply_sized(request, size, [&](std::span<char> out) { return context_of(request).ops.get_xattr(node, name, out, caller_of(request)); });
}

void do_listxattr(fuse_req_t request, fuse_ino_t node, size_t size) {
  if (ControlDir::owns(node)) {
    reply_sized(request, size, [](std::span<char>) { return Result<std::size_t>(0); });
    return;
  }
  reply_sized(request, size, [&](std::span<char> out) { return context_of(request).ops.list_xattrs(node, out, caller_of(request)); });
}

void do_setxattr(fuse_req_t request, fuse_ino_t node, const char* name, const char* value, size_t size, int flags) {
  if (ControlDir::owns(node)) return refuse(request, EOPNOTSUPP);
  FuseContext& context = context_of(request);
  reply(request, with_room(context, [&] { return context.ops.set_xattr(node, name, {value, size}, flags, caller_of(request)); }));
}

void do_removexattr(fuse_req_t request, fuse_ino_t node, const char* name) {
  if (ControlDir::owns(node)) return refuse(request, EOPNOTSUPP);
  reply(request, context_of(request).ops.remove_xattr(node, name, caller_of(request)));
}

// ---- opening ----

struct PendingOpen {
  fuse_req_t request;
  struct fuse_file_info file;
  struct fuse_entry_param entry;
  bool creates;
};

// The only answer to an open: called on whichever thread ended the measuring.
void reply_open(FuseContext& context, PendingOpen& open, const Result<OpenFiles::Opened>& opened) {
  if (!opened) {
    // The kernel holds no reference on what it is not told about.
    if (open.creates && context.table.forget(open.entry.ino, 1)) context.files.forget(open.entry.ino);
    return reply_error(open.request, opened.error());
  }
  open.file.fh = opened->handle;
  open.file.backing_id = opened->backing_id;
  open.file.keep_cache = opened->backing_id == 0 && opened->keep_cache;
  // In passthrough mode nothing is left to flush, and a close need not wait for us.
  open.file.noflush = opened->backing_id != 0 || (open.file.flags & O_ACCMODE) == O_RDONLY;
  const int sent = open.creates ? answer(::fuse_reply_create, open.request, &open.entry, &open.file)
                                : answer(::fuse_reply_open, open.request, &open.file);
  if (sent == 0) return;
  // The opener is gone: nobody will release the handle.
  context.files.release(opened->handle);
  if (open.creates && context.table.forget(open.entry.ino, 1)) context.files.forget(open.entry.ino);
}

void start_open(fuse_req_t request, NodeId node, const struct fuse_file_info& file, UniqueFd created,
                const struct fuse_entry_param* entry, bool unnamed = false) {
  FuseContext& context = context_of(request);
  OpenFiles::Request wanted;
  wanted.node = node;
  wanted.flags = file.flags;
  wanted.who = requester_of(request);
  wanted.name = context.table.take_lookup(node, wanted.who.pid);
  wanted.kill_suidgid = file.kill_suidgid != 0;
  wanted.created = std::move(created);
  wanted.unnamed = unnamed;
  wanted.is_killed = [request] { return is_killed(request); };
  PendingOpen pending{request, file, entry ? *entry : fuse_entry_param{}, entry != nullptr};
  const auto owned = std::make_shared<OwnedRequest>(request);
  context.files.open(std::move(wanted), [&context, owned, pending](const Result<OpenFiles::Opened>& opened) mutable {
    owned->answer_by([&] { reply_open(context, pending, opened); });
  });
}

void do_open(fuse_req_t request, fuse_ino_t node, struct fuse_file_info* file) {
  if (ControlDir::owns(node)) return control_open(request, node, file);
  if ((file->flags & kExecFlag) != 0 && context_of(request).masks.forbids_exec(node)) return refuse(request, EACCES);
  start_open(request, node, *file, UniqueFd(), nullptr);
}

void do_create(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode, struct fuse_file_info* file) {
  if (is_control(parent, name)) return control_create(request, parent, name, file);
  FuseContext& context = context_of(request);
  const Caller caller = caller_of(request);
  auto made = with_room(context, [&] { return context.ops.create(parent, name, file->flags, mode, caller); });
  // The file was made outside the mount since the kernel looked. After FUSE_CREATE the kernel asks nobody whether the caller
  // may open what it gets; told ESTALE it looks the name up again and judges an ordinary open.
  if (!made && made.error().code == EEXIST && (file->flags & O_EXCL) == 0) return refuse(request, ESTALE);
  if (!made) return reply_error(request, made.error());
  tell_twins(context, parent, name);
  const auto entry = entry_of(context, parent, made->found);
  start_open(request, made->found.id, *file, std::move(made->fd), &entry);
}

void do_tmpfile(fuse_req_t request, fuse_ino_t parent, mode_t mode, struct fuse_file_info* file) {
  if (ControlDir::owns(parent)) return refuse(request, EOPNOTSUPP);
  FuseContext& context = context_of(request);
  auto made = with_room(context, [&] { return context.ops.create_unnamed(parent, file->flags, mode, caller_of(request)); });
  if (!made) return reply_error(request, made.error());
  const auto entry = entry_of(context, parent, made->found);
  start_open(request, made->found.id, *file, std::move(made->fd), &entry, true);
}

void do_release(fuse_req_t request, fuse_ino_t node, struct fuse_file_info* file) {
  if (ControlDir::owns(node)) return control_release(request, file);
  context_of(request).files.release(file->fh);
  answer(::fuse_reply_err, request, 0);
}

void do_flush(fuse_req_t request, fuse_ino_t node, struct fuse_file_info* file) {
  if (ControlDir::owns(node)) return control_flush(request, file);
  // Data goes straight to the backing file; closing a copy asks its file system for pending errors.
  const auto writable = context_of(request).files.writable(file->fh);
  int result = 0;
  if (writable && writable->fd >= 0) {
    const int copy = ::fcntl(writable->fd, F_DUPFD_CLOEXEC, 0);
    result = copy >= 0 && ::close(copy) != 0 ? errno : 0;
  }
  answer(::fuse_reply_err, request, result);
}

// ---- data (without passthrough) and what passthrough leaves to us ----

Result<std::size_t> count_of(ssize_t result) {
  if (result < 0) return fail(errno_error("file"));
  return static_cast<std::size_t>(result);
}

void do_read(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset, struct fuse_file_info* file) {
  if (ControlDir::owns(node)) return control_read(request, size, offset, file);
  struct fuse_bufvec data = FUSE_BUFVEC_INIT(size);
  data.buf[0].flags = static_cast<fuse_buf_flags>(FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK);
  data.buf[0].fd = OpenFiles::readable(file->fh);
  data.buf[0].pos = offset;
  answer(::fuse_reply_data, request, &data, FUSE_BUF_NO_SPLICE);
}

void do_write(fuse_req_t request, fuse_ino_t node, const char* bytes, size_t size, off_t offset,
              struct fuse_file_info* file) {
  if (ControlDir::owns(node)) return control_write(request, {bytes, size}, offset, file);
  FuseContext& context = context_of(request);
  const auto writable = context.files.writable(file->fh);
  if (!writable) return reply_error(request, writable.error());
  const struct iovec part {const_cast<char*>(bytes), size};
  if (file->kill_suidgid != 0) {
    if (auto status = kill_privileges(writable->fd, caller_of(request)); !status) return reply_error(request, status.error());
  }
  // The flags of now, not those of the open; and a page that was mapped goes where it belongs.
  const bool appends = (file->flags & O_APPEND) != 0 && file->writepage == 0;
  // A page that was mapped comes from whoever happens to write it back.
  const Unreserved unreserved(file->writepage != 0 ? Unreserved::kNobody : caller_of(request).uid);
  const auto written = with_room(context, [&] {
    return count_of(::pwritev2(writable->fd, &part, 1, offset, appends ? RWF_APPEND : 0));
  });
  if (!written) return reply_error(request, written.error());
  answer(::fuse_reply_write, request, *written);
}

void do_fsync(fuse_req_t request, fuse_ino_t node, int only_data, struct fuse_file_info* file) {
  if (ControlDir::owns(node)) return refuse(request, 0);
  reply(request, context_of(request).files.sync(file->fh, only_data != 0));
}

void do_fallocate(fuse_req_t request, fuse_ino_t node, int mode, off_t offset, off_t size, struct fuse_file_info* file) {
  if (ControlDir::owns(node)) return refuse(request, EOPNOTSUPP);
  FuseContext& context = context_of(request);
  const auto writable = context.files.writable(file->fh);
  if (!writable) return reply_error(request, writable.error());
  const Unreserved unreserved(caller_of(request).uid);
  const auto done = with_room(context, [&] { return count_of(::fallocate(writable->fd, mode, offset, size)); });
  refuse(request, done ? 0 : done.error().code);
}

void do_lseek(fuse_req_t request, fuse_ino_t node, off_t offset, int whence, struct fuse_file_info* file) {
  if (ControlDir::owns(node)) return refuse(request, EINVAL);
  const off_t found = ::lseek(OpenFiles::readable(file->fh), offset, whence);
  if (found < 0) return refuse(request, errno);
  answer(::fuse_reply_lseek, request, found);
}

void do_copy_file_range(fuse_req_t request, fuse_ino_t from, off_t from_offset, struct fuse_file_info* from_file,
                        fuse_ino_t to, off_t to_offset, struct fuse_file_info* to_file, size_t size, int flags) {
  if (ControlDir::owns(from) || ControlDir::owns(to)) return refuse(request, EXDEV);
  FuseContext& context = context_of(request);
  const auto writable = context.files.writable(to_file->fh);
  if (!writable) return reply_error(request, writable.error());
  const Unreserved unreserved(caller_of(request).uid);
  const auto copied = with_room(context, [&] {
    return count_of(::copy_file_range(OpenFiles::readable(from_file->fh), &from_offset, writable->fd, &to_offset, size,
                                      static_cast<unsigned>(flags)));
  });
  if (!copied) return reply_error(request, copied.error());
  answer(::fuse_reply_write, request, *copied);
}

void do_poll(fuse_req_t request, fuse_ino_t node, struct fuse_file_info* file, struct fuse_pollhandle* handle) {
  if (ControlDir::owns(node)) return control_poll(request, file, handle);
  if (handle) fuse_pollhandle_destroy(handle);
  refuse(request, ENOSYS);  // regular files are always ready; the kernel asks no more
}

// ---- lanes ----

enum class Does { kLook, kChange };

// What a handler gets is libfuse's only until it returns: a request that queues takes a copy along.
template <class T>
struct Kept {
  explicit Kept(T given) : value(given) {}
  T get() { return value; }
  T value;
};
template <>
struct Kept<const char*> {
  explicit Kept(const char* given) : value(given) {}
  const char* get() { return value.c_str(); }
  std::string value;
};
template <class Pointed>
struct KeptPointer {
  explicit KeptPointer(Pointed* given) {
    if (given) value = *given;
  }
  Pointed* get() { return value ? &*value : nullptr; }
  std::optional<Pointed> value;
};
template <>
struct Kept<struct fuse_file_info*> : KeptPointer<struct fuse_file_info> {
  using KeptPointer::KeptPointer;
};
template <>
struct Kept<struct stat*> : KeptPointer<struct stat> {
  using KeptPointer::KeptPointer;
};

// A place in a lane, which is given back whatever happens.
class LanePlace {
 public:
  LanePlace(Lanes& lanes, std::size_t lane, uid_t user) : lanes_(lanes), lane_(lane), user_(user) {}
  ~LanePlace() { lanes_.leave(lane_, user_); }
  LanePlace(const LanePlace&) = delete;
  LanePlace& operator=(const LanePlace&) = delete;

 private:
  Lanes& lanes_;
  std::size_t lane_;
  uid_t user_;
};

// Calls `now` with a place in the node's lane, or queues what `later` makes. No exception goes on to libfuse, nor to whoever
// comes to a queued request.
template <class Now, class Later>
void in_lane(fuse_req_t request, NodeId node, Does does, Now&& now, Later&& later) noexcept {
  FuseContext& context = context_of(request);
  context.wake.count_request();
  if (ControlDir::owns(node)) return answer_by(request, now);
  const std::size_t lane = mount_of_node(node) * std::size_t{2} + (does == Does::kChange ? 1 : 0);
  const uid_t user = fuse_req_ctx(request)->uid;
  bool is_queued = false, has_place = false;
  answer_by(request, [&] {
    has_place = context.lanes.enter(lane, user);
    if (has_place) return;
    is_queued = context.lanes.queue(lane, user, [request, job = later()] { answer_by(request, job); });
    has_place = !is_queued;
  });
  if (!has_place) return;
  const LanePlace place(context.lanes, lane, user);
  answer_by(request, now);
}

// A handler, with its request counted. No exception goes on to libfuse.
template <auto handler>
struct Counted;
template <class... Arguments, void (*handler)(fuse_req_t, Arguments...)>
struct Counted<handler> {
  static void handle(fuse_req_t request, Arguments... arguments) noexcept {
    context_of(request).wake.count_request();
    answer_by(request, [&] { handler(request, arguments...); });
  }
};
template <auto handler>
constexpr auto counted = &Counted<handler>::handle;

// The same in a lane.
template <auto handler, Does does>
struct Laned;
template <class... Arguments, void (*handler)(fuse_req_t, fuse_ino_t, Arguments...), Does does>
struct Laned<handler, does> {
  static void handle(fuse_req_t request, fuse_ino_t node, Arguments... arguments) {
    in_lane(request, node, does, [&] { handler(request, node, arguments...); },
            [&]() -> std::function<void()> {
              auto kept = std::make_shared<std::tuple<Kept<Arguments>...>>(Kept<Arguments>(arguments)...);
              return [request, node, kept] { std::apply([&](auto&... one) { handler(request, node, one.get()...); }, *kept); };
            });
  }
};
template <auto handler>
constexpr auto looks = &Laned<handler, Does::kLook>::handle;
template <auto handler>
constexpr auto changes = &Laned<handler, Does::kChange>::handle;

// Those whose arguments say more.
void laned_open(fuse_req_t request, fuse_ino_t node, struct fuse_file_info* file) {
  const bool writes = (file->flags & O_ACCMODE) != O_RDONLY || (file->flags & O_TRUNC) != 0;
  in_lane(request, node, writes ? Does::kChange : Does::kLook, [&] { do_open(request, node, file); },
          [&]() -> std::function<void()> { return [request, node, own = *file]() mutable { do_open(request, node, &own); }; });
}

void laned_write(fuse_req_t request, fuse_ino_t node, const char* bytes, size_t size, off_t offset, struct fuse_file_info* file) {
  in_lane(request, node, Does::kChange, [&] { do_write(request, node, bytes, size, offset, file); },
          [&]() -> std::function<void()> {
            return [request, node, data = std::string(bytes, size), offset, own = *file]() mutable {
              do_write(request, node, data.data(), data.size(), offset, &own);
            };
          });
}

void laned_setxattr(fuse_req_t request, fuse_ino_t node, const char* name, const char* value, size_t size, int flags) {
  in_lane(request, node, Does::kChange, [&] { do_setxattr(request, node, name, value, size, flags); },
          [&]() -> std::function<void()> {
            return [request, node, key = std::string(name), data = std::string(value, size), flags] {
              do_setxattr(request, node, key.c_str(), data.data(), data.size(), flags);
            };
          });
}

void laned_ioctl(fuse_req_t request, fuse_ino_t node, unsigned int command, void* argument, struct fuse_file_info* file, unsigned flags,
                 const void* in, size_t in_size, size_t out_size) {
  // What hands something over may change something; terminals are asked for of every file.
  const Does does = (_IOC_DIR(command) & _IOC_WRITE) != 0 ? Does::kChange : Does::kLook;
  in_lane(request, node, does, [&] { do_ioctl(request, node, command, argument, file, flags, in, in_size, out_size); },
          [&]() -> std::function<void()> {
            return [=, data = std::string(static_cast<const char*>(in), in ? in_size : 0), own = *file]() mutable {
              do_ioctl(request, node, command, argument, &own, flags, in ? data.data() : nullptr, in_size, out_size);
            };
          });
}

void laned_symlink(fuse_req_t request, const char* target, fuse_ino_t parent, const char* name) {
  in_lane(request, parent, Does::kChange, [&] { do_symlink(request, target, parent, name); },
          [&]() -> std::function<void()> {
            return [request, parent, to = std::string(target), key = std::string(name)] { do_symlink(request, to.c_str(), parent, key.c_str()); };
          });
}

// In the lane of what is written to.
void laned_copy_file_range(fuse_req_t request, fuse_ino_t from, off_t from_offset, struct fuse_file_info* from_file, fuse_ino_t to,
                           off_t to_offset, struct fuse_file_info* to_file, size_t size, int flags) {
  in_lane(request, to, Does::kChange,
          [&] { do_copy_file_range(request, from, from_offset, from_file, to, to_offset, to_file, size, flags); },
          [&]() -> std::function<void()> {
            return [=, source = *from_file, target = *to_file]() mutable {
              do_copy_file_range(request, from, from_offset, &source, to, to_offset, &target, size, flags);
            };
          });
}

struct fuse_lowlevel_ops make_operations() {
  struct fuse_lowlevel_ops ops {};
  ops.init = do_init;
  ops.lookup = looks<do_lookup>;
  ops.forget = counted<do_forget>;
  ops.forget_multi = counted<do_forget_multi>;
  ops.getattr = looks<do_getattr>;
  ops.statx = looks<do_statx>;
  ops.setattr = changes<do_setattr>;
  ops.readlink = looks<do_readlink>;
  ops.mknod = changes<do_mknod>;
  ops.mkdir = changes<do_mkdir>;
  ops.symlink = laned_symlink;
  ops.link = changes<do_link>;
  ops.unlink = changes<do_unlink>;
  ops.rmdir = changes<do_rmdir>;
  ops.rename = changes<do_rename>;
  ops.statfs = looks<do_statfs>;
  ops.getxattr = looks<do_getxattr>;
  ops.listxattr = looks<do_listxattr>;
  ops.setxattr = laned_setxattr;
  ops.removexattr = changes<do_removexattr>;
  ops.open = laned_open;
  ops.create = changes<do_create>;
  ops.tmpfile = changes<do_tmpfile>;
  ops.release = counted<do_release>;
  ops.flush = changes<do_flush>;
  ops.read = looks<do_read>;
  ops.write = laned_write;
  ops.fsync = changes<do_fsync>;
  ops.fallocate = changes<do_fallocate>;
  ops.lseek = looks<do_lseek>;
  ops.copy_file_range = laned_copy_file_range;
  ops.ioctl = laned_ioctl;
  ops.poll = counted<do_poll>;
  ops.opendir = looks<do_opendir>;
  ops.releasedir = counted<do_releasedir>;
  ops.fsyncdir = changes<do_fsyncdir>;
  ops.readdir = looks<do_readdir>;
  ops.readdirplus = looks<do_readdirplus>;
  // No getlk, setlk, flock: the kernel keeps the locks of the mount, where they cost nothing and cannot
  // stay behind on our own descriptors.
  return ops;
}

}  // namespace

const struct fuse_lowlevel_ops& fuse_operations() {
  static const struct fuse_lowlevel_ops ops = make_operations();
  return ops;
}

}  // namespace imafs
