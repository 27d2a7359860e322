// Loaded into a daemon before its libraries: each FUSE RELEASE that it reads waits 100 ms before it is seen, longer than imafs waits for
// one. A busy machine does that to a thread at any moment.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdint>

extern "C" ssize_t read(int fd, void* buffer, size_t size) {
  static const auto next = reinterpret_cast<ssize_t (*)(int, void*, size_t)>(dlsym(RTLD_NEXT, "read"));
  const ssize_t length = next(fd, buffer, size);
  constexpr std::uint32_t kRelease = 18;
  const auto* const words = static_cast<const std::uint32_t*>(buffer);  // struct fuse_in_header: len, opcode, ...
  if (length == 64 && words[0] == 64 && words[1] == kRelease) usleep(100'000);
  return length;
}
