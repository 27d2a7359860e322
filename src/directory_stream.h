// An open directory: its entries, with offsets that stay valid while it is open.
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <memory>
#include <mutex>
#include <string_view>

#include "imafs/caller_identity.h"
#include "imafs/inode_table.h"
#include "imafs/unique_fd.h"

namespace imafs {

class DirectoryStream {
 public:
  static Result<std::unique_ptr<DirectoryStream>> open(InodeTable& table, NodeId node, const Caller& caller) {
    auto fd = table.open(node, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (!fd) return fail(fd.error());
    struct stat attr {};
    if (::fstat(fd->get(), &attr) != 0) return fail(errno_error("opendir"));
    // The kernel judged by what it believed of the directory.
    if (!table.is_as_told(node, attr)) {
      if (auto status = may_access(caller, fd->get(), R_OK); !status) return fail(status.error());
    }
    DIR* const stream = ::fdopendir(fd->get());
    if (!stream) return fail(errno_error("opendir"));
    (void)fd->release();
    return std::unique_ptr<DirectoryStream>(new DirectoryStream(stream, node, attr.st_dev));
  }
  ~DirectoryStream() { ::closedir(stream_); }
  DirectoryStream(const DirectoryStream&) = delete;
  DirectoryStream& operator=(const DirectoryStream&) = delete;

  // Calls `take(entry)` for the entries from `offset` on until it returns false; an entry that was
  // refused comes again next time. entry.d_off is the offset after it.
  template <class Take>
  Status read(off_t offset, Take&& take) {
    const std::lock_guard lock(mutex_);
    if (offset != position_) ::seekdir(stream_, offset);
    position_ = offset;
    for (;;) {
      errno = 0;
      const struct dirent* const entry = ::readdir(stream_);
      if (!entry) return errno == 0 ? Status() : Status(fail(errno_error("readdir")));
      if (!take(*entry)) {
        ::seekdir(stream_, position_);
        return {};
      }
      position_ = entry->d_off;
    }
  }

  NodeId node() const { return node_; }
  dev_t device() const { return device_; }
  int fd() const { return ::dirfd(stream_); }

 private:
  DirectoryStream(DIR* stream, NodeId node, dev_t device) : stream_(stream), node_(node), device_(device) {}

  DIR* const stream_;
  const NodeId node_;
  const dev_t device_;
  std::mutex mutex_;
  off_t position_ = 0;  // guarded by mutex_
};

}  // namespace imafs
