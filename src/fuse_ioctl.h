// The ioctl(2)s that file systems share: chattr(1), project quotas, generations, fs-verity.
#pragma once

#include "fuse_ops.h"

namespace imafs {

void do_ioctl(fuse_req_t request, fuse_ino_t node, unsigned int command, void* argument, struct fuse_file_info* file,
              unsigned flags, const void* in, size_t in_size, size_t out_size);

}  // namespace imafs
