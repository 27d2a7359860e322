// The way to a swtpm on a unix socket ("swtpm:path=..."), with a time limit.
//
// tpm2-tss has a TCTI for it, which ignores its time limit and has nothing to poll: whoever uses it needs a thread
// that can be left behind, and each command two awakenings more.
#pragma once

#include <tss2/tss2_tcti.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "imafs/unique_fd.h"

namespace imafs {

// One thread at a time, as every TCTI. Each command has a connection of its own, so others get their turn.
class UnixTcti {
 public:
  // The path in `tcti`, if it names a unix socket and nothing else.
  static std::optional<std::string> path_in(const std::string& tcti);

  UnixTcti(std::string path, std::chrono::milliseconds limit);
  UnixTcti(const UnixTcti&) = delete;
  UnixTcti& operator=(const UnixTcti&) = delete;

  TSS2_TCTI_CONTEXT* context() { return reinterpret_cast<TSS2_TCTI_CONTEXT*>(&common_); }
  bool can_connect();
  bool timed_out() const { return timed_out_; }  // the last command

 private:
  static UnixTcti& of(TSS2_TCTI_CONTEXT* context);
  bool connect();
  TSS2_RC transmit(const std::uint8_t* command, std::size_t size);
  TSS2_RC receive(std::size_t* size, std::uint8_t* response);
  bool wait_for(short events);
  bool read_all(std::uint8_t* to, std::size_t size);

  TSS2_TCTI_CONTEXT_COMMON_V2 common_{};  // first: the library sees this
  const std::string path_;
  const std::chrono::milliseconds limit_;
  std::chrono::steady_clock::time_point deadline_;
  UniqueFd socket_;
  bool timed_out_ = false;
};

}  // namespace imafs
