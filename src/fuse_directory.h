// Requests on directories: their entries, one by one or with attributes.
#pragma once

#include "fuse_ops.h"

namespace imafs {

void do_opendir(fuse_req_t request, fuse_ino_t node, struct fuse_file_info* file);
void do_releasedir(fuse_req_t request, fuse_ino_t node, struct fuse_file_info* file);
void do_fsyncdir(fuse_req_t request, fuse_ino_t node, int only_data, struct fuse_file_info* file);
void do_readdir(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset, struct fuse_file_info* file);
void do_readdirplus(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset, struct fuse_file_info* file);

}  // namespace imafs
