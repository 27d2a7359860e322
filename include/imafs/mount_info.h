// What the tools need to know of a mount that is served by another process: its .ima/status.
#pragma once

#include <cstdint>
#include <string>

#include "imafs/verifier.h"

namespace imafs {

struct MountInfo {
  std::string version;
  std::string backing;
  std::string state;       // its state directory
  std::string tcti;        // of its TPM; empty: none
  ExpectedPcrs base;       // values before the log began
  std::uint32_t pcr = 10;
  std::uint64_t entries = 0;
  bool foreign_extend = false;
};

// ENOENT and the like: no imafs mount, or not ours to ask.
Result<MountInfo> read_mount_info(const std::string& mountpoint);

}  // namespace imafs
