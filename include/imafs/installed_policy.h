// Where the default policy is.
#pragma once

#include <unistd.h>

#include <array>
#include <string>

namespace imafs {

// Beside the program in a build directory, else where it was installed.
inline std::string installed_policy_path() {
  std::array<char, 4096> self{};
  const ssize_t size = ::readlink("/proc/self/exe", self.data(), self.size() - 1);
  std::string beside(self.data(), size > 0 ? static_cast<std::size_t>(size) : 0);
  beside = beside.substr(0, beside.rfind('/') + 1) + "default.policy";
  return ::access(beside.c_str(), R_OK) == 0 ? beside : IMAFS_DEFAULT_POLICY;
}

}  // namespace imafs
