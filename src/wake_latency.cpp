#include "wake_latency.h"

#include <fcntl.h>
#include <unistd.h>

namespace imafs {
namespace {

// Microseconds that a processor may take to wake up. Source: include/linux/pm_qos.h.
constexpr std::int32_t kStayAwake = 0;
constexpr std::int32_t kNoMatter = 2'000'000'000;

}  // namespace

WakeLatency::WakeLatency(bool enabled) {
  if (!enabled || ::sysconf(_SC_NPROCESSORS_ONLN) > kManyProcessors) return;  // all of the machine, not ours alone
  device_.reset(::open("/dev/cpu_dma_latency", O_WRONLY | O_CLOEXEC));
  if (device_) thread_ = std::thread([this] { run(); });
}

WakeLatency::~WakeLatency() {
  if (!thread_.joinable()) return;
  stopping_ = true;
  look();
  thread_.join();
}

void WakeLatency::look() {
  is_quiet_ = false;
  is_quiet_.notify_one();
}

void WakeLatency::run() {
  bool held = false;
  while (!stopping_) {
    const std::uint64_t before = requests();
    std::this_thread::sleep_for(kInterval);
    const bool many = requests() - before >= kMany;
    if (many != held) ask_for(many ? kStayAwake : kNoMatter);
    held = many;
    if (many) continue;
    is_quiet_ = true;
    if (!stopping_) is_quiet_.wait(true);
  }
}

void WakeLatency::ask_for(std::int32_t microseconds) { (void)!::write(device_.get(), &microseconds, sizeof microseconds); }

}  // namespace imafs
