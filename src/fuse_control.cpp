#include "fuse_control.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace imafs {
namespace {

// An open control file. How far it was read decides what poll says.
struct ControlHandle {
  std::uint64_t id;
  std::atomic<std::uint64_t> read_to{0};
};

ControlHandle& handle_of(const struct fuse_file_info* file) { return *reinterpret_cast<ControlHandle*>(file->fh); }

// Sizes and times of control files change with the log: never believed for longer than the request.
Result<struct fuse_entry_param> control_entry(FuseContext& context, std::uint64_t node) {
  const auto attr = context.control.get_attr(node);
  if (!attr) return fail(attr.error());
  struct fuse_entry_param entry {};
  entry.ino = node;
  entry.attr = *attr;
  entry.attr.st_ino = node;
  return entry;
}

void reply_control_entry(fuse_req_t request, const Result<std::uint64_t>& node) {
  if (!node) return reply_error(request, node.error());
  const auto entry = control_entry(context_of(request), *node);
  if (!entry) return reply_error(request, entry.error());
  answer(::fuse_reply_entry, request, &*entry);
}

Result<std::uint64_t> find(FuseContext& context, fuse_ino_t parent, const char* name) {
  if (!ControlDir::owns(parent)) return kControlRoot;
  return context.control.look_up(parent, name);
}

// Opens `node` and describes the handle in `file`.
Status open_control(fuse_req_t request, std::uint64_t node, struct fuse_file_info* file) {
  auto opened = context_of(request).control.open(node, file->flags, requester_of(request));
  if (!opened) return fail(opened.error());
  file->fh = reinterpret_cast<std::uint64_t>(new ControlHandle{*opened});
  file->direct_io = 1;
  return {};
}

void close_control(fuse_req_t request, struct fuse_file_info* file) {
  const std::unique_ptr<ControlHandle> handle(&handle_of(file));
  context_of(request).control.release(handle->id, requester_of(request));
}

}  // namespace

void control_lookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
  reply_control_entry(request, find(context_of(request), parent, name));
}

void control_getattr(fuse_req_t request, fuse_ino_t node) {
  const auto entry = control_entry(context_of(request), node);
  if (!entry) return reply_error(request, entry.error());
  answer(::fuse_reply_attr, request, &entry->attr, 0);
}

void control_statx(fuse_req_t request, fuse_ino_t node) {
  const auto attr = context_of(request).control.get_attr(node);
  if (!attr) return reply_error(request, attr.error());
  struct statx about {};
  about.stx_mask = STATX_BASIC_STATS;
  about.stx_mode = static_cast<std::uint16_t>(attr->st_mode);
  about.stx_nlink = static_cast<std::uint32_t>(attr->st_nlink);
  about.stx_uid = attr->st_uid;
  about.stx_gid = attr->st_gid;
  about.stx_ino = node;
  about.stx_blksize = 4096;
  about.stx_mtime.tv_sec = about.stx_ctime.tv_sec = about.stx_atime.tv_sec = attr->st_mtim.tv_sec;
  answer(::fuse_reply_statx, request, 0, &about, 0);
}

void control_setattr(fuse_req_t request, fuse_ino_t node, int what) {
  // Shells truncate what they write to, and tools set times: both mean nothing here.
  constexpr int harmless = FUSE_SET_ATTR_SIZE | FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW |
                           FUSE_SET_ATTR_MTIME_NOW | FUSE_SET_ATTR_CTIME | FUSE_SET_ATTR_KILL_SUID |
                           FUSE_SET_ATTR_KILL_SGID | FUSE_SET_ATTR_FILE | FUSE_SET_ATTR_OPEN | FUSE_SET_ATTR_TIMES_SET |
                           FUSE_SET_ATTR_TOUCH | FUSE_SET_ATTR_FORCE | FUSE_SET_ATTR_KILL_PRIV;
  if ((what & ~harmless) != 0) return refuse(request, EPERM);
  control_getattr(request, node);
}

void control_make(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode) {
  FuseContext& context = context_of(request);
  if (!ControlDir::owns(parent)) return refuse(request, EEXIST);
  if (S_ISDIR(mode)) return reply_control_entry(request, context.control.make_directory(parent, name));
  if (S_ISREG(mode)) return reply_control_entry(request, context.control.make_file(parent, name));
  refuse(request, EPERM);
}

void control_create(fuse_req_t request, fuse_ino_t parent, const char* name, struct fuse_file_info* file) {
  FuseContext& context = context_of(request);
  if (!ControlDir::owns(parent)) return refuse(request, EISDIR);
  const auto node = context.control.make_file(parent, name);
  if (!node) return reply_error(request, node.error());
  const auto entry = control_entry(context, *node);
  if (!entry) return reply_error(request, entry.error());
  if (auto status = open_control(request, *node, file); !status) return reply(request, status);
  if (answer(::fuse_reply_create, request, &*entry, file) != 0) close_control(request, file);
}

void control_open(fuse_req_t request, fuse_ino_t node, struct fuse_file_info* file) {
  if (auto status = open_control(request, node, file); !status) return reply(request, status);
  if (answer(::fuse_reply_open, request, file) != 0) close_control(request, file);
}

void control_read(fuse_req_t request, size_t size, off_t offset, struct fuse_file_info* file) {
  ControlHandle& handle = handle_of(file);
  std::vector<char> bytes(size);
  const auto start = static_cast<std::uint64_t>(offset);
  const auto got = context_of(request).control.read(handle.id, start, bytes);
  if (!got) return reply_error(request, got.error());
  handle.read_to = start + *got;
  answer(::fuse_reply_buf, request, bytes.data(), *got);
}

void control_write(fuse_req_t request, std::string_view text, off_t offset, struct fuse_file_info* file) {
  const auto taken = context_of(request).control.write(handle_of(file).id, static_cast<std::uint64_t>(offset), text);
  if (!taken) return reply_error(request, taken.error());
  answer(::fuse_reply_write, request, *taken);
}

void control_flush(fuse_req_t request, struct fuse_file_info* file) {
  reply(request, context_of(request).control.flush(handle_of(file).id, requester_of(request)));
}

void control_release(fuse_req_t request, struct fuse_file_info* file) {
  close_control(request, file);
  answer(::fuse_reply_err, request, 0);
}

void control_poll(fuse_req_t request, struct fuse_file_info* file, struct fuse_pollhandle* handle) {
  ControlHandle& open = handle_of(file);
  std::function<void()> wake;
  if (handle) {
    wake = [kept = std::shared_ptr<fuse_pollhandle>(handle, fuse_pollhandle_destroy)] {
      fuse_lowlevel_notify_poll(kept.get());
    };
  }
  const bool ready = context_of(request).control.poll(open.id, open.read_to, std::move(wake));
  answer(::fuse_reply_poll, request, ready ? POLLIN | POLLRDNORM | POLLOUT : POLLOUT);
}

void control_opendir(fuse_req_t request, fuse_ino_t node, struct fuse_file_info* file) {
  auto entries = context_of(request).control.list(node);
  if (!entries) return reply_error(request, entries.error());
  auto* const listing = new std::vector<ControlDir::DirEntry>(std::move(*entries));
  file->fh = reinterpret_cast<std::uint64_t>(listing);
  if (answer(::fuse_reply_open, request, file) != 0) delete listing;
}

void control_readdir(fuse_req_t request, size_t size, off_t offset, struct fuse_file_info* file, bool with_attr) {
  const auto& entries = *reinterpret_cast<std::vector<ControlDir::DirEntry>*>(file->fh);
  std::vector<char> buffer(size);
  size_t used = 0;
  for (auto at = static_cast<std::size_t>(offset); at < entries.size(); ++at) {
    const ControlDir::DirEntry& entry = entries[at];
    struct fuse_entry_param param {};
    param.attr.st_ino = entry.node;
    param.attr.st_mode = entry.mode;
    const auto next = static_cast<off_t>(at + 1);
    const size_t left = size - used;
    char* const here = buffer.data() + used;
    const size_t need = with_attr ? fuse_add_direntry_plus(request, here, left, entry.name.c_str(), &param, next)
                                  : fuse_add_direntry(request, here, left, entry.name.c_str(), &param.attr, next);
    if (need > left) break;
    used += need;
  }
  answer(::fuse_reply_buf, request, buffer.data(), used);
}

void control_releasedir(fuse_req_t request, struct fuse_file_info* file) {
  delete reinterpret_cast<std::vector<ControlDir::DirEntry>*>(file->fh);
  answer(::fuse_reply_err, request, 0);
}

}  // namespace imafs
