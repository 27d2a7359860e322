// The system calls that the daemon makes once it serves. What is harmless is listed generously, because C libraries choose
// differently from version to version; what could leave the process (programs, other processes, namespaces, mounts, modules,
// identities) is not.
#include <linux/prctl.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <array>
#include <cerrno>
#include <memory>
#include <span>

#include "imafs/privileges.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IMAFS_SANITIZED 1  // these run a tracer and more when they report
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define IMAFS_SANITIZED 1
#endif
#endif

namespace imafs {
namespace {

constexpr const char* kFiles[] = {
    "access", "chdir", "chmod", "chown", "close", "close_range", "copy_file_range", "creat", "dup", "dup2", "dup3", "faccessat", "faccessat2",
    "fadvise64", "fallocate", "fanotify_init", "fanotify_mark", "fchdir", "fchmod", "fchmodat", "fchown", "fchownat", "fcntl", "fdatasync",
    "fgetxattr", "flistxattr", "flock", "fremovexattr", "fsetxattr", "fstat", "fstatfs", "fsync", "ftruncate", "futimesat", "getcwd",
    "getdents", "getdents64", "getxattr", "inotify_add_watch", "inotify_init1", "inotify_rm_watch", "lchown", "lgetxattr", "link", "linkat",
    "listxattr", "llistxattr", "lremovexattr", "lseek", "lsetxattr", "lstat", "mkdir", "mkdirat", "mknod", "mknodat", "mount_setattr", "name_to_handle_at",
    "newfstatat", "open", "openat", "openat2", "open_by_handle_at", "pread64", "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2", "read",
    "readahead", "readlink", "readlinkat", "readv", "removexattr", "rename", "renameat", "renameat2", "rmdir", "sendfile", "setxattr", "splice",
    "stat", "statfs", "statx", "symlink", "symlinkat", "sync", "sync_file_range", "syncfs", "tee", "truncate", "umask", "umount2", "unlink",
    "unlinkat", "utime", "utimensat", "utimes", "vmsplice", "write", "writev"};

constexpr const char* kMemoryAndThreads[] = {
    "arch_prctl", "brk", "capget", "capset", "exit", "exit_group", "futex", "futex_waitv", "get_mempolicy", "get_robust_list", "getcpu",
    "getegid", "geteuid", "getgid", "getgroups", "getpgid", "getpgrp", "getpid", "getppid", "getpriority", "getresgid", "getresuid",
    "getrlimit", "getrusage", "getsid", "gettid", "getuid", "ioprio_get", "ioprio_set", "kill", "madvise", "mbind", "membarrier", "mincore",
    "mlock", "mlock2", "mlockall", "mremap", "msync", "munlock", "munlockall", "munmap", "pidfd_open", "pidfd_send_signal", "pkey_alloc",
    "pkey_free", "prlimit64", "restart_syscall", "rseq", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo",
    "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_tgsigqueueinfo", "sched_get_priority_max", "sched_get_priority_min",
    "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_setaffinity", "sched_setattr", "sched_setparam",
    "sched_setscheduler", "sched_yield", "set_mempolicy", "set_robust_list", "set_tid_address", "setfsgid", "setfsuid", "setgroups",
    "setpriority", "setrlimit", "sigaltstack", "sysinfo", "tgkill", "tkill", "uname", "wait4", "waitid"};

constexpr const char* kTimeAndMessages[] = {
    "alarm", "clock_getres", "clock_gettime", "clock_nanosleep", "connect", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2",
    "epoll_wait", "eventfd2", "getitimer", "getpeername", "getrandom", "getsockname", "getsockopt", "gettimeofday", "nanosleep", "pause",
    "pipe", "pipe2", "poll", "ppoll", "pselect6", "recvfrom", "recvmmsg", "recvmsg", "select", "sendmmsg", "sendmsg", "sendto", "setitimer",
    "setsockopt", "shutdown", "signalfd4", "socket", "socketpair", "bind", "time", "timer_create", "timer_delete", "timer_getoverrun",
    "timer_gettime", "timer_settime", "timerfd_create", "timerfd_gettime", "timerfd_settime", "times"};

// Younger than the libseccomp of Debian 12, with the number that all architectures share.
constexpr int kYoung[] = {
    451 /* cachestat */,     452 /* fchmodat2 */,    453 /* map_shadow_stack */, 454 /* futex_wake */,    455 /* futex_wait */,
    456 /* futex_requeue */, 457 /* statmount */,    458 /* listmount */,        462 /* mseal */,         463 /* setxattrat */,
    464 /* getxattrat */,    465 /* listxattrat */,  466 /* removexattrat */,    468 /* file_getattr */,  469 /* file_setattr */};

constexpr const char* kUring[] = {"io_uring_setup", "io_uring_enter", "io_uring_register"};
constexpr const char* kPrograms[] = {"execve", "fork", "vfork"};

constexpr int kHarmlessPrctl[] = {PR_SET_NAME,      PR_GET_NAME,          PR_GET_DUMPABLE,     PR_CAPBSET_READ, PR_GET_SECCOMP, PR_SET_PDEATHSIG,
                                  PR_GET_PDEATHSIG, PR_SET_NO_NEW_PRIVS,  PR_GET_NO_NEW_PRIVS, PR_SET_TIMERSLACK, PR_GET_TIMERSLACK, PR_GET_TID_ADDRESS,
                                  0x53564d41 /* PR_SET_VMA: names of mappings */};

class Filter {
 public:
  Filter() : context_(::seccomp_init(SCMP_ACT_KILL_PROCESS), ::seccomp_release) {}

  // Names that this libseccomp or this architecture does not have are passed over: nobody can make these calls.
  template <std::size_t count>
  void allow(const char* const (&names)[count]) {
    for (const char* const name : names) allow_number(::seccomp_syscall_resolve_name(name));
  }
  void allow_number(int number) {
    if (number >= 0) add(SCMP_ACT_ALLOW, number, {});
  }
  void allow_if(const char* name, const struct scmp_arg_cmp& condition) { add(SCMP_ACT_ALLOW, ::seccomp_syscall_resolve_name(name), {&condition, 1}); }
  void answer(const char* name, int error) { add(SCMP_ACT_ERRNO(static_cast<std::uint32_t>(error)), ::seccomp_syscall_resolve_name(name), {}); }

  int load() {
    if (!context_) return -ENOMEM;
    if (error_ != 0) return error_;
    ::seccomp_attr_set(context_.get(), SCMP_FLTATR_CTL_NNP, 1);
    ::seccomp_attr_set(context_.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    ::seccomp_attr_set(context_.get(), SCMP_FLTATR_CTL_OPTIMIZE, 2);  // a binary tree
    // Nothing foreign runs in this process: it needs no protection of one thread's speculation from another's, which is slow.
    ::seccomp_attr_set(context_.get(), SCMP_FLTATR_CTL_SSB, 1);
    if (const int error = ::seccomp_attr_set(context_.get(), SCMP_FLTATR_CTL_TSYNC, 1); error != 0) return error;
    return ::seccomp_load(context_.get());
  }

 private:
  void add(std::uint32_t action, int number, std::span<const struct scmp_arg_cmp> conditions) {
    if (number == __NR_SCMP_ERROR || !context_) return;
    const int error = ::seccomp_rule_add_array(context_.get(), action, number, static_cast<unsigned>(conditions.size()), conditions.data());
    if (error != 0 && error_ == 0) error_ = error;
  }

  std::unique_ptr<void, void (*)(scmp_filter_ctx)> context_;
  int error_ = 0;
};

void add_rules(Filter& filter, const FilterOptions& options) {
  filter.allow(kFiles);
  filter.allow(kMemoryAndThreads);
  filter.allow(kTimeAndMessages);
  for (const int number : kYoung) filter.allow_number(number);
  if (options.io_uring) filter.allow(kUring);
  if (options.programs) filter.allow(kPrograms);

  // Threads, not processes. The arguments of clone3(2) are in memory, where no filter looks: the C library falls back to clone(2).
  filter.answer("clone3", ENOSYS);
  if (options.programs) {
    filter.allow_number(::seccomp_syscall_resolve_name("clone"));
  } else {
    filter.allow_if("clone", SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));
  }
  filter.allow_if("unshare", SCMP_A0(SCMP_CMP_EQ, CLONE_FS));  // a umask for each thread
  // Memory is writable or executable. What a library maps to run it maps so from a file.
  constexpr int write_and_run = PROT_WRITE | PROT_EXEC;
  for (const char* const name : {"mmap", "mprotect", "pkey_mprotect"}) {
    for (const int allowed : {0, PROT_WRITE, PROT_EXEC}) filter.allow_if(name, SCMP_A2(SCMP_CMP_MASKED_EQ, write_and_run, static_cast<scmp_datum_t>(allowed)));
  }
  for (const int number : kHarmlessPrctl) filter.allow_if("prctl", SCMP_A0(SCMP_CMP_EQ, static_cast<scmp_datum_t>(number)));
  filter.allow_if("ioctl", SCMP_A1(SCMP_CMP_NE, TIOCSTI));  // typing into the caller's terminal
}

}  // namespace

Status filter_system_calls([[maybe_unused]] const FilterOptions& options) {
#ifdef IMAFS_SANITIZED
  return fail(ENOSYS, "this build has a sanitizer, which makes system calls of its own");
#else
  Filter filter;
  add_rules(filter, options);
  if (const int error = filter.load(); error != 0) return fail(error_of(-error, "cannot filter system calls"));
  return {};
#endif
}

}  // namespace imafs
