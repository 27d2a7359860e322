#include "imafs/cli_run.h"

#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <optional>
#include <sstream>
#include <thread>

#include "imafs/attestation.h"
#include "imafs/cli_verify.h"
#include "imafs/entry_view.h"
#include "imafs/exit_code.h"
#include "imafs/file_hasher.h"
#include "imafs/journal_reader.h"
#include "imafs/mount_info.h"
#include "imafs/posix_file.h"
#include "imafs/unique_fd.h"
#include "imafs/version.h"

extern char** environ;

namespace imafs {
namespace {

constexpr int kNotFound = 127, kCannotRun = 126, kSignalled = 128;
constexpr const char* kRunDirectory = "/var/lib/imafs/run";
// Nobody else changes names in the tree we made for the command: the kernel may believe them longer than on a shared mount.
constexpr const char* kTimeout = "10";

int complain(const Error& error, ExitCode code = ExitCode::kUsage) {
  std::fprintf(stderr, "imafs: %s\n", printable(error.what).c_str());
  return static_cast<int>(code);
}

// The signals that end us end the command first; before there is one they are kept in mind, for what was begun has to be
// taken down. What a terminal sends to all of us is the command's to judge.
constexpr std::array kSignals{SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2};
volatile sig_atomic_t g_command = 0, g_signal = 0;
void pass_on(int signal) {
  if (g_command > 0) ::kill(static_cast<pid_t>(g_command), signal);
  else g_signal = signal;
}

class Signals {
 public:
  Signals() {
    struct sigaction action {};
    action.sa_handler = pass_on;
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
      ::sigaction(kSignals[i], nullptr, &before_[i]);
      if (before_[i].sa_handler != SIG_IGN) ::sigaction(kSignals[i], &action, nullptr);
    }
  }
  void block() {
    sigset_t all;
    ::sigfillset(&all);
    ::sigprocmask(SIG_BLOCK, &all, &mask_);
  }
  void unblock() const { ::sigprocmask(SIG_SETMASK, &mask_, nullptr); }
  // As they were when we were called: for the command.
  void restore() const {
    for (std::size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &before_[i], nullptr);
  }

 private:
  std::array<struct sigaction, kSignals.size()> before_{};
  sigset_t mask_{};
};

// A mount namespace of our own with the measured tree in it, and a directory for both.
class Stage {
 public:
  ~Stage() {
    if (!mount_.empty()) {
      for (const std::string& below : bound_) ::umount2(below.c_str(), MNT_DETACH);
      if (::umount2(mount_.c_str(), 0) != 0) ::umount2(mount_.c_str(), MNT_DETACH);
      wait_for_daemon();
    }
    if (!directory_.empty()) {
      std::error_code ignored;
      std::filesystem::remove_all(directory_, ignored);
    }
  }
  Stage() = default;
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  // An exit status: 0 if the mount stands.
  int make(const RunOptions& options);
  const std::string& mount() const { return mount_; }
  const std::string& state() const { return state_; }
  // In the child: the measured tree is all there is.
  static Status enter(const std::string& mount, const std::string& directory);

 private:
  int mount_tree(const RunOptions& options, const std::string& mount);
  void bind(const char* path);
  void cover_tmp(const std::string& here);
  void wait_for_daemon() const;
  std::string directory_, mount_, state_;
  std::vector<std::string> bound_;
};

int Stage::make(const RunOptions& options) {
  if (auto made = make_directories(kRunDirectory, 0700); !made) return complain(made.error(), ExitCode::kState);
  std::string directory = std::string(kRunDirectory) + "/XXXXXX";
  if (!::mkdtemp(directory.data())) return complain(errno_error("cannot make a directory in '" + std::string(kRunDirectory) + "'"), ExitCode::kState);
  directory_ = directory;
  state_ = options.state.empty() ? directory + "/state" : options.state;
  const std::string mount = directory + "/root";
  if (::mkdir(mount.c_str(), 0700) != 0) return complain(errno_error("cannot make '" + mount + "'"), ExitCode::kState);
  if (::unshare(CLONE_NEWNS) != 0) return complain(errno_error("cannot make a mount namespace (imafs run needs root)"), ExitCode::kMountFailed);
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return complain(errno_error("cannot make mounts private"), ExitCode::kMountFailed);
  if (const int code = mount_tree(options, mount); code != 0) return code;
  mount_ = mount;
  for (const char* path : {"/proc", "/dev", "/sys"}) bind(path);
  cover_tmp(std::filesystem::current_path().string());
  return 0;
}

// A /tmp of its own, which shows of the machine's only the directory that the command works in, measured.
void Stage::cover_tmp(const std::string& here) {
  const std::string tmp = mount_ + "/tmp";
  if (here == "/tmp") return;
  std::string kept;
  UniqueFd kept_fd;
  if (here.starts_with("/tmp/")) {
    kept = tmp + "/" + here.substr(5, here.find('/', 5) - 5);
    kept_fd.reset(::open(kept.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!kept_fd) return;
  }
  if (::mount("tmpfs", tmp.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777") != 0) return;
  bound_.insert(bound_.begin(), tmp);
  if (!kept_fd) return;
  if (::mkdir(kept.c_str(), 0755) == 0 && ::mount(ProcPath(kept_fd.get()).get(), kept.c_str(), nullptr, MS_BIND, nullptr) == 0) bound_.insert(bound_.begin(), kept);
}

int Stage::mount_tree(const RunOptions& options, const std::string& mount) {
  std::vector<std::string> words{"imafs", mount, "--backing", options.root, "--state", state_, "--tpm", options.tpm, "--timeout", kTimeout};
  if (!options.policy.empty()) words.insert(words.end(), {"--policy", options.policy});
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  // A process group of its own: a terminal's Ctrl-C must not leave half a mount behind.
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  pid_t child = 0;
  const int error = ::posix_spawn(&child, "/proc/self/exe", nullptr, &attributes, arguments.data(), environ);
  ::posix_spawnattr_destroy(&attributes);
  if (error != 0) {
    return complain(error_of(error, "cannot start the mount"), ExitCode::kMountFailed);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : static_cast<int>(ExitCode::kMountFailed);  // it has said why
}

void Stage::bind(const char* path) {
  const std::string target = mount_ + path;
  if (::mount(path, target.c_str(), nullptr, MS_BIND | MS_REC, nullptr) == 0) bound_.push_back(target);
}

// The daemon has the lock on the state directory as long as it lives.
void Stage::wait_for_daemon() const {
  (void)LogLock::of_directory(state_, std::chrono::seconds(3));
}

Status Stage::enter(const std::string& mount, const std::string& directory) {
  if (::unshare(CLONE_NEWNS) != 0) return fail(errno_error("cannot make a mount namespace"));
  if (::chdir(mount.c_str()) != 0) return fail(errno_error("cannot enter the measured tree"));
  if (::syscall(SYS_pivot_root, ".", ".") != 0) return fail(errno_error("cannot make the measured tree the root"));
  if (::umount2(".", MNT_DETACH) != 0) return fail(errno_error("cannot leave the old root"));
  if (::chdir(directory.c_str()) != 0 && ::chdir("/") != 0) return fail(errno_error("cannot enter '" + directory + "'"));
  return {};
}

// Runs it to its end; what it leaves running in the background ends with it.
int run_command(const std::vector<std::string>& command, const std::string& mount, Signals& signals) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return complain(errno_error("pipe"));
  UniqueFd reader(ends[0]), writer(ends[1]);
  const std::string directory = std::filesystem::current_path().string();
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  signals.block();  // none gets lost between here and the command
  const pid_t child = ::fork();
  if (child < 0) return complain(errno_error("fork"));
  if (child == 0) {
    signals.restore();
    signals.unblock();
    int code = 0;
    if (const auto entered = Stage::enter(mount, directory); entered) {
      std::vector<char*> words;
      for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
      words.push_back(nullptr);
      ::execvp(words[0], words.data());
      code = errno;
    } else {
      std::fprintf(stderr, "imafs: %s\n", printable(entered.error().what).c_str());
      code = -1;
    }
    (void)!::write(writer.get(), &code, sizeof code);
    std::_Exit(kNotFound);
  }
  g_command = child;
  if (g_signal != 0) ::kill(child, g_signal);
  ::signal(SIGINT, SIG_IGN);
  ::signal(SIGQUIT, SIG_IGN);
  signals.unblock();
  writer.reset();
  int failure = 0;
  ssize_t got = 0;
  do {
    got = ::read(reader.get(), &failure, sizeof failure);
  } while (got < 0 && errno == EINTR);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  g_command = 0;
  // Orphans came to us: end them, or the tree stays busy.
  for (int round = 0; round < 100; ++round) {
    const auto children = read_file("/proc/self/task/" + std::to_string(::getpid()) + "/children", 1 << 20);
    if (!children || children->empty()) break;
    std::istringstream pids(*children);
    for (pid_t pid = 0; pids >> pid;) ::kill(pid, round < 50 ? SIGTERM : SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    while (::waitpid(-1, nullptr, WNOHANG) > 0) {
    }
  }
  if (got == sizeof failure) {
    if (failure < 0) return static_cast<int>(ExitCode::kMountFailed);
    std::fprintf(stderr, "imafs: %s: %s\n", printable(command[0]).c_str(), std::generic_category().message(failure).c_str());
    return failure == ENOENT ? kNotFound : kCannotRun;
  }
  return WIFSIGNALED(status) ? kSignalled + WTERMSIG(status) : WEXITSTATUS(status);
}

template <class T>
void sort_once(std::vector<T>& items) {
  std::sort(items.begin(), items.end());
  items.erase(std::unique(items.begin(), items.end()), items.end());
}

// The path of a file that is (still) there, by its logged name, in which blanks are '_'. Empty: it may be there.
std::optional<std::string> path_of(const std::string& mount, const std::string& logged_name) {
  if (logged_name.starts_with("//")) return "";
  if (::access((mount + logged_name).c_str(), F_OK) == 0) return mount + logged_name;
  const std::size_t slash = logged_name.rfind('/');
  const std::string last = logged_name.substr(slash + 1);
  if (last.find('_') == std::string::npos) return std::nullopt;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(mount + logged_name.substr(0, slash), error)) {
    std::string name = entry.path().filename().string();
    std::replace(name.begin(), name.end(), ' ', '_');
    if (name == last) return entry.path().string();
  }
  if (error) return "";  // a directory with a blank in its name: not looked for
  return std::nullopt;
}

// SHA-1 of a file that still has the bytes that were read.
Bytes sha1_of(const std::string& path, const FileDigest& read) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return {};
  const auto same = hash_algorithm_named(read.algorithm);
  const auto now = same ? hash_file(fd.get(), *same) : Result<Digest>(fail(EINVAL, ""));
  if (!now || !std::equal(now->bytes().begin(), now->bytes().end(), read.digest.begin(), read.digest.end())) return {};
  const auto sha1 = hash_file(fd.get(), HashAlgorithm::kSha1);
  return sha1 ? Bytes(sha1->bytes().begin(), sha1->bytes().end()) : Bytes();
}

// Asked before the command runs: who waited an hour for a build should not learn then that the attestation has no place.
Status can_write(const std::string& path) {
  if (path.empty() || path == "-") return {};
  struct stat attr {};
  const bool is_directory = ::stat(path.c_str(), &attr) == 0 && S_ISDIR(attr.st_mode);
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  if (!is_directory && ::access(parent.empty() ? "." : parent.c_str(), W_OK | X_OK) == 0) return {};
  return fail(error_of(is_directory ? EISDIR : errno, "cannot write '" + path + "'"));
}

Status collect(const RunOptions& options, const Stage& stage, RunRecord& run) {
  const auto journal = read_journal(stage.state() + "/journal");
  if (!journal) return fail(journal.error());
  std::uint64_t index = journal->trimmed;
  for (const JournalEntryRead& entry : journal->entries) {
    EntryView view = view_of(entry.entry);
    if (!view.is_file(index++)) continue;
    if (entry.entry.is_violation) run.violations.push_back(std::move(view.name));
    else if (const auto path = path_of(stage.mount(), view.name)) {
      run.read.push_back({std::move(view.name), std::move(view.algorithm), std::move(view.digest), {}});
      if (options.format == "spdx") run.read.back().sha1 = sha1_of(*path, run.read.back());
    } else {
      run.gone.push_back({"", std::move(view.algorithm), std::move(view.digest), {}});
    }
  }
  sort_once(run.read);
  sort_once(run.gone);
  sort_once(run.violations);
  for (const std::string& subject : options.subjects) {
    const UniqueFd fd(::open(subject.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) return fail(errno_error("subject '" + subject + "'"));
    const auto digest = hash_file(fd.get(), HashAlgorithm::kSha256);
    if (!digest) return fail(digest.error());
    run.subjects.push_back({subject, "sha256", Bytes(digest->bytes().begin(), digest->bytes().end()), {}});
  }
  if (auto policy = read_file(stage.mount() + "/.ima/policy", 64 << 20)) run.policy = std::move(*policy);
  return {};
}

}  // namespace

int run_run(const RunOptions& options) {
  RunRecord run;
  if (attest(run, options.format).empty() && options.format != "text") {
    return complain({EINVAL, "unknown format '" + options.format + "': in-toto, slsa, spdx or text"});
  }
  if (auto writable = can_write(options.attestation); !writable) return complain(writable.error());
  Signals signals;
  Stage stage;
  const int made = stage.make(options);
  if (g_signal != 0) return kSignalled + g_signal;
  if (made != 0) return made;
  run.version = kVersion;
  run.command = options.command;
  run.directory = std::filesystem::current_path().string();
  std::array<char, HOST_NAME_MAX + 1> host{};
  ::gethostname(host.data(), host.size() - 1);
  run.host = host.data();
  run.started = std::time(nullptr);
  run.exit_code = run_command(options.command, stage.mount(), signals);
  run.finished = std::time(nullptr);

  VerifyOptions verify;
  verify.target = stage.mount();
  verify.quiet = true;
  if (options.tpm != "none") {
    if (const ExitCode verdict = run_verify(verify); verdict != ExitCode::kOk) return static_cast<int>(verdict);
  }
  if (!options.attestation.empty()) {
    if (auto collected = collect(options, stage, run); !collected) return complain(collected.error());
    const std::string text = attest(run, options.format);
    if (options.attestation == "-") {
      std::fwrite(text.data(), 1, text.size(), stdout);
      std::fflush(stdout);
    } else if (auto written = write_file_atomically(options.attestation, text, 0644); !written) {
      return complain(written.error());
    }
  }
  return run.exit_code;
}

}  // namespace imafs
