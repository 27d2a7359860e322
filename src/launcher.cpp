#include "imafs/launcher.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "imafs/bytes.h"
#include "imafs/posix_file.h"

namespace imafs {

// What the launcher answers: an error of starting the program, or 0 and its status.
struct LauncherAnswer {
  int error = 0;
  int status = 0;
};

namespace {

using Answer = LauncherAnswer;
constexpr std::chrono::seconds kAnswerLimit{10}, kEndLimit{3};

std::vector<std::string> plain_environment() {
  std::vector<std::string> variables;
  for (const char* name : {"PATH", "LD_LIBRARY_PATH"}) {
    if (const char* const value = ::getenv(name)) variables.push_back(std::string(name) + "=" + value);
  }
  return variables;
}

std::vector<char*> pointers_to(const std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (const std::string& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

Answer spawn_and_wait(const CommandLine& command) {
  posix_spawn_file_actions_t files;
  ::posix_spawn_file_actions_init(&files);
  for (int fd = 0; fd < 3; ++fd) ::posix_spawn_file_actions_addopen(&files, fd, "/dev/null", O_RDWR, 0);
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 34)
  ::posix_spawn_file_actions_addclosefrom_np(&files, 3);
#endif
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  sigset_t none, all;
  ::sigemptyset(&none);
  ::sigfillset(&all);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setsigdefault(&attributes, &all);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  const auto arguments = pointers_to(command);
  const auto variables = plain_environment();
  pid_t child = 0;
  Answer answer;
  answer.error = ::posix_spawnp(&child, command[0].c_str(), &files, &attributes, arguments.data(), pointers_to(variables).data());
  ::posix_spawnattr_destroy(&attributes);
  ::posix_spawn_file_actions_destroy(&files);
  if (answer.error != 0) return answer;
  while (::waitpid(child, &answer.status, 0) < 0 && errno == EINTR) {
  }
  return answer;
}

Result<int> result_of(const Answer& answer, const CommandLine& command) {
  if (answer.error != 0) return fail(error_of(answer.error, "cannot run " + command[0]));
  return answer.status;
}

[[noreturn]] void serve(int socket, const std::vector<CommandLine>& commands, const std::function<void()>& restrict,
                        const RunProgram& perform) noexcept {
  ::setsid();
  ::prctl(PR_SET_NAME, "imafs-launcher");
  // It ends when the daemon does, which may be asked to end by the same signal and have something to run then.
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) ::signal(signal, SIG_IGN);
  (void)!::chdir("/");
  // Nobody waits for the end of what the caller had open.
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  for (int fd = 0; fd < 3; ++fd) ::dup2(null.get(), fd);
  if (socket != 3) {
    ::dup3(socket, 3, O_CLOEXEC);
    socket = 3;
  }
  ::close_range(4, ~0U, 0);
  restrict();
  for (;;) {
    std::uint8_t number = 0;
    const ssize_t got = ::read(socket, &number, 1);
    if (got < 0 && errno == EINTR) continue;
    if (got != 1) std::_Exit(0);
    const auto done = number < commands.size() ? perform(commands[number]) : Result<int>(fail(EPERM, ""));
    const Answer answer{done ? 0 : done.error().code, done ? *done : 0};
    if (::send(socket, &answer, sizeof answer, MSG_NOSIGNAL) != sizeof answer) std::_Exit(0);
  }
}

}  // namespace

Result<int> look_at_mount(const CommandLine& command) {
  struct stat attr {};
  if (::stat((command.at(0) + command.at(1)).c_str(), &attr) != 0) return fail(errno_error("stat"));
  return 0;
}

Result<int> run_program(const CommandLine& command) { return result_of(spawn_and_wait(command), command); }

Result<std::unique_ptr<Launcher>> Launcher::start(std::vector<CommandLine> commands, const std::function<void()>& restrict,
                                                   const RunProgram& perform) {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) return fail(errno_error("socketpair"));
  UniqueFd ours(ends[0]), theirs(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) return fail(errno_error("fork"));
  if (child == 0) serve(theirs.release(), commands, restrict, perform);
  return std::unique_ptr<Launcher>(new Launcher(std::move(commands), std::move(ours), child));
}

Launcher::~Launcher() {
  socket_.reset();
  const auto until = std::chrono::steady_clock::now() + kEndLimit;
  pid_t ended = 0;
  while ((ended = ::waitpid(process_, nullptr, WNOHANG)) == 0 && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (ended != 0) return;
  ::kill(process_, SIGKILL);
  while (::waitpid(process_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

Status Launcher::hear(LauncherAnswer& answer) {
  const auto until = std::chrono::steady_clock::now() + kAnswerLimit;
  while (unanswered_ > 0) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
    struct pollfd watched {socket_.get(), POLLIN, 0};
    const int ready = ::poll(&watched, 1, static_cast<int>(std::max<std::int64_t>(0, left.count())));
    if (ready < 0 && errno == EINTR) continue;
    if (ready == 0) return fail(ETIMEDOUT, "it has not ended within " + std::to_string(kAnswerLimit.count()) + " s");
    const ssize_t got = ::recv(socket_.get(), &answer, sizeof answer, MSG_DONTWAIT);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got != sizeof answer) return fail(EPIPE, "the process that runs programs is gone");
    --unanswered_;
  }
  return {};
}

Result<int> Launcher::run(const CommandLine& command) {
  const auto found = std::find(commands_.begin(), commands_.end(), command);
  if (found == commands_.end()) return fail(EPERM, "'" + command[0] + "' was not named before the daemon gave up running programs");
  const auto number = static_cast<std::uint8_t>(found - commands_.begin());
  const std::lock_guard lock(mutex_);
  Answer answer;
  // What was not waited for any longer comes first.
  Status heard = hear(answer);
  if (heard && ::send(socket_.get(), &number, 1, MSG_NOSIGNAL) != 1) heard = fail(EPIPE, "the process that runs programs is gone");
  if (heard) {
    ++unanswered_;
    heard = hear(answer);
  }
  if (!heard) return fail(heard.error().code, "cannot run " + command[0] + ": " + heard.error().what);
  return result_of(answer, command);
}

}  // namespace imafs
