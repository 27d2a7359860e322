// The door every open goes through: what the policy asks, the file's digest, the entry.
//
// Its verbs are those of IMA's 2008 interface: must_measure, collect_measurement,
// store_measurement (display_template is log_codec's append_binary and append_ascii).
// Knows nothing of FUSE. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "imafs/file_hasher.h"
#include "imafs/audit.h"
#include "imafs/log_entry.h"
#include "imafs/measurement_log.h"
#include "imafs/policy.h"
#include "imafs/policy_matcher.h"
#include "imafs/result.h"

namespace imafs {

// Who asks. `comm` is read from /proc only when an entry or a message is made.
struct Requester {
  std::uint32_t pid = 0;  // FUSE gives the thread's id
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
};

struct GateOptions {
  bool enabled = true;  // --ima on
  HashAlgorithm file_hash = HashAlgorithm::kSha256;
  const Template* form = nullptr;  // the default template; outlives the gate
  std::uint32_t pcr = 10;
  std::string path_prefix;  // put before the path in the log
};

// One thing that the policy wants for one open: a hook that fired and its rule.
struct MeasureOrder {
  Hook hook = Hook::kFileCheck;
  std::uint32_t pcr = 10;
  const Template* form = nullptr;
  bool wants_verity = false;
  bool permits_directio = false;
};

// The file of an open, for the rules and for the entry.
struct OpenFacts {
  unsigned mask = 0;      // kMayRead ...
  bool is_exec = false;   // __FMODE_EXEC
  bool is_elf = false;   // by its header
  std::uint32_t fowner = 0;
  std::uint32_t fgroup = 0;
};

// What was read off a file to be stored: digests are of its whole content.
struct Collected {
  Digest digest = Digest::zero(HashAlgorithm::kSha256);
  bool is_verity = false;
  std::optional<Digest> legacy;  // for field d, where `digest` is too long for it: of the same bytes
  std::uint64_t size = 0;  // bytes that were read
};

// A file as an entry names it.
struct NamedFile {
  int fd = -1;       // for xattrs and owner of the templates that want them
  std::string path;  // inside the mount
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
};

enum class Violation { kToMToU, kOpenWriters };

enum class PolicyLoad {
  kUpdate,   // first load replaces the built-in rules, later ones append
  kReplace,  // the loaded rules take the place of all that stand
};

class MeasureGate {
 public:
  MeasureGate(GateOptions options, MeasurementLog& log, AuditSink audit, Policy initial);

  const GateOptions& options() const { return options_; }
  std::uint32_t log_generation() const { return log_.generation(); }
  std::shared_ptr<const Policy> policy() const;
  // Measures the policy that would result (critical data, label imafs, name policy), then activates it.
  Status load_policy(std::vector<Rule> rules, PolicyLoad how, const Requester& requester);

  // What the active policy looks at, so that an open asks for no fact that no rule needs.
  struct Interests {
    bool measures = false;  // any measure rule, and --ima on
    bool owner = false;     // fowner=, fgroup=
    bool content = false;   // rules of the hooks that ELF objects alone raise
    bool ids = false;       // uid=, euid=, gid=, egid=
  };
  Interests interests() const;

  // The orders of every hook this open fires, in the kernel's order. Empty: nobody wants it.
  std::vector<MeasureOrder> must_measure(const OpenFacts& facts, const Requester& requester, EventSource& source) const;

  // Hashes the content of `fd` (readable; read by pread from 0) under the algorithm that
  // security.ima names, else the configured one; the fs-verity digest if the order wants that.
  // EINVAL: the file shrank meanwhile. ENODATA: no fs-verity digest. Otherwise the read's error.
  Result<Collected> collect_measurement(int fd, const MeasureOrder& order, const HashPause& pause = {}) const;

  // One entry, unless the log has it. EIO, ENOSPC ...: the open must be denied.
  Status store_measurement(const MeasureOrder& order, const Collected& collected, const NamedFile& file,
                           const Requester& requester);
  Status store_violation(Violation violation, const NamedFile& file, const Requester& requester);
  // Whether all violations are stored that the log had to keep: MeasurementLog::store_owed().
  Status store_owed() { return log_.store_owed(); }

  // Entries without a file. What a log begins with, for the caller to append:
  // `legacy`: the sha1 value for field d; zeros without one.
  LogEntry boot_aggregate_entry(const Digest& aggregate, std::optional<Digest> legacy = std::nullopt) const;
  // What imafs says of itself, as generic template data, if a CRITICAL_DATA rule asks for `label`.
  std::optional<LogEntry> own_data_entry(std::string_view label, std::string_view name, std::string_view data) const;
  // Generic template data: one ima-buf entry if a CRITICAL_DATA rule asks for `label`; hashed: the
  // digest of the data stands in for it. False: no rule asks.
  Result<bool> measure_critical_data(std::string_view label, std::string_view name, ByteView data,
                                     bool hashed, const Requester& requester);

  void report(AuditRecord record) const { if (audit_) audit_(record); }

 private:
  struct Loaded {
    explicit Loaded(CompiledPolicy compiled) : rules(std::move(compiled)) {}
    CompiledPolicy rules;
    Interests interests;
  };
  static std::shared_ptr<const Loaded> prepare(Policy policy, bool enabled);
  std::shared_ptr<const Loaded> loaded() const;
  EntryFacts facts_of(const Template& form, const NamedFile& file) const;
  Result<Collected> with_legacy(int fd, const MeasureOrder& order, Collected collected, const HashPause& pause) const;
  HashAlgorithm legacy_algorithm() const;
  MeasureOrder order_of(Hook hook, const Rule& rule) const;
  struct Buffer {
    std::string_view label;
    std::string_view name;
    ByteView data;
    bool hashed = false;
  };
  std::optional<LogEntry> critical_data_entry(const Policy& policy, const Buffer& buffer, const Requester& requester) const;

  const GateOptions options_;
  MeasurementLog& log_;
  const AuditSink audit_;
  std::atomic<std::shared_ptr<const Loaded>> loaded_;  // never null; replaced as a whole
  std::mutex policy_load_mutex_;                   // one load at a time: measured, then active
};

// For messages: "sda1" of a device number; its numbers if it is no block device.
std::string device_name(std::uint64_t device);
// comm of a thread, from /proc/TID/comm; "?" when it is gone.
std::string comm_of(std::uint32_t tid);

}  // namespace imafs
