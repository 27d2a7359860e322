#include "imafs/progress.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>

namespace imafs {
namespace {

constexpr std::int64_t kRedrawNs = 100'000'000;

std::int64_t now_ns() { return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

Progress::Progress(std::string unit, std::uint64_t total) : unit_(std::move(unit)), total_(total), shown_(::isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (drawn_ns_ != 0) std::fputs("\r\033[K", stderr);
}

void Progress::add(std::uint64_t items, std::uint64_t bytes) {
  if (!shown_) return;
  const std::lock_guard lock(mutex_);
  items_ += items;
  bytes_ += bytes;
  const std::int64_t now = now_ns();
  if (now - drawn_ns_ < kRedrawNs) return;
  drawn_ns_ = now;
  draw();
}

void Progress::draw() {
  std::string text = "\r\033[K" + std::to_string(items_);
  if (total_ != 0) text += " of " + std::to_string(total_) + " " + unit_ + ", " + std::to_string(100 * items_ / total_) + " %";
  else text += " " + unit_;
  if (bytes_ != 0) text += ", " + std::to_string(bytes_ >> 20) + " MiB";
  std::fputs(text.c_str(), stderr);
}

}  // namespace imafs
