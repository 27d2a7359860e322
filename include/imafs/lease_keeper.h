// Leases on backing files: the kernel's count of writers (and readers), seen from userspace, and a
// call before anybody else starts to write. fcntl(2), F_SETLEASE.
//
// Thread-safe. Callbacks run on the keeper's own thread.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>

#include "imafs/result.h"

namespace imafs {

class LeaseKeeper {
 public:
  // `on_break(fd)`: somebody wants to write to the file and is held until drop(fd). `on_tick`: about
  // four times a second.
  static std::unique_ptr<LeaseKeeper> start(std::function<void(int fd)> on_break, std::function<void()> on_tick);
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

 private:
  LeaseKeeper(std::function<void(int)> on_break, std::function<void()> on_tick);
  void run();

  const std::function<void(int)> on_break_;
  const std::function<void()> on_tick_;
  std::atomic<bool> stopping_{false};
  std::atomic<int> thread_id_{0};
  std::thread thread_;
};

}  // namespace imafs
