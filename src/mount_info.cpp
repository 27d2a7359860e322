#include "imafs/mount_info.h"

#include <fcntl.h>
#include <linux/stat.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <charconv>
#include <sstream>

#include "imafs/bounded_json.h"
#include "imafs/posix_file.h"

namespace imafs {
namespace {

constexpr std::size_t kMaxStatus = std::size_t{64} << 20;

template <class Number>
bool parse_whole(std::string_view text, Number& value) {
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  return !text.empty() && parsed.ec == std::errc() && parsed.ptr == text.data() + text.size();
}

// The line of the mount with that id.
Result<std::string> mountinfo_line(std::uint64_t id) {
  const auto text = read_file("/proc/self/mountinfo", kMaxStatus);
  if (!text) return fail(text.error());
  std::istringstream lines(*text);
  for (std::string line; std::getline(lines, line);) {
    std::uint64_t of_line = 0;
    if (parse_whole(std::string_view(line).substr(0, line.find(' ')), of_line) && of_line == id) return line;
  }
  return fail(ENODEV, "it is in no mount of this mount namespace");
}

Result<struct statx> mount_of(int fd) {
  struct statx attr {};
  if (::statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID, &attr) != 0) return fail(errno_error("statx"));
  if ((attr.stx_mask & STATX_MNT_ID) == 0 || (attr.stx_attributes_mask & STATX_ATTR_MOUNT_ROOT) == 0) {
    return fail(ENOTSUP, "the kernel does not say what is mounted there");
  }
  return attr;
}

// Members that imafs gives one type, read as that: anything else is no status of ours.
class Members {
 public:
  explicit Members(const nlohmann::json& object) : object_(object) {}

  std::string text(const char* key) {
    const nlohmann::json& value = member(object_, key);
    if (!value.is_null() && !value.is_string()) bad_ = key;
    return value.is_string() ? value.get<std::string>() : "";
  }
  std::uint64_t count(const char* key) {
    const nlohmann::json& value = member(object_, key);
    if (!value.is_null() && !value.is_number_unsigned()) bad_ = key;
    return value.is_number_unsigned() ? value.get<std::uint64_t>() : 0;
  }
  bool flag(const char* key) {
    const nlohmann::json& value = member(object_, key);
    if (!value.is_null() && !value.is_boolean()) bad_ = key;
    return value.is_boolean() && value.get<bool>();
  }
  Members object(const char* key) {
    const nlohmann::json& value = member(object_, key);
    if (!value.is_null() && !value.is_object()) bad_ = key;
    return Members(value);
  }
  const char* bad() const { return bad_; }

 private:
  const nlohmann::json& object_;
  const char* bad_ = nullptr;
};

bool is_host_and_port(std::string_view conf) {
  constexpr std::string_view host = "host=", port = ",port=";
  const std::size_t comma = conf.find(port);
  if (!conf.starts_with(host) || comma == std::string_view::npos) return false;
  const std::string_view name = conf.substr(host.size(), comma - host.size());
  const auto is_of_a_name = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '-' || c == ':' || c == '_';
  };
  std::uint16_t number = 0;
  return !name.empty() && std::all_of(name.begin(), name.end(), is_of_a_name) && parse_whole(conf.substr(comma + port.size()), number);
}

}  // namespace

Status is_imafs_mount(std::string_view line, std::uint32_t user) {
  // ID PARENT DEVICE ROOT PLACE OPTIONS [TAG...] - TYPE SOURCE OPTIONS
  const std::size_t dash = line.find(" - ");
  if (dash == std::string_view::npos) return fail(EBADMSG, "a line of mountinfo that cannot be read");
  std::istringstream front{std::string(line.substr(0, dash))}, back{std::string(line.substr(dash + 3))};
  std::string id, parent, device, root, type, source, options;
  front >> id >> parent >> device >> root;
  back >> type >> source >> options;
  if (type != "fuse.imafs") return fail(ENODEV, "it is no mount of imafs but '" + type + "'");
  if (root != "/") return fail(ENODEV, "it is a directory of an imafs mount, not its root");
  std::istringstream list(options);
  for (std::string option; std::getline(list, option, ',');) {
    constexpr std::string_view owner = "user_id=";
    std::uint32_t id_of_owner = 0;
    if (!option.starts_with(owner) || !parse_whole(std::string_view(option).substr(owner.size()), id_of_owner)) continue;
    if (id_of_owner == 0 || id_of_owner == user) return {};
    return fail(EPERM, "it is a mount of another user (" + std::to_string(id_of_owner) + ")");
  }
  return fail(EBADMSG, "the kernel does not say who mounted it");
}

Result<ControlFiles> ControlFiles::open(const std::string& mountpoint) {
  const std::string name = "'" + mountpoint + "': ";
  const UniqueFd root(::open(mountpoint.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!root) return fail(errno_error("cannot open '" + mountpoint + "'"));
  const auto attr = mount_of(root.get());
  if (!attr) return fail(attr.error().code, name + attr.error().what);
  if ((attr->stx_attributes & STATX_ATTR_MOUNT_ROOT) == 0) return fail(ENODEV, name + "it is no mount point");
  const auto line = mountinfo_line(attr->stx_mnt_id);
  if (!line) return fail(line.error().code, name + line.error().what);
  if (auto ours = is_imafs_mount(*line, ::geteuid()); !ours) return fail(ours.error().code, name + ours.error().what);
  UniqueFd control(::openat(root.get(), ".ima", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!control) return fail(errno_error("cannot open '" + mountpoint + "/.ima'"));
  const auto inside = mount_of(control.get());
  if (!inside) return fail(inside.error().code, name + inside.error().what);
  if (inside->stx_mnt_id != attr->stx_mnt_id) return fail(ENODEV, name + "something is mounted on its .ima");
  return ControlFiles(std::move(control), mountpoint);
}

Result<std::string> ControlFiles::read(const std::string& name, std::size_t limit) const {
  const std::string path = path_of(name);
  auto text = read_regular_file(path, limit);
  if (text) return text;
  Error error = text.error();
  if (const std::size_t at = error.what.find(path); at != std::string::npos) error.what.replace(at, path.size(), shown_ + "/.ima/" + name);
  return fail(std::move(error));
}

std::string ControlFiles::path_of(const std::string& name) const { return std::string(ProcPath(directory_->get()).get()) + "/" + name; }

Result<MountInfo> parse_mount_status(std::string_view text) {
  const auto json = parse_json_object(text, ".ima/status");
  if (!json) return fail(json.error());
  Members status(*json);
  Members options = status.object("options"), tpm = status.object("tpm");
  MountInfo info;
  info.version = status.text("version");
  info.backing = status.text("backing");
  info.entries = status.count("entries");
  info.state = options.text("state");
  info.tcti = options.text("tcti");
  info.foreign_extend = tpm.flag("foreign_extend");
  const std::string pcr = options.text("pcr"), base = options.text("base");
  for (const Members* object : {&status, &options, &tpm}) {
    if (object->bad()) return fail(EBADMSG, ".ima/status is not imafs's: '" + std::string(object->bad()) + "' has another type");
  }
  constexpr std::uint32_t pcrs = 24;
  if (!pcr.empty() && (!parse_whole(pcr, info.pcr) || info.pcr >= pcrs)) return fail(EBADMSG, ".ima/status names no PCR");
  if (!info.state.starts_with('/') || info.state.find('\0') != std::string::npos) return fail(EBADMSG, ".ima/status names no state directory");
  auto values = parse_pcr_values(base, ".ima/status: base");
  if (!values) return fail(EBADMSG, values.error().what);
  info.base = std::move(*values);
  return info;
}

Result<MountInfo> read_mount_info(const ControlFiles& files) {
  const auto text = files.read("status", kMaxStatus);
  if (!text) return fail(text.error());
  return parse_mount_status(*text);
}

Result<MountInfo> read_mount_info(const std::string& mountpoint) {
  const auto files = ControlFiles::open(mountpoint);
  if (!files) return fail(files.error());
  auto info = read_mount_info(*files);
  if (!info) return fail(info.error().code, "'" + mountpoint + "': " + info.error().what);
  return info;
}

bool is_plain_tcti(std::string_view tcti) {
  if (printable(tcti) != tcti) return false;
  for (const std::string_view kind : {"swtpm:path=/", "device:/"}) {
    if (tcti.starts_with(kind)) return true;
  }
  constexpr std::string_view network = "swtpm:";
  return tcti.starts_with(network) && is_host_and_port(tcti.substr(network.size()));
}

Result<std::string> tcti_of(const MountInfo& info, const std::string& given) {
  if (!given.empty()) return given;
  if (info.tcti.empty()) return fail(ENODEV, "the mount has no TPM (--tpm none)");
  if (is_plain_tcti(info.tcti)) return info.tcti;
  return fail(EPERM, "the mount reaches its TPM by '" + info.tcti + "': --tcti STRING says that this may be opened");
}

}  // namespace imafs
