#include "fuse_directory.h"

#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "directory_stream.h"
#include "fuse_control.h"
#include "fuse_reply.h"

namespace imafs {
namespace {

constexpr off_t kControlOffset = INT64_MAX;  // after ".ima", the last entry of the root

DirectoryStream& stream_of(const struct fuse_file_info* file) {
  return *reinterpret_cast<DirectoryStream*>(file->fh);
}

class Listing {
 public:
  Listing(fuse_req_t request, size_t size) : request_(request), buffer_(size) {}

  bool add(const char* name, const struct stat& attr, off_t next) {
    const size_t need = fuse_add_direntry(request_, here(), left(), name, &attr, next);
    return take(need);
  }
  bool add_with_attr(const char* name, const struct fuse_entry_param& entry, off_t next) {
    return take(fuse_add_direntry_plus(request_, here(), left(), name, &entry, next));
  }
  void send() { answer(::fuse_reply_buf, request_, buffer_.data(), used_); }
  bool is_empty() const { return used_ == 0; }

 private:
  char* here() { return buffer_.data() + used_; }
  size_t left() const { return buffer_.size() - used_; }
  bool take(size_t need) {
    if (need > left()) return false;
    used_ += need;
    return true;
  }

  fuse_req_t request_;
  std::vector<char> buffer_;
  size_t used_ = 0;
};

bool is_dots(std::string_view name) { return name == "." || name == ".."; }

void list(fuse_req_t request, size_t size, off_t offset, struct fuse_file_info* file, bool with_attr) {
  FuseContext& context = context_of(request);
  DirectoryStream& stream = stream_of(file);
  const Caller caller = caller_of(request);
  const bool is_root = stream.node() == kRootNode;
  Listing listing(request, size);
  bool full = false;
  const auto take = [&](const struct dirent& entry) {
    if (is_root && std::strcmp(entry.d_name, kControlName) == 0) return true;  // ours hides it
    struct stat attr {};
    attr.st_ino = context.numbers.shown(stream.device(), entry.d_ino);
    attr.st_mode = DTTOIF(entry.d_type);
    if (!with_attr) return !(full = !listing.add(entry.d_name, attr, entry.d_off));
    struct fuse_entry_param plain {};
    plain.attr = attr;
    if (is_dots(entry.d_name)) return !(full = !listing.add_with_attr(entry.d_name, plain, entry.d_off));
    const auto found = context.ops.look_up(stream.node(), entry.d_name, caller);
    if (!found && found.error().code == ENOENT) return true;  // went away meanwhile
    if (!found) return !(full = !listing.add_with_attr(entry.d_name, plain, entry.d_off));
    if (listing.add_with_attr(entry.d_name, entry_of(context, stream.node(), *found), entry.d_off)) return true;
    if (context.table.forget(found->id, 1)) context.files.forget(found->id);
    full = true;
    return false;
  };
  if (offset != kControlOffset) {
    if (auto status = stream.read(offset, take); !status && listing.is_empty()) return reply(request, status);
    if (is_root && context.options.show_control && !full) {
      struct fuse_entry_param control {};
      control.attr.st_ino = kControlRoot;
      control.attr.st_mode = S_IFDIR | 0500;
      if (with_attr) {
        listing.add_with_attr(kControlName, control, kControlOffset);
      } else {
        listing.add(kControlName, control.attr, kControlOffset);
      }
    }
  }
  listing.send();
}

}  // namespace

void do_opendir(fuse_req_t request, fuse_ino_t node, struct fuse_file_info* file) {
  if (ControlDir::owns(node)) return control_opendir(request, node, file);
  FuseContext& context = context_of(request);
  auto stream = DirectoryStream::open(context.table, context.directories, context.budget, node, caller_of(request));
  if (!stream) return reply_error(request, stream.error());
  file->fh = reinterpret_cast<std::uint64_t>(stream->get());
  // The kernel checks a cached listing against the directory's times.
  file->cache_readdir = 1;
  file->keep_cache = 1;
  if (answer(::fuse_reply_open, request, file) == 0) (void)stream->release();
}

void do_releasedir(fuse_req_t request, fuse_ino_t node, struct fuse_file_info* file) {
  if (ControlDir::owns(node)) return control_releasedir(request, file);
  delete &stream_of(file);
  answer(::fuse_reply_err, request, 0);
}

void do_fsyncdir(fuse_req_t request, fuse_ino_t node, int only_data, struct fuse_file_info* file) {
  if (ControlDir::owns(node)) return refuse(request, 0);
  reply(request, stream_of(file).sync(only_data != 0));
}

void do_readdir(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset, struct fuse_file_info* file) {
  if (ControlDir::owns(node)) return control_readdir(request, size, offset, file, false);
  list(request, size, offset, file, false);
}

void do_readdirplus(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset, struct fuse_file_info* file) {
  if (ControlDir::owns(node)) return control_readdir(request, size, offset, file, true);
  list(request, size, offset, file, true);
}

}  // namespace imafs
