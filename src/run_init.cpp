#include "run_init.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string_view>
#include <thread>

#include "imafs/bytes.h"
#include "imafs/posix_file.h"
#include "imafs/result.h"

namespace imafs {
namespace {

constexpr int kNotFound = 127, kCannotRun = 126, kSignalled = 128;

// What a program without special hardware opens in /dev. /dev/fuse is what an `imafs run` inside this one needs.
constexpr std::array kDevices{"null", "zero", "full", "random", "urandom", "tty", "fuse"};

bool make_file(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  return static_cast<bool>(fd);
}

bool mount_new(const char* type, const std::string& on, unsigned long flags, const char* options) {
  return ::mount(type, on.c_str(), type, flags, options) == 0;
}

// The machine's terminals and shared memory are ways for bytes that nobody measures, so /dev is a new one. Where the tree has
// no such directory there is nothing to cover.
Status make_devices(const std::string& dev) {
  struct stat attr {};
  if (::lstat(dev.c_str(), &attr) != 0 || !S_ISDIR(attr.st_mode)) return {};
  std::string terminal;
  for (int fd = 0; fd < 3 && terminal.empty(); ++fd) {
    std::array<char, 64> name{};
    if (::isatty(fd) == 1 && ::ttyname_r(fd, name.data(), name.size()) == 0) terminal = name.data();
  }
  if (!mount_new("tmpfs", dev, MS_NOSUID | MS_NOEXEC, "mode=755,size=64k")) return fail(errno_error("cannot make a /dev"));
  const auto bind = [&](const std::string& from, const std::string& to) {
    return ::access(from.c_str(), F_OK) == 0 && make_file(to) && ::mount(from.c_str(), to.c_str(), nullptr, MS_BIND, nullptr) == 0;
  };
  for (const char* const name : kDevices) bind(std::string("/dev/") + name, dev + "/" + name);
  if (!terminal.empty()) bind(terminal, dev + "/console");
  for (const auto& [name, target] : {std::pair<const char*, const char*>{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"},
                                     {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"}, {"ptmx", "pts/ptmx"}}) {
    (void)::symlink(target, (dev + "/" + name).c_str());
  }
  (void)::mkdir((dev + "/pts").c_str(), 0755);
  (void)mount_new("devpts", dev + "/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620");
  (void)::mkdir((dev + "/shm").c_str(), 0755);
  if (!mount_new("tmpfs", dev + "/shm", MS_NOSUID | MS_NODEV, "mode=1777")) return fail(errno_error("cannot make a /dev/shm"));
  return {};
}

// The machine's /sys as it is mounted there, without what is no view of the kernel: that would be a way past the mount.
Status show_sys(const std::string& sys) {
  if (::mount("/sys", sys.c_str(), nullptr, MS_BIND | MS_REC, nullptr) != 0) return {};
  const auto text = read_file("/proc/self/mountinfo", 64 << 20);
  if (!text) return fail(text.error());
  constexpr std::array<std::string_view, 15> views{"sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "bpf", "fusectl", "configfs",
                                                   "pstore", "efivarfs", "selinuxfs", "smackfs", "resctrl", "binfmt_misc"};
  std::istringstream lines(*text);
  std::vector<std::string> others;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string word, point, type;
    words >> word >> word >> word >> word >> point;
    while (words >> word && word != "-") {
    }
    words >> type;
    const bool is_view = std::find(views.begin(), views.end(), type) != views.end();
    if (!is_view && point.starts_with(sys + "/")) others.push_back(point);
  }
  // A name that mountinfo writes in octal is not found here, and then /sys goes as a whole.
  for (auto other = others.rbegin(); other != others.rend(); ++other) {
    if (::umount2(other->c_str(), MNT_DETACH) != 0 && errno != ENOENT && errno != EINVAL) return fail(errno_error("cannot leave '" + *other + "' out"));
    if (other->find('\\') != std::string::npos && ::umount2(sys.c_str(), MNT_DETACH) != 0) return fail(errno_error("cannot leave /sys out"));
  }
  return {};
}

// A /tmp of its own, which shows of the machine's only the directory that the command works in, measured.
Status cover_tmp(const std::string& tmp, const std::string& here) {
  struct stat attr {};
  if (here == "/tmp" || ::lstat(tmp.c_str(), &attr) != 0 || !S_ISDIR(attr.st_mode)) return {};
  std::string kept;
  UniqueFd kept_fd;
  if (here.starts_with("/tmp/")) {
    kept = tmp + "/" + here.substr(5, here.find('/', 5) - 5);
    kept_fd.reset(::open(kept.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!kept_fd) return {};
  }
  if (!mount_new("tmpfs", tmp, MS_NOSUID | MS_NODEV, "mode=1777")) return fail(errno_error("cannot make a /tmp"));
  if (!kept_fd) return {};
  if (::mkdir(kept.c_str(), 0755) != 0 || ::mount(ProcPath(kept_fd.get()).get(), kept.c_str(), nullptr, MS_BIND, nullptr) != 0) {
    return fail(errno_error("cannot show '" + here + "'"));
  }
  return {};
}

// Standard input that is a file of the tree is opened anew, measured. Standard output stays as it is: those who share it share
// its offset. A directory would be a way out of the tree.
void take_over_descriptors(const RunCommand& command, bool& has_new_input) {
  for (int fd = 0; fd < 3; ++fd) {
    struct stat attr {};
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0 || ::fstat(fd, &attr) != 0) continue;
    if (S_ISDIR(attr.st_mode) || (flags & O_PATH) != 0) {
      const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
      if (null) ::dup2(null.get(), fd);
      else ::close(fd);
      continue;
    }
    if (fd != 0 || !S_ISREG(attr.st_mode) || (flags & O_ACCMODE) != O_RDONLY) continue;
    std::array<char, PATH_MAX> text{};
    const ssize_t length = ::readlink(ProcPath(fd).get(), text.data(), text.size());
    if (length <= 0) continue;
    const std::string path(text.data(), static_cast<std::size_t>(length));
    const std::string below = command.root == "/" ? "" : command.root;
    if (!path.starts_with(below + "/")) continue;
    const UniqueFd anew(::open((command.mount + path.substr(below.size())).c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    struct stat found {};
    const bool is_same = anew && ::fstat(anew.get(), &found) == 0 && S_ISREG(found.st_mode) && found.st_size == attr.st_size &&
                         found.st_mtim.tv_sec == attr.st_mtim.tv_sec && found.st_mtim.tv_nsec == attr.st_mtim.tv_nsec;
    const off_t offset = ::lseek(fd, 0, SEEK_CUR);
    if (!is_same || offset < 0 || ::lseek(anew.get(), offset, SEEK_SET) != offset || ::dup2(anew.get(), fd) != fd) continue;
    ::fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
    has_new_input = true;
  }
}

Status enter(const RunCommand& command, bool& has_new_input) {
  take_over_descriptors(command, has_new_input);
  const std::string& mount = command.mount;
  if (auto made = make_devices(mount + "/dev"); !made) return made;
  if (auto shown = show_sys(mount + "/sys"); !shown) return shown;
  if (auto covered = cover_tmp(mount + "/tmp", command.directory); !covered) return covered;
  struct stat attr {};
  if (::lstat((mount + "/proc").c_str(), &attr) == 0 && S_ISDIR(attr.st_mode) && !mount_new("proc", mount + "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr)) {
    return fail(errno_error("cannot make a /proc"));
  }
  if (::chdir(mount.c_str()) != 0) return fail(errno_error("cannot enter the measured tree"));
  if (::syscall(SYS_pivot_root, ".", ".") != 0) return fail(errno_error("cannot make the measured tree the root"));
  if (::umount2(".", MNT_DETACH) != 0) return fail(errno_error("cannot leave the old root"));
  if (::chdir(command.directory.c_str()) != 0 && ::chdir("/") != 0) return fail(errno_error("cannot enter '" + command.directory + "'"));
  return {};
}

// Moves the two descriptors to 3 and 4 and closes all above.
void keep_only(UniqueFd& first, UniqueFd& second) {
  const UniqueFd a(::fcntl(first.get(), F_DUPFD_CLOEXEC, 10)), b(::fcntl(second.get(), F_DUPFD_CLOEXEC, 10));
  (void)first.release();
  (void)second.release();
  ::dup3(a.get(), 3, O_CLOEXEC);
  ::dup3(b.get(), 4, O_CLOEXEC);
  first.reset(3);
  second.reset(4);
  (void)::syscall(SYS_close_range, 5U, ~0U, 0U);
}

[[noreturn]] void execute(const RunCommand& command, int failure) {
  ::sigprocmask(SIG_SETMASK, &command.mask, nullptr);
  // open_by_handle_at(2) leads from any descriptor to all of its file system. CAP_DAC_OVERRIDE is as good for names.
  ::prctl(PR_CAPBSET_DROP, CAP_DAC_READ_SEARCH);
  std::vector<char*> arguments;
  for (const std::string& word : command.words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  ::execvp(arguments[0], arguments.data());
  const int code = errno;
  (void)!::write(failure, &code, sizeof code);
  std::_Exit(kNotFound);
}

// Ends what the command left in the background: politely, then for good.
void end_others() {
  constexpr int kRounds = 100;
  constexpr auto kPause = std::chrono::milliseconds(10);
  for (int round = 0; round < kRounds; ++round) {
    if (::kill(-1, round < kRounds / 2 ? SIGTERM : SIGKILL) != 0 && errno == ESRCH) break;
    if (round < kRounds / 2) ::kill(-1, SIGCONT);  // who is stopped takes no SIGTERM
    while (::waitpid(-1, nullptr, WNOHANG) > 0) {
    }
    if (::kill(-1, 0) != 0 && errno == ESRCH) break;
    std::this_thread::sleep_for(kPause);
  }
}

// Waits for `child`, whoever else ends meanwhile, and hands signals on to it.
int wait_for(pid_t child, int signals, int children) {
  std::array<struct pollfd, 2> watched{{{signals, POLLIN, 0}, {children, POLLIN, 0}}};
  for (;;) {
    int status = 0;
    for (pid_t ended = 0; (ended = ::waitpid(-1, &status, WNOHANG)) > 0;) {
      if (ended == child) return status;
    }
    if (::poll(watched.data(), watched.size(), -1) < 0) continue;
    struct signalfd_siginfo info {};
    if (watched[1].revents != 0) (void)!::read(children, &info, sizeof info);
    if (watched[0].revents == 0) continue;
    std::uint8_t signal = 0;
    if (::recv(signals, &signal, 1, MSG_DONTWAIT) == 1) ::kill(child, signal);
    else std::_Exit(kSignalled);  // nobody waits for the command any more; the kernel ends the rest
  }
}

}  // namespace

[[noreturn]] void run_as_init(const RunCommand& command, UniqueFd signals, UniqueFd result) noexcept {
  keep_only(signals, result);
  const auto tell = [&](RunEnd end) { (void)::send(result.get(), &end, sizeof end, MSG_NOSIGNAL); };
  sigset_t child_ends;
  ::sigemptyset(&child_ends);
  ::sigaddset(&child_ends, SIGCHLD);
  ::sigprocmask(SIG_BLOCK, &child_ends, nullptr);
  bool has_new_input = false;
  std::array<int, 2> ends{};
  Status entered = enter(command, has_new_input);
  const UniqueFd children(::signalfd(-1, &child_ends, SFD_CLOEXEC | SFD_NONBLOCK));
  if (entered && (!children || ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)) entered = fail(errno_error("socketpair"));
  const pid_t child = entered ? ::fork() : -1;
  if (entered && child < 0) entered = fail(errno_error("fork"));
  if (!entered) {
    std::fprintf(stderr, "imafs: %s\n", printable(entered.error().what).c_str());
    tell({RunEnd::Kind::kNoCommand, 0, -1});
    std::_Exit(1);
  }
  if (child == 0) {
    ::close(ends[0]);
    execute(command, ends[1]);
  }
  ::close(ends[1]);
  tell({RunEnd::Kind::kBegan, 0, -1});
  int status = wait_for(child, signals.get(), children.get());
  int failure = 0;
  RunEnd end{RunEnd::Kind::kEnded, WIFSIGNALED(status) ? kSignalled + WTERMSIG(status) : WEXITSTATUS(status), -1};
  if (::recv(ends[0], &failure, sizeof failure, MSG_DONTWAIT) == static_cast<ssize_t>(sizeof failure)) {
    std::fprintf(stderr, "imafs: %s\n", printable(error_of(failure, command.words[0]).what).c_str());
    end.status = failure == ENOENT ? kNotFound : kCannotRun;
  }
  end_others();
  if (has_new_input) end.input = ::lseek(0, 0, SEEK_CUR);
  tell(end);
  std::_Exit(0);
}

}  // namespace imafs
