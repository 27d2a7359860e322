#include "fuse_ioctl.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/fsverity.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "fuse_reply.h"

namespace imafs {
namespace {

// Salt and signature are pointers into the caller's memory, which we do not have.
bool is_plain_verity(std::span<const char> argument) {
  struct fsverity_enable_arg wanted {};
  if (argument.size() < sizeof wanted) return false;
  std::memcpy(&wanted, argument.data(), sizeof wanted);
  return wanted.salt_size == 0 && wanted.sig_size == 0;
}

}  // namespace

void do_ioctl(fuse_req_t request, fuse_ino_t node, unsigned int command, void*, struct fuse_file_info*, unsigned flags,
              const void* in, size_t in_size, size_t out_size) {
  if (ControlDir::owns(node) || (flags & FUSE_IOCTL_COMPAT) != 0) return refuse(request, ENOTTY);
  FuseContext& context = context_of(request);
  alignas(8) std::array<char, 256> data{};
  if (in_size > data.size() || out_size > data.size()) return refuse(request, EINVAL);
  if (in_size > 0) std::memcpy(data.data(), in, in_size);
  bool changes = false;
  switch (command) {
    case FS_IOC_GETFLAGS:
    case FS_IOC_FSGETXATTR:
    case FS_IOC_MEASURE_VERITY: break;
    // Its number says long, file systems write an int, and so much room callers have.
    case FS_IOC_GETVERSION: out_size = std::min(out_size, sizeof(int)); break;
    case FS_IOC_SETFLAGS:
    case FS_IOC_FSSETXATTR: changes = true; break;
    case FS_IOC_ENABLE_VERITY:
      if (!is_plain_verity({data.data(), in_size})) return refuse(request, EOPNOTSUPP);
      changes = true;
      break;
    default: return refuse(request, ENOTTY);
  }
  auto fd = context.table.open(node, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (!fd) return reply_error(request, fd.error());
  const ActAs identity(caller_of(request), {{fd->get()}});
  if (!identity) return refuse(request, EPERM);
  if (::ioctl(fd->get(), command, data.data()) != 0) return refuse(request, errno);
  if (changes) context.files.did_change_flags(node);
  answer(::fuse_reply_ioctl, request, 0, out_size > 0 ? data.data() : nullptr, out_size);
}

}  // namespace imafs
