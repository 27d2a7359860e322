#include "imafs/config.h"

#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>

#include "imafs/default_policy.h"

namespace imafs {
namespace {

constexpr std::uint32_t kLastFirmwarePcr = 7;   // 0 to 7 belong to the firmware
constexpr std::uint32_t kFirstSpecialPcr = 16;  // 16 and 23 can be reset by software, 17 to 22 are bound to a locality
constexpr std::uint32_t kLastPcr = 23;

tl::unexpected<Failure> refuse(ExitCode code, std::string sentence) {
  return tl::unexpected<Failure>(Failure{code, std::move(sentence)});
}

std::string real_path(const std::string& path) {
  std::array<char, PATH_MAX> real{};
  return ::realpath(path.c_str(), real.data()) ? real.data() : path;
}

std::string state_parent() {
  if (::geteuid() == 0) return "/var/lib/imafs";
  if (const char* const state = ::getenv("XDG_STATE_HOME"); state && *state == '/') return std::string(state) + "/imafs";
  const char* const home = ::getenv("HOME");
  return std::string(home ? home : "/tmp") + "/.local/state/imafs";
}

tl::expected<void, Failure> check_directories(MountConfig& config) {
  struct stat attr {};
  if (config.mountpoint.empty()) return refuse(ExitCode::kUsage, "no mount point is given: imafs MOUNTPOINT --backing DIR");
  if (::stat(config.mountpoint.c_str(), &attr) != 0) {
    const auto error = errno_error("mount point '" + config.mountpoint + "'");
    if (error.code == ENOTCONN) {
      return refuse(ExitCode::kMountpoint, "mount point '" + config.mountpoint + "': a dead mount is in the way; umount it first");
    }
    return refuse(ExitCode::kMountpoint, error.what);
  }
  if (!S_ISDIR(attr.st_mode)) return refuse(ExitCode::kMountpoint, "mount point '" + config.mountpoint + "' is not a directory");
  if (::access((config.mountpoint + "/.ima/status").c_str(), F_OK) == 0) {
    return refuse(ExitCode::kMountpoint, "mount point '" + config.mountpoint + "' is in use by imafs already");
  }
  if (config.backing.empty()) return refuse(ExitCode::kUsage, "no backing directory is given: --backing DIR");
  if (::stat(config.backing.c_str(), &attr) != 0) {
    return refuse(ExitCode::kBacking, errno_error("backing directory '" + config.backing + "'").what);
  }
  if (!S_ISDIR(attr.st_mode)) return refuse(ExitCode::kBacking, "backing directory '" + config.backing + "' is not a directory");
  config.mountpoint = real_path(config.mountpoint);
  config.backing = real_path(config.backing);
  if (::geteuid() != 0) {
    // Without a private view of the tree we would find ourselves in it.
    const std::string inside = config.backing == "/" ? "/" : config.backing + "/";
    if ((config.mountpoint + "/").starts_with(inside)) {
      return refuse(ExitCode::kMountpoint, "mount point '" + config.mountpoint + "' lies inside the backing directory; only root can mount there");
    }
  }
  if (config.state.empty()) config.state = state_parent() + "/" + escape_path(config.mountpoint);
  // The daemon works in /.
  config.state = std::filesystem::absolute(config.state).lexically_normal();
  if (!config.log_file.empty()) config.log_file = std::filesystem::absolute(config.log_file).lexically_normal();
  return {};
}

tl::expected<void, Failure> check_pcr(const MountConfig& config) {
  const std::string pcr = std::to_string(config.pcr);
  if (config.pcr > kLastPcr) return refuse(ExitCode::kPcr, "PCR " + pcr + " does not exist; a TPM has 0 to 23");
  if (config.pcr <= kLastFirmwarePcr) return refuse(ExitCode::kPcr, "PCR " + pcr + " belongs to the firmware; choose 8 to 15");
  if (config.pcr >= kFirstSpecialPcr && !config.force) {
    return refuse(ExitCode::kPcr, "PCR " + pcr + " can be reset or is bound to a locality; --force takes it all the same");
  }
  return {};
}

void choose_template(CheckedConfig& checked) {
  const MountConfig& config = checked.config;
  // IMA: what the kernel cannot use of ima_hash= and ima_template= gives way to the default. So here,
  // and it is said.
  const auto hash = hash_algorithm_named(config.hash);
  if (hash && can_compute(*hash)) {
    checked.file_hash = *hash;
  } else {
    checked.warnings.push_back("--hash '" + config.hash + "' is not a hash this system can compute; sha256 is used");
  }
  if (!config.template_format.empty()) {
    if (auto custom = parse_template_format(config.template_format)) {
      checked.custom = std::make_shared<Template>(std::move(*custom));
      checked.form = checked.custom.get();
      return;
    } else {
      checked.warnings.push_back("--template-fmt: " + custom.error().what + "; ima-ng is used");
    }
  }
  checked.form = find_builtin_template(config.template_name);
  if (!checked.form) {
    checked.warnings.push_back("--template '" + config.template_name +
                               "' is none of ima, ima-ng, ima-sig, ima-ngv2, ima-sigv2, ima-buf, ima-modsig, evm-sig; ima-ng is used");
    checked.form = find_builtin_template("ima-ng");
  }
  // The legacy template has no room for another digest: the template gives way.
  if (checked.form->is_legacy() && checked.file_hash != HashAlgorithm::kSha1 && checked.file_hash != HashAlgorithm::kMd5) {
    checked.warnings.push_back("--template ima goes with sha1 and md5 only; ima-ng is used");
    checked.form = find_builtin_template("ima-ng");
  }
}

}  // namespace

std::string escape_path(const std::string& path) {
  std::string out;
  const std::size_t first = path.find_first_not_of('/');
  if (first == std::string::npos) return "-";
  constexpr std::string_view digits = "0123456789abcdef";
  for (std::size_t i = first; i < path.size(); ++i) {
    const char c = path[i];
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == ':' || c == '_' ||
                       (c == '.' && !out.empty());
    if (c == '/') {
      if (out.empty() || out.back() != '-' || path[i - 1] != '/') out += '-';
    } else if (plain) {
      out += c;
    } else {
      const auto byte = static_cast<unsigned char>(c);
      out += std::string("\\x") + digits[byte >> 4] + digits[byte & 15];
    }
  }
  while (out.size() > 1 && out.back() == '-' && path.back() == '/') out.pop_back();
  return out;
}

Checked<CheckedConfig> check_config(MountConfig config) {
  CheckedConfig checked;
  if (auto ok = check_directories(config); !ok) return tl::unexpected<Failure>(ok.error());
  if (auto ok = check_pcr(config); !ok) return tl::unexpected<Failure>(ok.error());
  if (config.ima != "on" && config.ima != "off") return refuse(ExitCode::kUsage, "--ima takes on or off");
  if (config.tpm_error != "deny" && config.tpm_error != "continue") return refuse(ExitCode::kUsage, "--tpm-error takes deny or continue");
  if (config.policy.empty()) {
    auto source = default_policy_source();
    if (!source) return refuse(ExitCode::kPolicy, "policy: " + source.error().what);
    config.policy = std::move(*source);
  }
  checked.config = std::move(config);
  choose_template(checked);
  return checked;
}

}  // namespace imafs
