// Replies: what a handler found out, in libfuse's words. Every request gets exactly one.
#pragma once

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "fuse_ops.h"
#include "imafs/boundary.h"

namespace imafs {

inline constexpr const char* kControlName = ".ima";

// The request that this thread has in hand, until it is answered or somebody owns it: whoever catches an exception must know.
inline thread_local fuse_req_t unanswered = nullptr;

inline void mark_answered(fuse_req_t request) {
  if (unanswered == request) unanswered = nullptr;
}

// The only way to reply: answer(::fuse_reply_err, request, EPERM).
template <class Reply, class... Arguments>
auto answer(Reply reply, fuse_req_t request, Arguments... arguments) {
  mark_answered(request);
  return reply(request, arguments...);
}

// Answers a request by `call`, and with an error if that throws before it has.
template <class Call>
void answer_by(fuse_req_t request, Call&& call) noexcept {
  const fuse_req_t before = std::exchange(unanswered, request);
  try {
    call();
  } catch (...) {
    const int code = note_exception("a request");
    if (unanswered == request) ::fuse_reply_err(request, code);
  }
  unanswered = before;
}

// A request that is answered later, on another thread perhaps. Whatever becomes of its owner, it gets an answer: EIO, if no other.
class OwnedRequest {
 public:
  explicit OwnedRequest(fuse_req_t request) : request_(request) { mark_answered(request); }
  ~OwnedRequest() {
    if (request_) ::fuse_reply_err(request_, EIO);
  }
  OwnedRequest(const OwnedRequest&) = delete;
  OwnedRequest& operator=(const OwnedRequest&) = delete;

  // As answer_by(), once.
  template <class Call>
  void answer_by(Call&& call) noexcept {
    if (const fuse_req_t request = std::exchange(request_, nullptr)) imafs::answer_by(request, std::forward<Call>(call));
  }

 private:
  fuse_req_t request_;
};

inline FuseContext& context_of(fuse_req_t request) { return *static_cast<FuseContext*>(fuse_req_userdata(request)); }

inline Caller caller_of(fuse_req_t request) {
  const struct fuse_ctx* const context = fuse_req_ctx(request);
  return {static_cast<std::uint32_t>(context->pid), context->uid, context->gid, context->umask};
}

inline Requester requester_of(fuse_req_t request) {
  const Caller caller = caller_of(request);
  return {caller.pid, caller.uid, caller.gid};
}

// Whether who waits for the answer is being killed. While the answer is owed.
inline bool is_killed(fuse_req_t request) {
  return fuse_req_interrupted(request) != 0 && is_dying(static_cast<std::uint32_t>(fuse_req_ctx(request)->pid));
}

inline void refuse(fuse_req_t request, int code) { answer(::fuse_reply_err, request, code); }
inline void reply_error(fuse_req_t request, const Error& error) { answer(::fuse_reply_err, request, error.code); }
inline void reply(fuse_req_t request, const Status& status) { answer(::fuse_reply_err, request, status ? 0 : status.error().code); }

// A directory that is mounted at two places of the tree has two numbers, and the watch skips what we do ourselves: what was
// done at one place the kernel is told of the others.
inline void tell_twins(FuseContext& context, NodeId node) noexcept {
  for (const NodeId twin : context.table.twins_of(node)) context.files.did_change_flags(twin);
}
inline void tell_twins(FuseContext& context, NodeId directory, const char* name) noexcept {
  for (const NodeId twin : context.table.twins_of(directory)) {
    context.expire_name(twin, name);
    context.files.did_change_flags(twin);
  }
}

// How long the kernel may believe what is said of an inode where changes beside the mount are told. Not for ever: a
// store into a mapping beside the mount moves times, and nobody tells.
inline constexpr std::chrono::seconds kWatched{300};

inline double timeout_of(const FuseContext& context, dev_t device, ino_t inode) {
  const double unwatched = context.options.timeout_seconds;
  return context.watch && !context.notices.is_behind() && context.watch->is_settled(device, inode) ? std::max(unwatched, static_cast<double>(kWatched.count())) : unwatched;
}

// Of a known inode's attributes. A store into a mapping moves its times, and nothing tells the kernel.
inline double timeout_of_attributes(const FuseContext& context, NodeId node, dev_t device, ino_t inode) {
  return context.files.may_be_mapped_for_writing(node) ? 0 : timeout_of(context, device, inode);
}

inline double timeout_of_names(const FuseContext& context, NodeId directory) {
  if (!context.watch) return context.options.timeout_seconds;
  const auto [device, inode] = context.table.identity_of(directory);
  return timeout_of(context, device, inode);
}

// Of a name that is not there: as long as of one that is, where there is room to remember it.
inline double timeout_of_absent(FuseContext& context, NodeId directory, const char* name) {
  const double unwatched = context.options.timeout_seconds;
  const double timeout = timeout_of_names(context, directory);
  return timeout > unwatched && !context.absent.add(directory, name, kWatched) ? unwatched : timeout;
}

inline struct fuse_entry_param entry_of(const FuseContext& context, NodeId parent, const InodeTable::Found& found) {
  struct fuse_entry_param entry {};
  entry.ino = found.id;
  entry.attr = found.attr;
  entry.attr.st_ino = context.numbers.shown(found.attr.st_dev, found.attr.st_ino);
  context.masks.hide(found.id, entry.attr.st_mode, entry.attr.st_rdev);
  entry.attr_timeout = timeout_of_attributes(context, found.id, found.attr.st_dev, found.attr.st_ino);
  // A file with several names is looked up each time: that is how an entry gets the name that was used.
  const bool has_names = S_ISREG(found.attr.st_mode) && found.attr.st_nlink > 1;
  entry.entry_timeout = has_names ? 0 : timeout_of_names(context, parent);
  return entry;
}

inline void reply_entry(fuse_req_t request, NodeId parent, const Result<InodeTable::Found>& found) {
  if (!found) return reply_error(request, found.error());
  FuseContext& context = context_of(request);
  const auto entry = entry_of(context, parent, *found);
  if (answer(::fuse_reply_entry, request, &entry) != 0 && context.table.forget(found->id, 1)) context.files.forget(found->id);
}

inline void reply_attr(fuse_req_t request, NodeId node, Result<struct stat> attr) {
  if (!attr) return reply_error(request, attr.error());
  FuseContext& context = context_of(request);
  const double timeout = timeout_of_attributes(context, node, attr->st_dev, attr->st_ino);
  attr->st_ino = context.numbers.shown(attr->st_dev, attr->st_ino);
  context.table.did_tell(node, *attr);
  context.masks.hide(node, attr->st_mode, attr->st_rdev);
  answer(::fuse_reply_attr, request, &*attr, timeout);
}

// For calls that tell the size when asked with size 0, and the bytes else.
template <class Fill>
void reply_sized(fuse_req_t request, std::size_t size, Fill&& fill) {
  std::vector<char> bytes(size);
  const Result<std::size_t> got = fill(std::span<char>(bytes));
  if (!got) return reply_error(request, got.error());
  if (size == 0) {
    answer(::fuse_reply_xattr, request, *got);
  } else {
    answer(::fuse_reply_buf, request, bytes.data(), *got);
  }
}

}  // namespace imafs
