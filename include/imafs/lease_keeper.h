// Leases on backing files: the kernel's count of writers (and readers), seen from userspace, and a
// call before anybody else starts to write. fcntl(2), F_SETLEASE.
//
// Thread-safe. Callbacks run on the keeper's own thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "imafs/result.h"

namespace imafs {

class LeaseKeeper {
 public:
  // The descriptors whose leases are being broken, all that are known by now; nothing: any may be, the queue of signals
  // overflowed. A number may have been used again since: stands() says what is true.
  using Breaks = std::optional<std::vector<int>>;
  // `on_breaks`: somebody wants to write to these files and is held until drop(fd), or until the kernel takes the lease away
  // (lease-break-time). It must not wait for anything. `on_tick`: about four times a second.
  static std::unique_ptr<LeaseKeeper> start(std::function<void(Breaks)> on_breaks, std::function<void()> on_tick);
  // For the calling thread and those it starts: first thing in a process that will have a keeper. A signal that
  // is not sent to the keeper's own thread is then taken by it all the same, instead of ending the process.
  static void block_signals();
  ~LeaseKeeper();
  LeaseKeeper(const LeaseKeeper&) = delete;
  LeaseKeeper& operator=(const LeaseKeeper&) = delete;

  enum class Answer {
    kGranted,      // nobody
    kRefused,      // somebody
    kUnsupported,  // this file system, or we, may not
  };

  // Before each lease on a descriptor that has none: the kernel forgets whom to tell when one is dropped.
  void adopt(int fd);
  // A read lease on a read-only descriptor. Refused: the file is open for writing, or mapped so.
  Answer watch(int fd);
  // Whether anybody else has the file open (or mapped) at all, now. Leaves a read lease behind when
  // granted, and what was there when refused. A writer counts as somebody too.
  Answer watch_if_alone(int fd);
  static void drop(int fd);
  // What the kernel says: there is a lease, and nobody is breaking it.
  static bool stands(int fd);
  // Whether all breaks that began more than a moment ago have been handed to `on_breaks`. The kernel gives a holder a second
  // at least before it takes a lease away, so what it has not broken by then still stands. Costs no system call.
  bool is_up_to_date() const;

 private:
  LeaseKeeper(std::function<void(Breaks)> on_breaks, std::function<void()> on_tick);
  void run();
  void hand_over(int signal, int fd);

  const std::function<void(Breaks)> on_breaks_;
  const std::function<void()> on_tick_;
  std::atomic<std::int64_t> seen_empty_ns_{0};  // when the queue of signals was empty, CLOCK_MONOTONIC_COARSE
  std::atomic<bool> stopping_{false};
  std::atomic<int> thread_id_{0};
  std::thread thread_;
};

}  // namespace imafs
