// The same requests, for nodes of .ima/.
#pragma once

#include <string_view>

#include "fuse_reply.h"

namespace imafs {

// Whether `name` in `parent` is a matter of the control directory.
inline bool is_control(fuse_ino_t parent, std::string_view name) {
  return ControlDir::owns(parent) || (parent == kRootNode && name == kControlName);
}

void control_lookup(fuse_req_t request, fuse_ino_t parent, const char* name);
void control_getattr(fuse_req_t request, fuse_ino_t node);
void control_statx(fuse_req_t request, fuse_ino_t node);
void control_setattr(fuse_req_t request, fuse_ino_t node, int what);
void control_make(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode);
void control_create(fuse_req_t request, fuse_ino_t parent, const char* name, struct fuse_file_info* file);
void control_open(fuse_req_t request, fuse_ino_t node, struct fuse_file_info* file);
void control_read(fuse_req_t request, size_t size, off_t offset, struct fuse_file_info* file);
void control_write(fuse_req_t request, std::string_view text, off_t offset, struct fuse_file_info* file);
void control_flush(fuse_req_t request, struct fuse_file_info* file);
void control_release(fuse_req_t request, struct fuse_file_info* file);
void control_poll(fuse_req_t request, struct fuse_file_info* file, struct fuse_pollhandle* handle);
void control_opendir(fuse_req_t request, fuse_ino_t node, struct fuse_file_info* file);
void control_readdir(fuse_req_t request, size_t size, off_t offset, struct fuse_file_info* file, bool with_attr);
void control_releasedir(fuse_req_t request, struct fuse_file_info* file);

}  // namespace imafs
