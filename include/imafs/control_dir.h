// .ima/: the log, the policy and the state of the mount as files. Answers in plain types; fuse_ops
// turns them into replies. Owner-only, never measured, sizes 0, read with direct I/O.
//
// Thread-safe.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "imafs/measure_gate.h"
#include "imafs/result.h"

namespace imafs {

// Node ids of control files have the top bit set, so they can never be an inode's.
inline constexpr std::uint64_t kControlBit = std::uint64_t{1} << 63;
inline constexpr std::uint64_t kControlRoot = kControlBit | 1;

class ControlDir {
 public:
  struct Sources {
    MeasureGate& gate;
    MeasurementLog& log;
    std::function<std::string()> status;   // the JSON text, newline at its end
    std::function<std::string()> metrics;  // Prometheus text
    // Reads a policy file for "a path as first line". Empty: policy_file.h's, which reads the
    // machine's tree and measures the file as POLICY_CHECK.
    std::function<Result<std::string>(const std::string& path)> read_policy_file;
    const Template* custom_template = nullptr;
    std::uint32_t owner_uid = 0;
    std::uint32_t owner_gid = 0;
    bool read_only = false;  // nobody writes, root included: every open for writing is EROFS
  };
  static std::unique_ptr<ControlDir> create(Sources sources);
  virtual ~ControlDir() = default;

  static bool owns(std::uint64_t node) { return (node & kControlBit) != 0; }

  // ENOENT. Ids of label and name files under critical_data/ are made on first lookup or create and
  // stay.
  virtual Result<std::uint64_t> look_up(std::uint64_t directory, std::string_view name) = 0;
  virtual Result<struct stat> get_attr(std::uint64_t node) = 0;
  // Only in critical_data/ and critical_data_hash/: directories for labels, files for names.
  virtual Result<std::uint64_t> make_directory(std::uint64_t parent, std::string_view name) = 0;
  virtual Result<std::uint64_t> make_file(std::uint64_t parent, std::string_view name) = 0;

  struct DirEntry {
    std::string name;
    std::uint64_t node = 0;
    mode_t mode = 0;
  };
  virtual Result<std::vector<DirEntry>> list(std::uint64_t directory) = 0;

  // `flags` as of open(2). Errors as the kernel's securityfs: EACCES, EBUSY, ENOENT. A handle is >
  // 0.
  virtual Result<std::uint64_t> open(std::uint64_t node, int flags, const Requester& requester) = 0;
  virtual Result<std::size_t> read(std::uint64_t handle, std::uint64_t offset,
                                   std::span<char> out) = 0;
  // Bytes consumed. EINVAL: a bad rule.
  virtual Result<std::size_t> write(std::uint64_t handle, std::uint64_t offset,
                                    std::string_view text) = 0;
  // close(2) of a writer: FUSE's FLUSH may come several times (dup); RELEASE once. What was written
  // is loaded, or measured, by the flush that follows it, see policy_desk.cpp; so FLUSH must not be
  // switched off for writers of control files, and its error is close(2)'s.
  virtual Status flush(std::uint64_t handle, const Requester& requester) = 0;
  virtual void release(std::uint64_t handle, const Requester& requester) = 0;
  // Whether bytes beyond `offset` exist now; `wake` is called once when they may (for poll).
  // Offset 0: from where the handle's last read ended.
  virtual bool poll(std::uint64_t handle, std::uint64_t offset, std::function<void()> wake) = 0;

  // For status and metrics. Why the last policy update failed; empty after a good one.
  virtual std::string last_policy_error() const = 0;
  struct PolicyUpdates {
    std::uint64_t completed = 0;
    std::uint64_t failed = 0;
  };
  virtual PolicyUpdates policy_updates() const = 0;
};

}  // namespace imafs
