#include "last_run.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "imafs/posix_file.h"

namespace imafs {
namespace {

namespace fs = std::filesystem;

std::string note_path(const std::string& state_directory) { return state_directory + "/running"; }

std::string boot_id() {
  const auto text = read_file("/proc/sys/kernel/random/boot_id", 256);
  return text ? text->substr(0, text->find('\n')) : "";
}

struct MountLine {
  std::uint64_t number = 0;
  std::string device, root, point;
};

std::vector<MountLine> mounts() {
  std::vector<MountLine> found;
  std::ifstream lines("/proc/self/mountinfo");
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    MountLine mount;
    std::uint64_t parent = 0;
    if (words >> mount.number >> parent >> mount.device >> mount.root >> mount.point) found.push_back(std::move(mount));
  }
  return found;
}

// As the kernel writes a path in mountinfo.
std::string escaped(const std::string& path) {
  std::string text;
  for (const char c : path) {
    if (c == ' ' || c == '\t' || c == '\n' || c == '\\') {
      std::array<char, 8> octal{};
      std::snprintf(octal.data(), octal.size(), "\\%03o", static_cast<unsigned>(static_cast<unsigned char>(c)));
      text += octal.data();
    } else {
      text += c;
    }
  }
  return text;
}

std::optional<std::uint64_t> mount_of_descriptor(const fs::path& process, const std::string& fd) {
  std::ifstream lines(process / "fdinfo" / fd);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("mnt_id:")) return std::strtoull(line.c_str() + 7, nullptr, 10);
  }
  return std::nullopt;
}

// Where it was: the kernel shows what is left of a mount that was taken away by its own root.
std::string inside(std::string path, const std::string& mountpoint) {
  constexpr std::string_view deleted = " (deleted)";
  if (path.ends_with(deleted)) path.resize(path.size() - deleted.size());
  if (path.starts_with(mountpoint + "/")) path.erase(0, mountpoint.size());
  return path;
}

}  // namespace

std::optional<LastRun> LastRun::of(const std::string& state_directory) {
  const auto text = read_file(note_path(state_directory), 4096);
  if (!text) return std::nullopt;
  std::istringstream words(*text);
  std::string boot;
  LastRun last;
  words >> boot >> last.mount_ >> last.device_;
  // No descriptor outlives the machine.
  if (boot != boot_id()) return std::nullopt;
  return last;
}

std::vector<std::string> LastRun::held_files(const std::string& mountpoint, std::size_t limit) const {
  std::vector<std::string> held;
  if (mount_ == 0) return held;
  // A dead mount answers ENOTCONN. Its numbers stay taken as long as somebody holds a file of it.
  const auto all = mounts();
  const bool is_another = std::ranges::any_of(all, [&](const MountLine& mount) {
    struct statfs about {};
    return mount.device == device_ && ::statfs(mount.point.c_str(), &about) == 0;
  });
  if (is_another) return held;
  const auto add = [&](std::string path) {
    path = inside(std::move(path), mountpoint);
    if (path.starts_with('/') && held.size() < limit && std::ranges::find(held, path) == held.end()) held.push_back(std::move(path));
  };
  std::error_code failed;
  for (const auto& process : fs::directory_iterator("/proc", failed)) {
    const std::string pid = process.path().filename();
    if (pid.find_first_not_of("0123456789") != std::string::npos) continue;
    std::error_code hidden;
    for (auto fd = fs::directory_iterator(process.path() / "fd", hidden); !hidden && fd != fs::directory_iterator(); fd.increment(hidden)) {
      if (mount_of_descriptor(process.path(), fd->path().filename()) != mount_) continue;
      struct stat attr {};
      if (::stat(fd->path().c_str(), &attr) == 0 && !S_ISREG(attr.st_mode)) continue;
      std::error_code gone;
      add(fs::read_symlink(fd->path(), gone));
    }
    std::ifstream maps(process.path() / "maps");
    for (std::string line; std::getline(maps, line);) {
      // "start-end flags offset major:minor inode path", the device in hexadecimal.
      std::istringstream words(line);
      std::string range, flags, offset, device, inode, path;
      words >> range >> flags >> offset >> device >> inode;
      std::getline(words >> std::ws, path);
      unsigned major = 0, minor = 0;
      if (std::sscanf(device.c_str(), "%x:%x", &major, &minor) != 2) continue;
      if (std::to_string(major) + ":" + std::to_string(minor) == device_) add(path);
    }
  }
  return held;
}

Status LastRun::begin(const std::string& state_directory, const std::string& mountpoint) {
  std::string text = boot_id() + "\n";
  const auto all = mounts();
  const auto ours = std::find_if(all.rbegin(), all.rend(), [&](const MountLine& mount) { return mount.point == escaped(mountpoint); });
  if (ours != all.rend()) text += std::to_string(ours->number) + "\n" + ours->device + "\n";
  return write_file_atomically(note_path(state_directory), text);
}

void LastRun::end(const std::string& state_directory) { ::unlink(note_path(state_directory).c_str()); }

}  // namespace imafs
