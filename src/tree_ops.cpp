#include "imafs/tree_ops.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "imafs/file_version.h"
#include "imafs/posix_file.h"

namespace imafs {
namespace {

constexpr int kAccessFlags = O_ACCMODE;
constexpr std::uint32_t kKeep = ~std::uint32_t{0};  // chown: as it is

Status done(int result, const char* doing) {
  if (result != 0) return fail(errno_error(doing));
  return {};
}

// What a change by `caller` takes from the mode of a file that is no directory.
mode_t bits_to_lose(const struct stat& attr, const Caller& caller) {
  mode_t bits = attr.st_mode & S_ISUID;
  if ((attr.st_mode & S_ISGID) == 0) return bits;
  // Without group execution setgid means mandatory locking: it stays for root and for members of the group.
  if ((attr.st_mode & S_IXGRP) != 0 || (caller.uid != 0 && !is_in_group(caller, attr.st_gid))) bits |= S_ISGID;
  return bits;
}

// Of any descriptor, also of O_PATH.
int change_mode(int fd, mode_t mode) {
  constexpr long kFchmodat2 = 452;  // since Linux 6.6; <sys/syscall.h> of Debian 12 does not have it
  if (::syscall(kFchmodat2, fd, "", mode, AT_EMPTY_PATH) == 0) return 0;
  return ::chmod(ProcPath(fd).get(), mode);
}

constexpr const char* kNotTaken = "the caller's identity cannot be taken";

ActAs::Groups groups_for(mode_t mode) { return (mode & S_ISGID) != 0 ? ActAs::Groups::kAlways : ActAs::Groups::kIfTheyMatter; }

// Of these the kernel asks a capability only, and nothing about the file: its judgement cannot be out of date.
std::unique_ptr<const ActAs> identity_for_xattr(int fd, std::string_view name, const Caller& caller) {
  if (name.starts_with("trusted.")) return nullptr;
  return std::make_unique<const ActAs>(caller, std::initializer_list<ActAs::Object>{{fd}}, ActAs::Groups::kAlways);
}

}  // namespace

Status kill_privileges(int fd, const Caller& writer) {
  struct stat attr {};
  if (::fstat(fd, &attr) != 0) return fail(errno_error("stat"));
  const mode_t kill = bits_to_lose(attr, writer);
  if (kill != 0 && change_mode(fd, attr.st_mode & 07777 & ~kill) != 0) return fail(errno_error("chmod"));
  const ProcPath path(fd);
  if (::removexattr(path.get(), "security.capability") == 0) return {};
  const Error error = errno_error("removexattr");
  // Without the privilege the answer is EPERM, also where there is none.
  return ::getxattr(path.get(), "security.capability", nullptr, 0) < 0 ? Status() : Status(fail(error));
}

Result<TreeOps::Target> TreeOps::target_of(NodeId node) {
  if (auto open = files_.borrow(node)) return Target(std::move(open));
  auto fd = table_.path_fd(node);
  if (!fd) return fail(fd.error());
  return Target(std::move(*fd));
}

Result<struct stat> TreeOps::get_attr(NodeId node) {
  if (const auto open = files_.borrow(node)) return stat_of(open.fd());
  return table_.attributes_of(node);
}

Status TreeOps::get_statx(NodeId node, int flags, unsigned mask, struct statx& out) {
  auto fd = table_.path_fd(node);
  if (!fd) return fail(fd.error());
  constexpr int sync_flags = AT_STATX_FORCE_SYNC | AT_STATX_DONT_SYNC;
  return done(::statx((*fd)->get(), "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | (flags & sync_flags), mask, &out), "statx");
}

Status TreeOps::resize(NodeId node, int fd, off_t size, std::uint64_t handle, const Caller& caller) {
  // Our own descriptor would wait for our own lease, and what was measured is no more.
  const bool watched = files_.will_truncate(node);
  const auto truncate = [&]() -> Status {
    UniqueFd own;
    int writable = -1;
    OpenFiles::Writable lent;
    if (handle != 0) {
      auto found = files_.writable(handle);
      if (!found) return fail(found.error());
      lent = std::move(*found);
      writable = lent.fd;
    }
    const ActAs identity(caller, {{fd}}, ActAs::Groups::kAlways);  // setuid and setgid go by who truncates, too
    if (!identity) return fail(EPERM, kNotTaken);
    if (writable < 0) {
      own.reset(::open(ProcPath(fd).get(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
      if (!own) return fail(errno_error("truncate"));
      writable = own.get();
    }
    return done(::ftruncate(writable, size), "truncate");
  };
  const Status status = truncate();  // its descriptor is closed, or it would be somebody who writes
  if (watched) files_.did_truncate(node);
  return status;
}

Status TreeOps::change_owner(int fd, uid_t uid, gid_t gid, const Caller& caller) {
  const ActAs identity(caller, {{fd}}, ActAs::Groups::kAlways);
  if (!identity) return fail(EPERM, kNotTaken);
  return done(::fchownat(fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW), "chown");
}

Status TreeOps::change_nothing(NodeId node, int fd, const Caller& caller) {
  struct stat attr {};
  if (::fstatat(fd, "", &attr, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) != 0) return fail(errno_error("stat"));
  if (S_ISREG(attr.st_mode) && files_.is_written(node)) {
    // Writes of who has CAP_FSETID take file capabilities away, but neither setuid nor setgid.
    return has_capability(caller, CAP_FSETID) ? Status() : kill_privileges(fd, caller);
  }
  return change_owner(fd, kKeep, kKeep, caller);
}

Result<struct stat> TreeOps::set_attr(NodeId node, const AttrChange& change, const Caller& caller) {
  const auto target = target_of(node);
  if (!target) return fail(target.error());
  const int fd = target->fd();
  if (change.size) {
    if (auto status = resize(node, fd, *change.size, change.handle, caller); !status) return fail(status.error());
  }
  if (change.uid || change.gid) {
    auto status = change_owner(fd, change.uid.value_or(kKeep), change.gid.value_or(kKeep), caller);
    if (!status) return fail(status.error());
  } else if (change.is_empty) {
    if (auto status = change_nothing(node, fd, caller); !status) return fail(status.error());
  } else if (change.kill_suidgid) {
    if (auto status = kill_privileges(fd, caller); !status) return fail(status.error());
  }
  if (change.mode || change.atime || change.mtime) {
    const ActAs identity(caller, {{fd}}, groups_for(change.mode.value_or(0)));
    if (!identity) return fail(EPERM, kNotTaken);
    if (change.mode && change_mode(fd, *change.mode & 07777) != 0) return fail(errno_error("chmod"));
    if (change.atime || change.mtime) {
      const struct timespec omit {0, UTIME_OMIT};
      const std::array<struct timespec, 2> times{change.atime.value_or(omit), change.mtime.value_or(omit)};
      if (::utimensat(fd, "", times.data(), AT_EMPTY_PATH) != 0) return fail(errno_error("utimes"));
    }
  }
  if (change.mtime) files_.did_change_attributes(node, true);
  return stat_of(fd);
}

Result<std::string> TreeOps::read_link(NodeId node) {
  auto fd = table_.path_fd(node);
  if (!fd) return fail(fd.error());
  std::string target(PATH_MAX, '\0');
  const ssize_t size = ::readlinkat((*fd)->get(), "", target.data(), target.size());
  if (size < 0) return fail(errno_error("readlink"));
  target.resize(static_cast<std::size_t>(size));
  return target;
}

Result<TreeOps::Found> TreeOps::make_node(NodeId parent, const char* name, mode_t mode, dev_t device,
                                          const Caller& caller) {
  auto fd = table_.path_fd(parent);
  if (!fd) return fail(fd.error());
  {
    const ActAs identity(caller, {{(*fd)->get()}}, groups_for(mode));
    if (!identity) return fail(EPERM, kNotTaken);
    if (::mknodat((*fd)->get(), name, mode, device) != 0) return fail(errno_error("mknod"));
  }
  return table_.look_up(parent, name, caller.pid);
}

Result<TreeOps::Found> TreeOps::make_directory(NodeId parent, const char* name, mode_t mode, const Caller& caller) {
  auto fd = table_.path_fd(parent);
  if (!fd) return fail(fd.error());
  {
    const ActAs identity(caller, {{(*fd)->get()}}, groups_for(mode));
    if (!identity) return fail(EPERM, kNotTaken);
    if (::mkdirat((*fd)->get(), name, mode) != 0) return fail(errno_error("mkdir"));
  }
  return table_.look_up(parent, name, caller.pid);
}

Result<TreeOps::Found> TreeOps::make_symlink(NodeId parent, const char* name, const char* target,
                                             const Caller& caller) {
  auto fd = table_.path_fd(parent);
  if (!fd) return fail(fd.error());
  {
    const ActAs identity(caller, {{(*fd)->get()}});
    if (!identity) return fail(EPERM, kNotTaken);
    if (::symlinkat(target, (*fd)->get(), name) != 0) return fail(errno_error("symlink"));
  }
  return table_.look_up(parent, name, caller.pid);
}

Result<TreeOps::Found> TreeOps::make_link(NodeId node, NodeId parent, const char* name, const Caller& caller) {
  auto fd = table_.path_fd(node);
  if (!fd) return fail(fd.error());
  auto directory = table_.path_fd(parent);
  if (!directory) return fail(directory.error());
  int result = -1;
  {
    const ActAs identity(caller, {{(*fd)->get()}, {(*directory)->get()}});
    if (!identity) return fail(EPERM, kNotTaken);
    result = ::linkat((*fd)->get(), "", (*directory)->get(), name, AT_EMPTY_PATH);
    if (result != 0 && errno == ENOENT) {
      // Without the privilege for an empty path.
      result = ::linkat(AT_FDCWD, ProcPath((*fd)->get()).get(), (*directory)->get(), name, AT_SYMLINK_FOLLOW);
    }
  }
  if (result != 0) return fail(errno_error("link"));
  return table_.look_up(parent, name, InodeTable::kNobody);
}

Status TreeOps::unlink(NodeId parent, const char* name, const Caller& caller) {
  auto fd = table_.path_fd(parent);
  if (!fd) return fail(fd.error());
  auto pin = table_.will_unlink(parent, name, caller.uid);
  if (!pin) return fail(pin.error());
  const ActAs identity(caller, {{(*fd)->get()}, {(*fd)->get(), name}});
  if (!identity) return fail(EPERM, kNotTaken);
  auto status = done(::unlinkat((*fd)->get(), name, 0), "unlink");
  if (status) pin->keep();
  return status;
}

Status TreeOps::remove_directory(NodeId parent, const char* name, const Caller& caller) {
  auto fd = table_.path_fd(parent);
  if (!fd) return fail(fd.error());
  auto pin = table_.will_unlink(parent, name, caller.uid);
  if (!pin) return fail(pin.error());
  const ActAs identity(caller, {{(*fd)->get()}, {(*fd)->get(), name}});
  if (!identity) return fail(EPERM, kNotTaken);
  auto status = done(::unlinkat((*fd)->get(), name, AT_REMOVEDIR), "rmdir");
  if (status) pin->keep();
  return status;
}

Status TreeOps::rename(NodeId parent, const char* name, NodeId new_parent, const char* new_name, unsigned flags,
                       const Caller& caller) {
  auto from = table_.path_fd(parent);
  if (!from) return fail(from.error());
  auto to = table_.path_fd(new_parent);
  if (!to) return fail(to.error());
  const bool exchange = (flags & RENAME_EXCHANGE) != 0;
  auto pin = !exchange && (flags & RENAME_NOREPLACE) == 0 ? table_.will_unlink(new_parent, new_name, caller.uid) : Result<InodeTable::Pin>(InodeTable::Pin());
  if (!pin) return fail(pin.error());
  {
    const int source = (*from)->get(), target = (*to)->get();
    const ActAs identity(caller, {{source}, {target}, {source, name}, {target, new_name}});
    if (!identity) return fail(EPERM, kNotTaken);
    if (::renameat2((*from)->get(), name, (*to)->get(), new_name, flags) != 0) return fail(errno_error("rename"));
  }
  pin->keep();
  table_.did_rename(parent, name, new_parent, new_name, exchange);
  return {};
}

Result<TreeOps::Made> TreeOps::made(UniqueFd fd, NodeId parent, const char* name, const Caller& caller) {
  auto found = table_.adopt(fd.get(), parent, name, caller.pid);
  if (!found) return fail(found.error());
  return Made{*found, std::move(fd)};
}

Result<TreeOps::Made> TreeOps::create(NodeId parent, const char* name, int flags, mode_t mode, const Caller& caller) {
  auto directory = table_.path_fd(parent);
  if (!directory) return fail(directory.error());
  // A descriptor that cannot write is all that passthrough and leases want; without passthrough it is
  // the one that serves the data, and the file's mode may forbid a second open.
  const int access = passthrough_ || (flags & kAccessFlags) == O_RDONLY ? O_RDONLY : O_RDWR;
  UniqueFd fd;
  {
    const ActAs identity(caller, {{(*directory)->get()}}, groups_for(mode));
    if (!identity) return fail(EPERM, kNotTaken);
    fd.reset(::openat((*directory)->get(), name, access | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode));
  }
  if (!fd) return fail(errno_error("create"));
  if (access == O_RDONLY) ::fcntl(fd.get(), F_SETFL, O_NOATIME);  // measuring reads from it
  return made(std::move(fd), parent, name, caller);
}

Result<TreeOps::Made> TreeOps::create_unnamed(NodeId parent, int flags, mode_t mode, const Caller& caller) {
  auto directory = table_.path_fd(parent);
  if (!directory) return fail(directory.error());
  UniqueFd fd;
  {
    const ActAs identity(caller, {{(*directory)->get()}}, groups_for(mode));
    if (!identity) return fail(EPERM, kNotTaken);
    fd.reset(::openat((*directory)->get(), ".", O_RDWR | O_TMPFILE | (flags & O_EXCL) | O_CLOEXEC, mode));
  }
  if (!fd) return fail(errno_error("create"));
  auto result = made(std::move(fd), parent, "", caller);
  if (result && passthrough_) {
    auto reader = table_.open(result->found.id, O_RDONLY | O_NOATIME | O_CLOEXEC);
    if (!reader) return fail(reader.error());
    result->fd = std::move(*reader);
  }
  return result;
}

Result<std::size_t> TreeOps::get_xattr(NodeId node, const char* name, std::span<char> out, const Caller& caller) {
  const auto target = target_of(node);
  if (!target) return fail(target.error());
  const int fd = target->fd();
  // Who may read the others does not depend on the file.
  std::optional<ActAs> identity;
  if (std::string_view(name).starts_with("user.")) identity.emplace(caller, std::initializer_list<ActAs::Object>{{fd}});
  if (identity && !*identity) return fail(EPERM, kNotTaken);
  const ssize_t size = target->is_open() ? ::fgetxattr(fd, name, out.data(), out.size())
                                         : ::getxattr(ProcPath(fd).get(), name, out.data(), out.size());
  if (size < 0) return fail(errno_error("getxattr"));
  return static_cast<std::size_t>(size);
}

Result<std::size_t> TreeOps::list_xattrs(NodeId node, std::span<char> out, const Caller& caller) {
  auto fd = table_.path_fd(node);
  if (!fd) return fail(fd.error());
  std::string names(XATTR_LIST_MAX, '\0');
  const ssize_t size = ::listxattr(ProcPath((*fd)->get()).get(), names.data(), names.size());
  if (size < 0) return fail(errno_error("listxattr"));
  names.resize(static_cast<std::size_t>(size));
  // The kernel lists these for itself to those who may read them.
  if (names.find("trusted.") != std::string::npos && !has_capability(caller, CAP_SYS_ADMIN)) {
    std::string shown;
    for (std::size_t at = 0; at < names.size(); at += std::strlen(names.c_str() + at) + 1) {
      const std::string_view name = names.c_str() + at;
      if (!name.starts_with("trusted.")) shown.append(name).push_back('\0');
    }
    names = std::move(shown);
  }
  if (out.empty()) return names.size();
  if (names.size() > out.size()) return fail(ERANGE, "listxattr");
  std::copy(names.begin(), names.end(), out.begin());
  return names.size();
}

Status TreeOps::set_xattr(NodeId node, const char* name, std::string_view value, int flags, const Caller& caller) {
  auto fd = table_.path_fd(node);
  if (!fd) return fail(fd.error());
  const auto identity = identity_for_xattr((*fd)->get(), name, caller);
  if (identity && !*identity) return fail(EPERM, kNotTaken);
  const auto status = done(::setxattr(ProcPath((*fd)->get()).get(), name, value.data(), value.size(), flags), "setxattr");
  if (status && std::strcmp(name, "security.ima") == 0) files_.did_change_label(node);
  return status;
}

Status TreeOps::remove_xattr(NodeId node, const char* name, const Caller& caller) {
  auto fd = table_.path_fd(node);
  if (!fd) return fail(fd.error());
  // The kernel itself takes file capabilities away when somebody writes who need not own the file; of others it asks a
  // capability, and nothing about the file.
  std::unique_ptr<const ActAs> identity;
  if (std::strcmp(name, "security.capability") != 0) identity = identity_for_xattr((*fd)->get(), name, caller);
  if (identity && !*identity) return fail(EPERM, kNotTaken);
  auto status = done(::removexattr(ProcPath((*fd)->get()).get(), name), "removexattr");
  if (status && std::strcmp(name, "security.ima") == 0) files_.did_change_label(node);
  return status;
}

Result<struct statvfs> TreeOps::statistics(NodeId node) {
  auto fd = table_.path_fd(node);
  if (!fd) return fail(fd.error());
  struct statvfs answer {};
  if (::fstatvfs((*fd)->get(), &answer) != 0) return fail(errno_error("statfs"));
  return answer;
}

}  // namespace imafs
