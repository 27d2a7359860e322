// The way to a swtpm on a unix socket ("swtpm:path=..."), with a time limit.
//
// tpm2-tss has a TCTI for it, which ignores its time limit and has nothing to poll: whoever uses it needs a thread
// that can be left behind, and each command two awakenings more.
#pragma once

#include <tss2/tss2_tcti.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "imafs/unique_fd.h"

namespace imafs {

// One thread at a time, as every TCTI. A swtpm serves one connection after the other: ours is closed when no command
// followed for 2 ms, and after 20 ms in any case, so that others get their turn.
class UnixTcti {
 public:
  // The path in `tcti`, if it names a unix socket and nothing else.
  static std::optional<std::string> path_in(const std::string& tcti);

  UnixTcti(std::string path, std::chrono::milliseconds limit);
  ~UnixTcti();
  UnixTcti(const UnixTcti&) = delete;
  UnixTcti& operator=(const UnixTcti&) = delete;

  TSS2_TCTI_CONTEXT* context() { return reinterpret_cast<TSS2_TCTI_CONTEXT*>(&common_); }
  bool can_connect();
  bool timed_out() const { return timed_out_; }  // the last command

 private:
  static UnixTcti& of(TSS2_TCTI_CONTEXT* context);
  bool connect();
  void begin_command();
  void end_command(bool keep);
  void close_idle();
  TSS2_RC transmit(const std::uint8_t* command, std::size_t size);
  TSS2_RC receive(std::size_t* size, std::uint8_t* response);
  bool wait_for(short events);
  bool send_all(const std::uint8_t* from, std::size_t size);
  TSS2_RC receive_whole(std::size_t& size, std::uint8_t* response);

  TSS2_TCTI_CONTEXT_COMMON_V2 common_{};  // first: the library sees this
  const std::string path_;
  const std::chrono::milliseconds limit_;
  std::chrono::steady_clock::time_point deadline_;
  bool timed_out_ = false;

  std::mutex mutex_;
  std::condition_variable changed_;
  UniqueFd socket_;  // guarded by mutex_, but the thread of a command has it to itself
  bool in_command_ = false;                           // guarded by mutex_, as what follows
  bool stopping_ = false;
  std::chrono::steady_clock::time_point connected_;
  std::chrono::steady_clock::time_point last_command_;
  std::thread closer_;
};

}  // namespace imafs
