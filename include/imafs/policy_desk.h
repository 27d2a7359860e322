// Where policy updates are handed in: `policy` and `policy_replace` of .ima/, one writer at a time.
//
// Thread-safe. Outlives the files it opened.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "imafs/control_file.h"
#include "imafs/guarded.h"
#include "imafs/measure_gate.h"
#include "imafs/result.h"

namespace imafs {

class PolicyDesk {
 public:
  struct Sources {
    MeasureGate& gate;
    std::function<Result<std::string>(const std::string& path, const Requester&)> read_policy_file;
    const Template* custom_template = nullptr;
  };
  struct Counts {
    std::uint64_t completed = 0;
    std::uint64_t failed = 0;
  };

  explicit PolicyDesk(Sources sources) : sources_(std::move(sources)) {}

  // EBUSY: another writer has it open.
  Result<std::unique_ptr<ControlFile>> open_writer(PolicyLoad how, bool appending,
                                                   const Requester& opener);
  // Why the last update failed; empty after one that was completed.
  std::string last_error() const;
  Counts counts() const;

 private:
  friend class PolicyUpdateFile;
  enum class Slot { kFree, kTaken, kClosing };

  void set_slot(Slot slot);
  void note_refusal(const std::string& reason);
  void note_update(bool completed, const Requester& requester, const std::string& comm);

  const Sources sources_;
  std::mutex slot_mutex_;  // at most one writer has the desk; kClosing: it closed a descriptor last
  std::condition_variable slot_freed_;
  Slot slot_ = Slot::kFree;
  struct Outcome {
    std::string error;
    Counts counts;
  };
  Guarded<Outcome> outcome_;  // of the updates so far
};

}  // namespace imafs
