#include "imafs/lease_keeper.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <utility>
#include <vector>

namespace imafs {
namespace {

constexpr long kTickNs = 250'000'000;
constexpr std::int64_t kUpToDateNs = 500'000'000;  // half of the shortest lease-break-time

int break_signal() { return SIGRTMIN + 3; }

sigset_t our_signals() {
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, break_signal());
  ::sigaddset(&signals, SIGIO);
  return signals;
}

std::int64_t coarse_now_ns() {
  struct timespec now {};
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

LeaseKeeper::Answer set_lease(int fd, int type) {
  if (::fcntl(fd, F_SETLEASE, type) == 0) return LeaseKeeper::Answer::kGranted;
  return errno == EAGAIN || errno == EBUSY ? LeaseKeeper::Answer::kRefused : LeaseKeeper::Answer::kUnsupported;
}

}  // namespace

void LeaseKeeper::block_signals() {
  const sigset_t signals = our_signals();
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

LeaseKeeper::LeaseKeeper(std::function<void(Breaks)> on_breaks, std::function<void()> on_tick)
    : on_breaks_(std::move(on_breaks)), on_tick_(std::move(on_tick)) {}

std::unique_ptr<LeaseKeeper> LeaseKeeper::start(std::function<void(Breaks)> on_breaks, std::function<void()> on_tick) {
  std::unique_ptr<LeaseKeeper> keeper(new LeaseKeeper(std::move(on_breaks), std::move(on_tick)));
  keeper->thread_ = std::thread([raw = keeper.get()] { raw->run(); });
  keeper->thread_id_.wait(0);
  return keeper;
}

LeaseKeeper::~LeaseKeeper() {
  stopping_ = true;
  ::pthread_kill(thread_.native_handle(), break_signal());  // or the end would wait for the next tick
  thread_.join();
}

void LeaseKeeper::run() {
  block_signals();
  const sigset_t signals = our_signals();
  thread_id_ = static_cast<int>(::syscall(SYS_gettid));
  thread_id_.notify_all();

  const struct timespec tick {0, kTickNs};
  struct timespec last {};
  ::clock_gettime(CLOCK_MONOTONIC, &last);
  while (!stopping_) {
    siginfo_t info{};
    const int signal = ::sigtimedwait(&signals, &info, &tick);
    if (stopping_) break;
    hand_over(signal, info.si_fd);
    struct timespec now {};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    const long passed = (now.tv_sec - last.tv_sec) * 1'000'000'000 + (now.tv_nsec - last.tv_nsec);
    if (passed < kTickNs) continue;
    last = now;
    on_tick_();
  }
}

// All breaks that wait, at once: what is done about the first one must not keep the others from being known.
void LeaseKeeper::hand_over(int signal, int fd) {
  const sigset_t signals = our_signals();
  const struct timespec no_time {0, 0};
  Breaks breaks(std::in_place);
  std::int64_t before = 0;
  do {
    if (signal == SIGIO) breaks.reset();  // the queue overflowed
    if (signal > 0 && breaks) breaks->push_back(fd);
    siginfo_t info{};
    before = coarse_now_ns();
    signal = ::sigtimedwait(&signals, &info, &no_time);
    fd = info.si_fd;
  } while (signal > 0);
  if (!breaks || !breaks->empty()) on_breaks_(std::move(breaks));
  seen_empty_ns_ = before;
}

bool LeaseKeeper::is_up_to_date() const { return coarse_now_ns() - seen_empty_ns_ < kUpToDateNs; }

bool LeaseKeeper::stands(int fd) { return ::fcntl(fd, F_GETLEASE) != F_UNLCK; }

void LeaseKeeper::adopt(int fd) {
  ::fcntl(fd, F_SETSIG, break_signal());
  struct f_owner_ex owner {F_OWNER_TID, thread_id_.load()};
  ::fcntl(fd, F_SETOWN_EX, &owner);
}

LeaseKeeper::Answer LeaseKeeper::watch(int fd) { return set_lease(fd, F_RDLCK); }

LeaseKeeper::Answer LeaseKeeper::watch_if_alone(int fd) {
  const Answer answer = set_lease(fd, F_WRLCK);
  if (answer != Answer::kGranted) return answer;
  return set_lease(fd, F_RDLCK);
}

void LeaseKeeper::drop(int fd) { ::fcntl(fd, F_SETLEASE, F_UNLCK); }

}  // namespace imafs
