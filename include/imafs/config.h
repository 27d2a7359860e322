// The options of a mount: what design and manual page list, checked.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "imafs/exit_code.h"
#include "imafs/log_entry.h"
#include "imafs/result.h"

namespace imafs {

struct MountConfig {
  std::string mountpoint;  // as given; absolute and real after check_config()
  std::string backing;
  std::string policy;      // a file or "builtin:NAME"; empty: the default one, named here after check_config()
  bool require_policy = false;
  std::string tpm = "auto";
  std::uint32_t pcr = 10;
  bool force = false;      // use a PCR of 16 to 23 all the same
  std::string hash = "sha256";
  std::string template_name = "ima-ng";
  std::string template_format;
  std::string ima = "on";
  std::string state;       // empty: chosen from the mount point
  std::string tpm_error = "deny";
  std::string path_prefix;
  bool show_control = false;
  bool read_only_control = false;  // nobody writes in .ima
  bool one_file_system = false;
  std::vector<std::string> mount_options;
  bool foreground = false;
  std::string log_level = "info";
  std::string log_file;
  double timeout_seconds = 1;
  bool no_watch = false;
  bool no_low_latency = false;
  bool io_uring = false;
  bool new_log = false;
  bool no_dedupe = false;
  bool no_passthrough = false;
  bool no_leases = false;
  bool no_seccomp = false;
  bool read_only = false;
};

// A sentence for stderr and the status to end with.
struct Failure {
  ExitCode code = ExitCode::kUsage;
  std::string sentence;
};
template <class T>
using Checked = tl::expected<T, Failure>;

// What the options stand for, once checked.
struct CheckedConfig {
  MountConfig config;
  HashAlgorithm file_hash = HashAlgorithm::kSha256;
  const Template* form = nullptr;   // a built-in, or &custom
  std::shared_ptr<Template> custom;  // --template-fmt
  std::vector<std::string> warnings;  // what gave way to a default
};

// Checks values and directories and fills in defaults. Changes nothing on disk.
Checked<CheckedConfig> check_config(MountConfig config);

// "mnt-measured" of "/mnt/measured": systemd's escaping of a path.
std::string escape_path(const std::string& path);

}  // namespace imafs
