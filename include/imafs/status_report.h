// `status` and `metrics` of .ima/: the state of a mount as one JSON object and as Prometheus text.
// Passive data in, text out; thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "imafs/bank.h"
#include "imafs/measurement_log.h"
#include "imafs/policy.h"

namespace imafs {

struct StatusReport {
  std::string version;
  std::string mount_point;
  std::string backing;
  std::int64_t started_at = 0;  // seconds since the epoch
  std::vector<std::pair<std::string, std::string>>
      options;  // as in force, in this order: {"hash", "sha256"}

  std::shared_ptr<const Policy> policy;  // null: not reported
  std::string last_policy_error;         // empty: none since the last good update
  std::uint64_t policy_updates_completed = 0;
  std::uint64_t policy_updates_failed = 0;

  struct Tpm {
    std::string kind;         // "none", "swtpm", "device", "tcti"
    std::string description;  // "swtpm at /run/x.sock"
    std::string why;          // why this one was taken; may be empty
    std::vector<Bank> banks;
    TpmHealth health;
    std::map<std::uint32_t, BankValues> replayed;  // what the log replays to, by PCR
    std::map<std::uint32_t, BankValues> read;      // what the TPM says
    std::string read_error;                        // why `read` is empty or incomplete
  } tpm;

  LogRoom room;
  std::uint64_t entries = 0;
  std::uint64_t violations = 0;
  std::string log_start;  // LogStart::message

  // What is less than promised, and why: {"no-leases", "the backing file system has none"}.
  struct Degradation {
    std::string what;
    std::string why;
  };
  std::vector<Degradation> degraded;

  // Any further number, for metrics and for status: {"imafs_opens_total", "Opens of regular
  // files.", 12}.
  struct Counter {
    std::string name;  // ends in _total if it only grows
    std::string help;
    std::uint64_t value = 0;
  };
  std::vector<Counter> counters;
};

// One JSON object on several lines, newline at its end. Strings that are not UTF-8 are mended.
std::string to_json(const StatusReport& report);
std::string to_prometheus(const StatusReport& report);

// Degradations that follow from the facts of the report itself: TPM faults, a foreign extend,
// missing extends, rules that are not acted on. Both texts list them beside report.degraded.
std::vector<StatusReport::Degradation> all_degradations(const StatusReport& report);

}  // namespace imafs
