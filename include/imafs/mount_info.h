// What the tools need to know of a mount that is served by another process: its .ima/status.
//
// Only a mount of imafs is taken for one: whoever owns an ordinary directory, or a FUSE mount of another kind or of
// another user, could write anything into a file .ima/status, and the tools would follow it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "imafs/unique_fd.h"
#include "imafs/verifier.h"

namespace imafs {

// The control directory of a mount, held open. Copies share the descriptor. Thread-safe.
class ControlFiles {
 public:
  // `mountpoint` has to be the root of a mount of type fuse.imafs, in this mount namespace, that root or the effective user
  // made. ENOTSUP: the kernel cannot tell. EPERM: another user's. ENODEV: no mount of imafs. ENOENT and the like as open(2).
  static Result<ControlFiles> open(const std::string& mountpoint);

  // The text of a file in it: EFBIG above `limit`, EBADMSG if it is no regular file.
  Result<std::string> read(const std::string& name, std::size_t limit) const;
  // A path that leads to the file of this very mount, whatever the mount point's path leads to by now. Good as long as a copy of
  // this object lives, in this process.
  std::string path_of(const std::string& name) const;

 private:
  ControlFiles(UniqueFd directory, std::string mountpoint)
      : directory_(std::make_shared<const UniqueFd>(std::move(directory))), shown_(std::move(mountpoint)) {}
  std::shared_ptr<const UniqueFd> directory_;
  std::string shown_;  // in sentences
};

struct MountInfo {
  std::string version;
  std::string backing;
  std::string state;       // its state directory, an absolute path
  std::string tcti;        // of its TPM; empty: none
  ExpectedPcrs base;       // values before the log began
  std::uint32_t pcr = 10;
  std::uint64_t entries = 0;
  bool foreign_extend = false;
};

// Of the text of a status file. EBADMSG: no JSON object, or a member of another type than imafs gives it.
Result<MountInfo> parse_mount_status(std::string_view text);
// Of a mount that is held open.
Result<MountInfo> read_mount_info(const ControlFiles& files);
// Of the mount at `mountpoint`; errors as ControlFiles::open() has them, too.
Result<MountInfo> read_mount_info(const std::string& mountpoint);

// Whether a line of /proc/self/mountinfo is of a mount of imafs (its own root, no part of it bound somewhere) that `user` or root
// made. The sentence of the error says what it is instead.
Status is_imafs_mount(std::string_view mountinfo_line, std::uint32_t user);

// Whether the TCTI string is of a kind that imafs gives its mounts by itself or for a swtpm: opening one of another kind can
// load a library or run a command, and is for a command line to ask for.
bool is_plain_tcti(std::string_view tcti);
// `given`, if there is one, else the mount's. ENODEV: the mount has no TPM. EPERM: the mount's is not plain.
Result<std::string> tcti_of(const MountInfo& info, const std::string& given);

}  // namespace imafs
