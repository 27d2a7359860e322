#include "imafs/swtpm_process.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "imafs/digest.h"
#include "imafs/posix_file.h"
#include "imafs/unique_fd.h"

namespace imafs {
namespace {

// sun_path holds 108 bytes with its NUL, and ".ctrl" must fit behind.
constexpr std::size_t kMaxSocketPath = 102;
constexpr auto kStopLimit = std::chrono::seconds(3);
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
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  struct sockaddr_un address {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return {};
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  if (::connect(fd.get(), reinterpret_cast<const struct sockaddr*>(&address), sizeof address) != 0) return {};
  return fd;
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
  process->was_running_ = process->find();
  if (!process->was_running_) {
    if (auto started = process->start(); !started) return fail(started.error());
  }
  return process;
}

bool SwtpmProcess::is_ours(pid_t pid) const {
  // Not a requester of ours but a child of an earlier mount: its command line is safe to read.
  const auto command = read_file("/proc/" + std::to_string(pid) + "/cmdline", 1 << 16);
  return command && command->find("swtpm") != std::string::npos && command->find("path=" + socket_ + '\0') != std::string::npos;
}

pid_t SwtpmProcess::noted_pid() const {
  const auto text = read_file(directory_ + "/pid", 64);
  pid_t pid = 0;
  if (text) std::from_chars(text->data(), text->data() + text->size(), pid);
  return pid;
}

bool SwtpmProcess::find() {
  const pid_t pid = noted_pid();
  if (pid <= 0 || !is_ours(pid) || !connect_to(socket_ + ".ctrl")) return false;
  pid_ = pid;
  return true;
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
    const auto log = read_file(directory_ + "/log", 1 << 16);
    return fail(EIO, "swtpm did not start in '" + directory_ + "'" + (log && !log->empty() ? ": " + log->substr(0, log->find('\n')) : ""));
  }
  if (!find()) return fail(EIO, "swtpm started in '" + directory_ + "' and does not answer");
  return {};
}

Status SwtpmProcess::revive() {
  if (find()) return {};
  // One that lives and cannot be reached (its sockets are gone) holds the state: it has to go first.
  if (const pid_t pid = noted_pid(); pid > 0 && is_ours(pid)) {
    ::kill(pid, SIGTERM);
    const auto until = std::chrono::steady_clock::now() + kStopLimit;
    while (is_ours(pid) && std::chrono::steady_clock::now() < until) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return start();
}

void SwtpmProcess::stop() {
  if (pid_ == 0 || !is_ours(pid_)) return;
  if (const UniqueFd control = connect_to(socket_ + ".ctrl")) {
    Bytes command;
    append_be32(command, kCommandShutdown);
    (void)write_all(control.get(), command);
    std::uint32_t answer = 0;
    (void)!::read(control.get(), &answer, sizeof answer);
  }
  const auto until = std::chrono::steady_clock::now() + kStopLimit;
  bool asked = false;
  while (is_ours(pid_) && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    if (!asked && std::chrono::steady_clock::now() + kStopLimit / 2 > until) {
      ::kill(pid_, SIGTERM);
      asked = true;
    }
  }
  // The directory may have been removed and made anew, and be another one's by now.
  if (noted_pid() == pid_ || noted_pid() == 0) {
    ::unlink(socket_.c_str());
    ::unlink((socket_ + ".ctrl").c_str());
    ::unlink((directory_ + "/pid").c_str());
  }
  pid_ = 0;
}

}  // namespace imafs
