#include "imafs/mount_info.h"

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "imafs/posix_file.h"

namespace imafs {

Result<MountInfo> read_mount_info(const std::string& mountpoint) {
  const std::string path = mountpoint + "/.ima/status";
  const auto text = read_file(path, 64 << 20);
  if (!text) return fail(text.error());
  const auto status = nlohmann::json::parse(*text, nullptr, false);
  if (status.is_discarded() || !status.is_object()) return fail(EBADMSG, "'" + path + "' is no JSON");
  const auto options = status.value("options", nlohmann::json::object());
  MountInfo info;
  info.version = status.value("version", "");
  info.backing = status.value("backing", "");
  info.state = options.value("state", "");
  info.tcti = options.value("tcti", "");
  info.pcr = static_cast<std::uint32_t>(std::strtoul(options.value("pcr", "10").c_str(), nullptr, 10));
  info.entries = status.value("entries", std::uint64_t{0});
  info.foreign_extend = status.value("tpm", nlohmann::json::object()).value("foreign_extend", false);
  auto base = parse_pcr_values(options.value("base", ""), "base");
  if (!base) return fail(base.error());
  info.base = std::move(*base);
  return info;
}

}  // namespace imafs
