#include "run_stage.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <chrono>
#include <cstdio>

#include "imafs/bytes.h"
#include "imafs/exit_code.h"
#include "imafs/log_lock.h"
#include "imafs/posix_file.h"

extern char** environ;

namespace imafs {
namespace {

// Nobody else changes names in the tree we made for the command: the kernel may believe them longer than on a shared mount.
constexpr const char* kTimeout = "10";
constexpr auto kDaemonEnds = std::chrono::seconds(3);

int refuse(const Error& error, ExitCode code) {
  std::fprintf(stderr, "imafs: %s\n", printable(error.what).c_str());
  return static_cast<int>(code);
}

// The view that the daemon takes of the machine leaves out what cannot be bound: neither the log nor the TPM's state, which are
// on the stage, can be reached through the mount.
Status cover_run_directory() {
  if (::mount("tmpfs", kRunDirectory, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=700") != 0 ||
      ::mount(nullptr, kRunDirectory, nullptr, MS_UNBINDABLE, nullptr) != 0) {
    return fail(errno_error("cannot cover '" + std::string(kRunDirectory) + "'"));
  }
  return {};
}

// A state directory of the user's is used under another name; at its own the command sees an empty directory.
Status take_state(const std::string& given, const std::string& state) {
  if (auto made = make_directories(given, 0700); !made) return made;
  if (::mount(given.c_str(), state.c_str(), nullptr, MS_BIND, nullptr) != 0 || ::mount(nullptr, state.c_str(), nullptr, MS_UNBINDABLE, nullptr) != 0 ||
      ::mount("tmpfs", given.c_str(), "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=500,size=4k") != 0) {
    return fail(errno_error("cannot use the state directory '" + given + "'"));
  }
  return {};
}

// A name of its own for each run: a TPM is told from others by the path of its socket.
std::string new_name() {
  std::uint32_t random = 0;
  (void)!::getrandom(&random, sizeof random, 0);
  std::array<char, 9> text{};
  std::snprintf(text.data(), text.size(), "%08x", random);
  return text.data();
}

}  // namespace

Stage::~Stage() {
  if (mount_.empty()) return;
  if (::umount2(mount_.c_str(), 0) != 0) ::umount2(mount_.c_str(), MNT_DETACH);
  (void)LogLock::of_directory(state_, kDaemonEnds);  // the daemon has it as long as it lives
}

int Stage::make(const RunOptions& options) {
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return refuse(errno_error("cannot make mounts private"), ExitCode::kMountFailed);
  if (::mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) != 0) return refuse(errno_error("cannot make a /proc"), ExitCode::kMountFailed);
  if (auto covered = cover_run_directory(); !covered) return refuse(covered.error(), ExitCode::kMountFailed);
  const std::string directory = std::string(kRunDirectory) + "/" + new_name();
  const std::string mount = directory + "/root";
  state_ = directory + "/state";
  for (const std::string& made : {directory, mount, state_}) {
    if (::mkdir(made.c_str(), 0700) != 0) return refuse(errno_error("cannot make '" + made + "'"), ExitCode::kState);
  }
  if (!options.state.empty()) {
    if (auto taken = take_state(options.state, state_); !taken) return refuse(taken.error(), ExitCode::kState);
  }
  if (const int code = mount_tree(options, mount); code != 0) return code;
  mount_ = mount;
  if (const auto lock = read_file(state_ + "/lock", 64)) std::from_chars(lock->data(), lock->data() + lock->size(), daemon_);
  return 0;
}

int Stage::mount_tree(const RunOptions& options, const std::string& mount) {
  // Every file has an entry of its own, also one whose entry would be another one's: "a b" and "a_b" are one name in a log.
  std::vector<std::string> words{"imafs", mount, "--backing", options.root, "--state", state_, "--tpm", options.tpm, "--timeout", kTimeout,
                                 "--read-only-control", "--no-dedupe"};
  if (!options.policy.empty()) words.insert(words.end(), {"--policy", options.policy});
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  // A process group of its own: a terminal's Ctrl-C must not leave half a mount behind.
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  sigset_t none;
  ::sigemptyset(&none);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
  pid_t child = 0;
  const int error = ::posix_spawn(&child, "/proc/self/exe", nullptr, &attributes, arguments.data(), environ);
  ::posix_spawnattr_destroy(&attributes);
  if (error != 0) return refuse(error_of(error, "cannot start the mount"), ExitCode::kMountFailed);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status)) return WEXITSTATUS(status);  // it has said why
  return refuse({EIO, "the mount was killed"}, ExitCode::kMountFailed);
}

std::optional<RunEnd> Stage::run(const RunCommand& command, UniqueFd signals, const std::function<void()>& began) {
  std::array<int, 2> ends{};
  sigset_t child_ends;
  ::sigemptyset(&child_ends);
  ::sigaddset(&child_ends, SIGCHLD);
  const UniqueFd children(::signalfd(-1, &child_ends, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!children || ::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    (void)refuse(errno_error("socketpair"), ExitCode::kMountFailed);
    return std::nullopt;
  }
  const UniqueFd result(ends[0]);
  UniqueFd its_end(ends[1]);
  const auto init = static_cast<pid_t>(::syscall(SYS_clone, SIGCHLD | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC, nullptr, nullptr, nullptr, nullptr));
  if (init < 0) {
    (void)refuse(errno_error("cannot make namespaces for the command"), ExitCode::kMountFailed);
    return std::nullopt;
  }
  if (init == 0) run_as_init(command, std::move(signals), std::move(its_end));
  its_end.reset();
  signals.reset();

  std::optional<RunEnd> end;
  bool has_ended = false, daemon_ended = false;
  std::array<struct pollfd, 2> watched{{{result.get(), POLLIN, 0}, {children.get(), POLLIN, 0}}};
  while (!has_ended) {
    if (::poll(watched.data(), watched.size(), -1) < 0) continue;
    struct signalfd_siginfo info {};
    if (watched[1].revents != 0) (void)!::read(children.get(), &info, sizeof info);
    for (pid_t ended = 0; (ended = ::waitpid(-1, nullptr, WNOHANG)) > 0;) {
      has_ended = has_ended || ended == init;
      if (!daemon_has_ended(ended)) continue;
      // What is read from now on would be measured by nobody.
      daemon_ended = true;
      ::kill(init, SIGKILL);
    }
    RunEnd told;
    while (::recv(result.get(), &told, sizeof told, MSG_DONTWAIT) == static_cast<ssize_t>(sizeof told)) {
      if (told.kind == RunEnd::Kind::kBegan) began();
      else end = told;
    }
    if ((watched[0].revents & POLLHUP) != 0) watched[0].fd = -1;
  }
  if (daemon_ended) std::fprintf(stderr, "imafs: the process that measures ended, and the command with it\n");
  else if (!end) std::fprintf(stderr, "imafs: the command's first process was killed, and the command with it\n");
  if (daemon_ended || !end || end->kind != RunEnd::Kind::kEnded) return std::nullopt;
  return end;
}

}  // namespace imafs
