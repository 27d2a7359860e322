#include "imafs/cli_run.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <optional>
#include <thread>

#include "imafs/attestation.h"
#include "imafs/bytes.h"
#include "imafs/cli_verify.h"
#include "imafs/exit_code.h"
#include "imafs/file_hasher.h"
#include "imafs/mount_info.h"
#include "imafs/posix_file.h"
#include "imafs/unique_fd.h"
#include "imafs/version.h"
#include "run_init.h"
#include "run_record.h"
#include "run_stage.h"

namespace imafs {
namespace {

constexpr int kSignalled = 128;
constexpr std::size_t kMaxAttestation = std::size_t{1} << 30;

int complain(const Error& error, ExitCode code = ExitCode::kUsage) {
  std::fprintf(stderr, "imafs: %s\n", printable(error.what).c_str());
  return static_cast<int>(code);
}

// The signals that end us end the command first. What a terminal sends to all of us is the command's to judge.
constexpr std::array kSignals{SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2};
volatile sig_atomic_t g_to_command = -1, g_signal = 0;
void pass_on(int signal) {
  const int before = errno;
  const auto byte = static_cast<std::uint8_t>(signal);
  g_signal = signal;
  (void)!::send(static_cast<int>(g_to_command), &byte, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
  errno = before;
}

class Signals {
 public:
  // Signals go as bytes to `to_command` from here on. They are blocked until unblock().
  explicit Signals(int to_command) {
    sigset_t all;
    ::sigfillset(&all);
    ::sigprocmask(SIG_BLOCK, &all, &mask_);
    g_to_command = to_command;
    struct sigaction action {};
    action.sa_handler = pass_on;
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
      ::sigaction(kSignals[i], nullptr, &before_[i]);
      if (before_[i].sa_handler != SIG_IGN) ::sigaction(kSignals[i], &action, nullptr);
    }
    ::signal(SIGCHLD, SIG_DFL);
  }
  ~Signals() { g_to_command = -1; }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  const sigset_t& mask() const { return mask_; }
  void unblock() const { ::sigprocmask(SIG_SETMASK, &mask_, nullptr); }
  // As they were when we were called: for the command.
  void restore() const {
    for (std::size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &before_[i], nullptr);
  }

 private:
  std::array<struct sigaction, kSignals.size()> before_{};
  sigset_t mask_{};
};

// The terminal's foreground, which a shell that was the command leaves with its own process group.
class Foreground {
 public:
  Foreground() : terminal_(::open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC)), group_(terminal_ ? ::tcgetpgrp(terminal_.get()) : -1) {}
  ~Foreground() {
    if (group_ != ::getpgrp()) return;
    ::signal(SIGTTOU, SIG_IGN);
    if (::tcgetpgrp(terminal_.get()) != group_) ::tcsetpgrp(terminal_.get(), group_);
    ::signal(SIGTTOU, SIG_DFL);
  }
  Foreground(const Foreground&) = delete;
  Foreground& operator=(const Foreground&) = delete;

 private:
  const UniqueFd terminal_;
  const pid_t group_;
};

// Asked before the command runs: who waited an hour for a build should not learn then that the attestation has no place.
Status can_write(const std::string& path) {
  if (path.empty() || path == "-") return {};
  struct stat attr {};
  const bool is_there = ::stat(path.c_str(), &attr) == 0;
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  int problem = 0;
  if (is_there && S_ISDIR(attr.st_mode)) problem = EISDIR;
  else if (is_there && !S_ISREG(attr.st_mode)) problem = ::access(path.c_str(), W_OK) == 0 ? 0 : errno;
  else if (::access(parent.empty() ? "." : parent.c_str(), W_OK | X_OK) != 0) problem = errno;
  return problem == 0 ? Status() : fail(error_of(problem, "cannot write '" + path + "'"));
}

// What the stage tells the process that was called, as packets: a kind, then for kText a part of the attestation.
enum class News : std::uint8_t {
  kBegan,    // the command has begun
  kEnded,    // with this exit status
  kText,     // a part of the attestation
  kFailed,   // an ExitCode: it has been said why there is no attestation, or no command
  kDone,     // nothing more comes
};
struct Packet {
  News news = News::kDone;
  std::int32_t number = 0;
  std::int64_t input = -1;
};
constexpr std::size_t kPart = 32 << 10;

void send_packet(int to, const Packet& packet, std::string_view part = {}) {
  std::string bytes(sizeof packet + part.size(), '\0');
  std::memcpy(bytes.data(), &packet, sizeof packet);
  std::memcpy(bytes.data() + sizeof packet, part.data(), part.size());
  while (::send(to, bytes.data(), bytes.size(), MSG_NOSIGNAL) < 0 && errno == EINTR) {
  }
}

// The files that the command made. One that is missing is said, and the attestation goes without it.
ExitCode hash_subjects(const RunOptions& options, RunRecord& run) {
  ExitCode code = ExitCode::kOk;
  for (const std::string& subject : options.subjects) {
    const UniqueFd fd(::open(subject.c_str(), O_RDONLY | O_CLOEXEC));
    const auto digest = fd ? hash_file(fd.get(), HashAlgorithm::kSha256) : Result<Digest>(fail(errno_error("subject '" + subject + "'")));
    if (digest) run.subjects.push_back({subject, "sha256", Bytes(digest->bytes().begin(), digest->bytes().end()), {}});
    else code = static_cast<ExitCode>(complain({digest.error().code, digest.error().what + ": it is not in the attestation"}));
  }
  return code;
}

// Verifies the log and makes the attestation of it.
ExitCode attest_run(const RunOptions& options, const Stage& stage, const LogMark& mark, RunRecord& run, std::string& text) {
  if (options.tpm != "none") {
    VerifyOptions verify;
    verify.target = stage.mount();
    verify.quiet = true;
    // The TPM is the one that --tpm named: it may be of any kind.
    if (const auto info = read_mount_info(stage.mount())) verify.tcti = info->tcti;
    if (const ExitCode verdict = run_verify(verify); verdict != ExitCode::kOk) return verdict;
  }
  if (options.attestation.empty()) return ExitCode::kOk;
  if (auto collected = collect_run(stage.mount(), stage.state(), mark, options.format, run); !collected) {
    const ExitCode code = collected.error().code == EBADMSG ? ExitCode::kMismatch : ExitCode::kUsage;
    return static_cast<ExitCode>(complain({collected.error().code, "no attestation: " + collected.error().what}, code));
  }
  const ExitCode code = hash_subjects(options, run);
  text = attest(run, options.format);
  return code;
}

// The first process of the stage's PID namespace. Its end is the end of all that is in it.
void run_stage(const RunOptions& options, const std::string& directory, const sigset_t& mask, UniqueFd signals, UniqueFd news) noexcept {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  char none = 0;
  if (::recv(news.get(), &none, 1, MSG_PEEK | MSG_DONTWAIT) == 0) return;  // who called us ended before that
  const auto give_up = [&](int code) { send_packet(news.get(), {News::kFailed, code, -1}); };
  Stage stage;
  if (const int code = stage.make(options); code != 0) return give_up(code);
  const auto mark = mark_log(stage.mount(), stage.state());
  if (!mark) return give_up(complain(mark.error(), ExitCode::kState));
  RunRecord run;
  run.version = kVersion;
  run.command = options.command;
  run.directory = directory;
  std::array<char, HOST_NAME_MAX + 1> host{};
  ::gethostname(host.data(), host.size() - 1);
  run.host = host.data();
  run.started = std::time(nullptr);
  std::error_code error;
  const RunCommand command{options.command, directory, stage.mount(), std::filesystem::canonical(options.root, error).string(), mask};
  const auto end = stage.run(command, std::move(signals), [&] { send_packet(news.get(), {News::kBegan, 0, -1}); });
  run.finished = std::time(nullptr);
  if (!end) return give_up(static_cast<int>(ExitCode::kMountFailed));
  run.exit_code = end->status;
  send_packet(news.get(), {News::kEnded, end->status, end->input});
  std::string text;
  const ExitCode code = attest_run(options, stage, *mark, run, text);
  for (std::string_view rest = text; !rest.empty(); rest.remove_prefix(std::min(kPart, rest.size()))) {
    send_packet(news.get(), {News::kText, 0, -1}, rest.substr(0, kPart));
  }
  if (code != ExitCode::kOk) give_up(static_cast<int>(code));
  send_packet(news.get(), {News::kDone, 0, -1});
}

struct Outcome {
  std::optional<int> status;  // of the command
  int failure = 0;
  bool is_whole = false;
  std::string text;
};

Outcome hear(int news) {
  Outcome outcome;
  std::string bytes(sizeof(Packet) + kPart, '\0');
  while (!outcome.is_whole) {
    const ssize_t got = ::recv(news, bytes.data(), bytes.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < static_cast<ssize_t>(sizeof(Packet))) break;
    Packet packet;
    std::memcpy(&packet, bytes.data(), sizeof packet);
    if (packet.news == News::kBegan) {
      ::signal(SIGINT, SIG_IGN);
      ::signal(SIGQUIT, SIG_IGN);
    } else if (packet.news == News::kEnded) {
      outcome.status = packet.number;
      if (packet.input >= 0) ::lseek(STDIN_FILENO, packet.input, SEEK_SET);
    } else if (packet.news == News::kFailed) {
      outcome.failure = packet.number;
    } else if (packet.news == News::kText && outcome.text.size() < kMaxAttestation) {
      outcome.text.append(bytes, sizeof packet, static_cast<std::size_t>(got) - sizeof packet);
    }
    outcome.is_whole = packet.news == News::kDone;
  }
  return outcome;
}

// All of the stage has ended when its first process has. A process that the kernel holds up is not waited for for ever.
void wait_for_end(pid_t stage) {
  constexpr auto kPatience = std::chrono::seconds(15);
  const auto until = std::chrono::steady_clock::now() + kPatience;
  while (::waitpid(stage, nullptr, WNOHANG) == 0 && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// Where an attestation goes that cannot go where it should: evidence of an hour's build is not thrown away.
ExitCode write_attestation(const RunOptions& options, const std::string& text) {
  Status written = options.attestation == "-" ? write_all(STDOUT_FILENO, as_bytes(text)) : write_file_atomically(options.attestation, text, 0644);
  if (!written && options.attestation == "-") written = fail(error_of(written.error().code, "cannot write the attestation"));
  if (written) return ExitCode::kOk;
  (void)complain(written.error());
  std::string kept = std::string(kRunDirectory) + "/attestation-XXXXXX";
  const UniqueFd fd(::mkostemp(kept.data(), O_CLOEXEC));
  if (!fd || !write_all(fd.get(), as_bytes(text))) return ExitCode::kUsage;
  std::fprintf(stderr, "imafs: the attestation is in '%s'\n", kept.c_str());
  return ExitCode::kUsage;
}

}  // namespace

int run_run(const RunOptions& options) {
  if (attest(RunRecord(), options.format).empty() && options.format != "text") {
    return complain({EINVAL, "unknown format '" + options.format + "': in-toto, slsa, spdx or text"});
  }
  if (auto writable = can_write(options.attestation); !writable) return complain(writable.error());
  std::error_code no_directory;
  const std::string directory = std::filesystem::current_path(no_directory).string();
  if (no_directory) return complain({no_directory.value(), "the directory to run in: " + no_directory.message()});
  if (auto made = make_directories(kRunDirectory, 0700); !made) return complain(made.error(), ExitCode::kState);
  std::array<int, 2> signal_ends{}, news_ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, signal_ends.data()) != 0) return complain(errno_error("socketpair"), ExitCode::kMountFailed);
  const UniqueFd to_command(signal_ends[0]);
  UniqueFd signals_end(signal_ends[1]);
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, news_ends.data()) != 0) return complain(errno_error("socketpair"), ExitCode::kMountFailed);
  UniqueFd news(news_ends[0]), stage_end(news_ends[1]);
  const Foreground foreground;
  const Signals signals(to_command.get());
  const auto stage = static_cast<pid_t>(::syscall(SYS_clone, SIGCHLD | CLONE_NEWPID | CLONE_NEWNS, nullptr, nullptr, nullptr, nullptr));
  if (stage == 0) {
    signals.restore();
    ::close(to_command.get());
    news.reset();
    run_stage(options, directory, signals.mask(), std::move(signals_end), std::move(stage_end));
    std::_Exit(0);
  }
  const int problem = errno;
  signals_end.reset();
  stage_end.reset();
  signals.unblock();
  if (stage < 0) return complain(error_of(problem, "cannot make namespaces (imafs run needs root)"), ExitCode::kMountFailed);
  const Outcome outcome = hear(news.get());
  wait_for_end(stage);
  if (!outcome.status) {
    if (g_signal != 0) return kSignalled + g_signal;
    if (outcome.failure == 0) return complain({EIO, "the process that has the mount was killed"}, ExitCode::kMountFailed);
    return outcome.failure;
  }
  int failure = outcome.failure;
  if (failure == 0 && !outcome.is_whole) failure = complain({EIO, "the process that has the mount was killed: no attestation"}, ExitCode::kMountFailed);
  if (!outcome.text.empty()) {
    if (const ExitCode written = write_attestation(options, outcome.text); written != ExitCode::kOk && failure == 0) failure = static_cast<int>(written);
  }
  // The command's own failure comes first: it is what the caller of a build looks for.
  return *outcome.status != 0 ? *outcome.status : failure;
}

}  // namespace imafs
