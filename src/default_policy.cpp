#include "imafs/default_policy.h"

#include <sys/stat.h>

#include <cerrno>

namespace imafs {

Result<std::string> default_policy_source() {
  const std::string path = kDefaultPolicyFile;
  struct stat attr {};
  // A link that leads nowhere is there: somebody meant a file.
  if (::lstat(path.c_str(), &attr) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) return "builtin:default";
    return fail(errno_error("cannot tell whether there is a '" + path + "'"));
  }
  if (::stat(path.c_str(), &attr) != 0) return fail(errno_error("cannot open '" + path + "'"));
  if (!S_ISREG(attr.st_mode)) return fail(EINVAL, "'" + path + "' is not a regular file");
  return path;
}

}  // namespace imafs
