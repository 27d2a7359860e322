// Loaded into a daemon before its libraries: once the file $FORBIDDEN_TRIGGER is there, the next FUSE request makes the thread that
// reads it call the system call $FORBIDDEN_CALL, with arguments that do no harm where it is allowed.
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

constexpr long kX32 = 0x40000000;  // the other table of system calls of x86-64

// Children end at once.
void child(long result) {
  if (result == 0) _exit(0);
}

void call(const char* name) {
  const auto is = [&](const char* other) { return std::strcmp(name, other) == 0; };
  if (is("execve")) syscall(SYS_execve, "/nonexistent", nullptr, nullptr);
  if (is("execveat")) syscall(SYS_execveat, -1, "", nullptr, nullptr, 0);
#ifdef SYS_fork
  if (is("fork")) child(syscall(SYS_fork));
#endif
  if (is("clone")) child(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
  if (is("clone3")) {
    struct clone_args arguments {};
    arguments.exit_signal = SIGCHLD;
    child(syscall(SYS_clone3, &arguments, sizeof arguments));
  }
  if (is("ptrace")) syscall(SYS_ptrace, 16 /* PTRACE_ATTACH */, 0, 0, 0);
  if (is("process_vm_writev")) syscall(SYS_process_vm_writev, getpid(), 0, 0, 0, 0, 0);
  if (is("pidfd_getfd")) syscall(SYS_pidfd_getfd, -1, 0, 0);
  if (is("mount")) syscall(SYS_mount, 0, 0, 0, 0, 0);
  if (is("move_mount")) syscall(SYS_move_mount, -1, 0, -1, 0, 0);
  if (is("pivot_root")) syscall(SYS_pivot_root, 0, 0);
  if (is("chroot")) syscall(SYS_chroot, 0);
  if (is("unshare")) syscall(SYS_unshare, 1 /* no flag that there is */);
  if (is("setns")) syscall(SYS_setns, -1, 0);
  if (is("setuid")) syscall(SYS_setuid, -1);
  if (is("setresgid")) syscall(SYS_setresgid, -1, -1, -1);
  if (is("init_module")) syscall(SYS_init_module, 0, 0, 0);
  if (is("finit_module")) syscall(SYS_finit_module, -1, 0, 0);
  if (is("kexec_load")) syscall(SYS_kexec_load, 0, 99, 0, ~0UL);
  if (is("reboot")) syscall(SYS_reboot, 0, 0, 0, 0);
  if (is("swapon")) syscall(SYS_swapon, 0, 0);
  if (is("bpf")) syscall(SYS_bpf, 9999, 0, 0);
  if (is("perf_event_open")) syscall(SYS_perf_event_open, 0, 0, 0, 0, 0);
  if (is("userfaultfd")) syscall(SYS_userfaultfd, ~0);
  if (is("keyctl")) syscall(SYS_keyctl, 9999);
  if (is("io_uring_setup")) syscall(SYS_io_uring_setup, 0, 0);
  if (is("memfd_create")) syscall(SYS_memfd_create, 0, 0);
  if (is("listen")) syscall(SYS_listen, -1, 0);
  if (is("settimeofday")) syscall(SYS_settimeofday, 1, 1);
  if (is("sethostname")) syscall(SYS_sethostname, 0, -1);
  if (is("mmap of memory to write and run")) mmap(nullptr, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (is("prctl for core dumps")) prctl(PR_SET_DUMPABLE, 7, 0, 0, 0);
  if (is("ioctl that types")) syscall(SYS_ioctl, -1, 0x5412 /* TIOCSTI */, 0);
#ifdef __x86_64__
  if (is("a call of the x32 table")) syscall(SYS_getpid | kX32);
#endif
}

}  // namespace

extern "C" ssize_t read(int fd, void* buffer, size_t size) {
  static const auto next = reinterpret_cast<ssize_t (*)(int, void*, size_t)>(dlsym(RTLD_NEXT, "read"));
  const ssize_t length = next(fd, buffer, size);
  const auto* const words = static_cast<const std::uint32_t*>(buffer);  // struct fuse_in_header: len, opcode, ...
  if (length >= 40 && words[0] == static_cast<std::uint32_t>(length)) {
    const char* const trigger = std::getenv("FORBIDDEN_TRIGGER");
    if (trigger && access(trigger, F_OK) == 0) {
      const char* const name = std::getenv("FORBIDDEN_CALL");
      unlink(trigger);
      if (name) call(name);
    }
  }
  return length;
}
