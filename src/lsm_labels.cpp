#include "imafs/lsm_labels.h"

#include <unistd.h>

#include "imafs/file_hasher.h"
#include "imafs/posix_file.h"

namespace imafs {

bool labels_are_known() {
  static const bool known = ::access("/sys/fs/selinux/enforce", F_OK) == 0;
  return known;
}

std::string label_of_file(int fd) {
  const Bytes value = xattr_of(fd, "security.selinux");
  const std::string_view text = as_text(value);
  return std::string(text.substr(0, text.find('\0')));
}

std::string label_of_task(std::uint32_t tid) {
  // Harmless to read, like comm: see comm_of().
  const auto text = read_file("/proc/" + std::to_string(tid) + "/attr/current", 4096);
  if (!text) return "";
  return text->substr(0, text->find_first_of(std::string_view("\0\n", 2)));
}

std::string_view part_of_label(std::string_view label, std::size_t part) {
  for (; part > 0; --part) {
    const std::size_t colon = label.find(':');
    if (colon == std::string_view::npos) return "";
    label.remove_prefix(colon + 1);
  }
  return label.substr(0, label.find(':'));
}

}  // namespace imafs
