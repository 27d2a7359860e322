// Loaded into a daemon before its libraries: each FUSE request of kind LATE_OPCODE that it reads waits LATE_MS milliseconds before it is
// seen. A busy machine does that to a thread at any moment.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

extern "C" ssize_t read(int fd, void* buffer, size_t size) {
  static const auto next = reinterpret_cast<ssize_t (*)(int, void*, size_t)>(dlsym(RTLD_NEXT, "read"));
  static const auto opcode = static_cast<std::uint32_t>(std::atoi(std::getenv("LATE_OPCODE")));
  static const auto late = static_cast<useconds_t>(std::atoi(std::getenv("LATE_MS")) * 1000);
  const ssize_t length = next(fd, buffer, size);
  const auto* const words = static_cast<const std::uint32_t*>(buffer);  // struct fuse_in_header: len, opcode, ...
  if (length >= 40 && words[0] == static_cast<std::uint32_t>(length) && words[1] == opcode) usleep(late);
  return length;
}
