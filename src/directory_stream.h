// An open directory: its entries, with offsets that stay valid while it is open. The descriptor of one that has a file handle
// may be closed while nobody reads it: it is opened again by its node. Thread-safe.
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>

#include <list>
#include <memory>
#include <mutex>
#include <utility>

#include "imafs/caller_identity.h"
#include "imafs/inode_table.h"
#include "imafs/unique_fd.h"

namespace imafs {

class DirectoryStream;

// Those that have a descriptor and can do without: so many at most, the others are closed, the longest unused first.
class OpenDirectories {
 public:
  explicit OpenDirectories(std::size_t most) : most_(most) {}

 private:
  friend class DirectoryStream;
  void used(DirectoryStream& stream);  // REQUIRES: the stream's mutex is held
  void gone(DirectoryStream& stream);

  const std::size_t most_;
  // Taken with a stream's mutex held; another stream's is only tried for.
  std::mutex mutex_;
  std::list<DirectoryStream*> order_;  // guarded by mutex_
};

class DirectoryStream {
 public:
  // EMFILE: the user has his share of our descriptors. What is given outlives the stream.
  static Result<std::unique_ptr<DirectoryStream>> open(InodeTable& table, OpenDirectories& all, DescriptorBudget& budget, NodeId node, const Caller& caller) {
    const uid_t user = caller.uid;
    const bool can_close = table.has_handle(node);
    if (!can_close && !budget.take(user)) return fail(EMFILE, "the user's share of descriptors is taken");
    std::unique_ptr<DirectoryStream> stream(new DirectoryStream(table, all, budget, node, user, can_close));
    const std::lock_guard lock(stream->mutex_);
    if (auto status = stream->reopen(); !status) return fail(status.error());
    struct stat attr {};
    if (::fstat(::dirfd(stream->stream_), &attr) != 0) return fail(errno_error("opendir"));
    // The kernel judged by what it believed of the directory.
    if (!table.is_as_told(node, attr)) {
      if (auto status = may_access(caller, ::dirfd(stream->stream_), R_OK); !status) return fail(status.error());
    }
    stream->device_ = attr.st_dev;
    if (can_close) all.used(*stream);
    return stream;
  }
  ~DirectoryStream() {
    if (can_close_) all_.gone(*this);
    if (stream_) ::closedir(stream_);
    if (!can_close_) budget_.give_back(user_);
  }
  DirectoryStream(const DirectoryStream&) = delete;
  DirectoryStream& operator=(const DirectoryStream&) = delete;

  // Calls `take(entry)` for the entries from `offset` on until it returns false; an entry that was
  // refused comes again next time. entry.d_off is the offset after it.
  template <class Take>
  Status read(off_t offset, Take&& take) {
    const std::lock_guard lock(mutex_);
    if (auto status = use(); !status) return status;
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

  Status sync(bool only_data) {
    const std::lock_guard lock(mutex_);
    if (auto status = use(); !status) return status.error().code == ENOENT ? Status() : status;  // it was removed
    const int fd = ::dirfd(stream_);
    return (only_data ? ::fdatasync(fd) : ::fsync(fd)) == 0 ? Status() : Status(fail(errno_error("fsync")));
  }

  NodeId node() const { return node_; }
  dev_t device() const { return device_; }

 private:
  friend class OpenDirectories;
  DirectoryStream(InodeTable& table, OpenDirectories& all, DescriptorBudget& budget, NodeId node, uid_t user, bool can_close)
      : table_(table), all_(all), budget_(budget), node_(node), user_(user), can_close_(can_close) {}

  // REQUIRES, both: the mutex is held.
  Status reopen() {
    auto fd = table_.open(node_, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (!fd) return fail(fd.error());
    stream_ = ::fdopendir(fd->get());
    if (!stream_) return fail(errno_error("opendir"));
    (void)fd->release();
    position_ = 0;
    return {};
  }
  Status use() {
    if (!stream_) {
      auto status = reopen();
      // It was removed outside the mount: a descriptor of it would say so in these words.
      if (!status && status.error().code == ESTALE) return fail(ENOENT, "the directory is gone");
      if (!status) return status;
    }
    if (can_close_) all_.used(*this);
    return {};
  }

  InodeTable& table_;
  OpenDirectories& all_;
  DescriptorBudget& budget_;
  const NodeId node_;
  const uid_t user_;
  const bool can_close_;
  dev_t device_ = 0;
  std::mutex mutex_;
  DIR* stream_ = nullptr;  // guarded by mutex_
  off_t position_ = 0;     // guarded by mutex_
  // Under the mutex of all_.
  bool is_listed_ = false;
  std::list<DirectoryStream*>::iterator place_;
};

inline void OpenDirectories::used(DirectoryStream& stream) {
  DIR* closing = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (stream.is_listed_) {
      order_.splice(order_.end(), order_, stream.place_);
      return;
    }
    stream.place_ = order_.insert(order_.end(), &stream);
    stream.is_listed_ = true;
    if (order_.size() <= most_) return;
    for (DirectoryStream* const other : order_) {
      if (other == &stream || !other->mutex_.try_lock()) continue;
      closing = std::exchange(other->stream_, nullptr);
      other->mutex_.unlock();
      order_.erase(other->place_);
      other->is_listed_ = false;
      break;
    }
  }
  if (closing) ::closedir(closing);
}

inline void OpenDirectories::gone(DirectoryStream& stream) {
  const std::lock_guard lock(mutex_);
  if (std::exchange(stream.is_listed_, false)) order_.erase(stream.place_);
}

}  // namespace imafs
