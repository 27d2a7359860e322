#include "imafs/swtpm_process.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "imafs/digest.h"
#include "imafs/fd_reserve.h"
#include "imafs/posix_file.h"
#include "imafs/unique_fd.h"

namespace imafs {
namespace {

// sun_path holds 108 bytes with its NUL, and ".ctrl" must fit behind.
constexpr std::size_t kMaxSocketPath = 102;
constexpr std::chrono::milliseconds kStopLimit{3000}, kAnswerLimit{1000};
constexpr std::uint32_t kCommandShutdown = 3;  // CMD_SHUTDOWN of swtpm's control channel

// Beside the state, unless the path would be too long for a socket: then under the runtime directory.
Result<std::string> socket_path(const std::string& directory) {
  std::string path = directory + "/sock";
  if (path.size() <= kMaxSocketPath) return path;
  const auto runtime = runtime_directory();
  if (!runtime) return fail(runtime.error());
  return *runtime + "/" + file_name_for(directory);
}

CommandLine words_of(const std::string& directory, const std::string& socket) {
  return {"swtpm",    "socket", "--tpm2", "--daemon", "--tpmstate", "dir=" + directory,
          "--server", "type=unixio,path=" + socket, "--ctrl", "type=unixio,path=" + socket + ".ctrl",
          "--flags",  "not-need-init,startup-clear", "--pid", "file=" + directory + "/pid",
          "--log",    "file=" + directory + "/log,level=1"};
}

UniqueFd connect_to(const std::string& path) {
  UniqueFd fd = FdReserve::of_process().make([] { return ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0); });
  if (!fd) return {};
  struct sockaddr_un address {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return {};
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  if (::connect(fd.get(), reinterpret_cast<const struct sockaddr*>(&address), sizeof address) != 0) return {};
  return fd;
}

// Why nothing can be written in `directory`; success if it can.
Status can_write(const std::string& directory) {
  const std::string path = directory + "/.room";
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  const Bytes some(4096, 1);
  Status written = fd ? write_all(fd.get(), some) : Status(fail(errno_error("cannot write '" + path + "'")));
  if (!written && fd) written = fail(error_of(written.error().code, "cannot write in '" + directory + "'"));
  ::unlink(path.c_str());
  return written;
}

}  // namespace

SwtpmProcess::SwtpmProcess(std::string directory, std::string socket, RunProgram run)
    : directory_(std::move(directory)), socket_(std::move(socket)), tcti_("swtpm:path=" + socket_), run_(std::move(run)) {}

Result<CommandLine> SwtpmProcess::command_line(const std::string& directory) {
  auto socket = socket_path(directory);
  if (!socket) return fail(socket.error());
  return words_of(directory, *socket);
}

Result<std::unique_ptr<SwtpmProcess>> SwtpmProcess::find_or_start(const std::string& directory, RunProgram run) {
  if (auto made = make_directories(directory, 0700); !made) return fail(made.error());
  auto socket = socket_path(directory);
  if (!socket) return fail(socket.error());
  std::unique_ptr<SwtpmProcess> process(new SwtpmProcess(directory, std::move(*socket), std::move(run)));
  auto found = process->find();
  if (!found) return fail(found.error());
  auto answers = *found ? process->answers() : Result<bool>(false);
  if (!answers) return fail(answers.error());
  process->was_running_ = *answers;
  if (process->was_running_) return process;
  if (*found) {
    if (auto ended = process->end_useless(); !ended) return fail(ended.error());
  }
  if (auto started = process->start(); !started) return fail(started.error());
  return process;
}

Result<bool> SwtpmProcess::is_ours(pid_t pid) const {
  // Not a requester of ours but a child of an earlier mount: its command line is safe to read.
  const auto command = read_file("/proc/" + std::to_string(pid) + "/cmdline", 1 << 16);
  if (!command) {
    const int code = command.error().code;
    if (code == ENOENT || code == ESRCH || code == EFBIG || code == EACCES) return false;
    return fail(command.error());
  }
  return command->find("swtpm") != std::string::npos && command->find("path=" + socket_ + '\0') != std::string::npos;
}

Result<pid_t> SwtpmProcess::noted_pid() const {
  const auto text = read_file(directory_ + "/pid", 64);
  if (!text && text.error().code != ENOENT) return fail(text.error());
  pid_t pid = 0;
  if (text) std::from_chars(text->data(), text->data() + text->size(), pid);
  return pid;
}

// Where the note of it is lost (a full disk, another one that has removed it), its command line still names our socket.
Result<pid_t> SwtpmProcess::pid_by_command() const {
  const std::unique_ptr<DIR, int (*)(DIR*)> processes(::opendir("/proc"), ::closedir);
  if (!processes) return fail(errno_error("cannot look for swtpm in /proc"));
  while (const struct dirent* const entry = ::readdir(processes.get())) {
    pid_t pid = 0;
    const std::string_view name(entry->d_name);
    if (std::from_chars(name.data(), name.data() + name.size(), pid).ec != std::errc() || pid <= 0) continue;
    std::string comm = read_file("/proc/" + std::string(name) + "/comm", 64).value_or("");
    if (comm != "swtpm\n") continue;
    const auto ours = is_ours(pid);
    if (!ours) return fail(ours.error());
    if (*ours) return pid;
  }
  return 0;
}

bool SwtpmProcess::has_ended(std::chrono::milliseconds wait) const {
  struct pollfd watched {process_.get(), POLLIN, 0};
  return process_ && ::poll(&watched, 1, static_cast<int>(wait.count())) > 0;
}

Result<bool> SwtpmProcess::adopt(pid_t pid) {
  if (pid <= 0) return false;
  UniqueFd process = FdReserve::of_process().make([&] { return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)); });
  if (!process && errno == ESRCH) return false;
  if (!process) return fail(errno_error("cannot watch swtpm, process " + std::to_string(pid)));
  // Asked for after the pidfd was made: the number may have been another one's before.
  const auto ours = is_ours(pid);
  if (!ours || !*ours) return ours;
  process_ = std::move(process);
  pid_ = pid;
  if (has_ended({})) {
    process_.reset();
    pid_ = 0;
    return false;
  }
  return true;
}

Result<bool> SwtpmProcess::find() {
  if (process_ && !has_ended({})) return true;
  process_.reset();
  pid_ = 0;
  const auto noted = noted_pid();
  if (!noted) return fail(noted.error());
  auto found = adopt(*noted);
  if (!found || *found) return found;
  const auto other = pid_by_command();
  if (!other) return fail(other.error());
  return adopt(*other);
}

// Whether its control socket takes a connection. An error says nothing about it.
Result<bool> SwtpmProcess::answers() const {
  const UniqueFd control = connect_to(socket_ + ".ctrl");
  if (control || errno == EAGAIN) return true;  // EAGAIN: others wait for it already
  if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) return fail(errno_error("cannot speak to swtpm"));
  return false;
}

// One that lives and cannot be reached (its sockets are gone), or is in failure mode, holds the state: it has to go first.
Status SwtpmProcess::end_useless() {
  (void)::syscall(SYS_pidfd_send_signal, process_.get(), SIGTERM, nullptr, 0);
  if (!has_ended(kStopLimit)) {
    (void)::syscall(SYS_pidfd_send_signal, process_.get(), SIGKILL, nullptr, 0);
    if (!has_ended(kStopLimit)) return fail(ETIMEDOUT, "swtpm, process " + std::to_string(pid_) + ", does not end");
  }
  process_.reset();
  pid_ = 0;
  return {};
}

Status SwtpmProcess::start() {
  ::unlink(socket_.c_str());
  ::unlink((socket_ + ".ctrl").c_str());
  const auto started = run_(words_of(directory_, socket_));
  if (!started && started.error().code == ENOENT) return fail(ENOENT, "swtpm is not installed; install it, or choose a TPM with --tpm");
  if (!started) return fail(started.error());
  // It forks once its sockets stand; the one that was started ends then.
  const int status = *started;
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    if (auto room = can_write(directory_); !room) return fail(room.error().code, "swtpm did not start: " + room.error().what);
    const auto log = read_file(directory_ + "/log", 1 << 16);
    return fail(EIO, "swtpm did not start in '" + directory_ + "'" + (log && !log->empty() ? ": " + log->substr(0, log->find('\n')) : ""));
  }
  const auto found = find();
  if (!found) return fail(found.error());
  const auto here = *found ? answers() : Result<bool>(false);
  if (!here) return fail(here.error());
  if (!*here) return fail(EIO, "swtpm started in '" + directory_ + "' and does not answer");
  return {};
}

Status SwtpmProcess::revive(bool has_failed) {
  const auto found = find();
  if (!found) return fail(found.error());
  if (*found) {
    const auto here = answers();
    if (!here) return fail(here.error());
    if (*here && !has_failed) return {};
    if (auto ended = end_useless(); !ended) return ended;
  }
  return start();
}

void SwtpmProcess::stop() {
  if (!process_) return;
  if (const UniqueFd control = connect_to(socket_ + ".ctrl")) {
    Bytes command;
    append_be32(command, kCommandShutdown);
    (void)write_all(control.get(), command);
    struct pollfd answer {control.get(), POLLIN, 0};
    (void)::poll(&answer, 1, static_cast<int>(kAnswerLimit.count()));
  }
  if (!has_ended(kStopLimit / 2)) {
    (void)::syscall(SYS_pidfd_send_signal, process_.get(), SIGTERM, nullptr, 0);
    (void)has_ended(kStopLimit / 2);
  }
  // The directory may have been removed and made anew, and be another one's by now.
  const auto noted = noted_pid();
  if (noted && (*noted == pid_ || *noted == 0)) {
    ::unlink(socket_.c_str());
    ::unlink((socket_ + ".ctrl").c_str());
    ::unlink((directory_ + "/pid").c_str());
  }
  process_.reset();
  pid_ = 0;
}

}  // namespace imafs
