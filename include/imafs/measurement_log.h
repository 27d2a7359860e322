// The measurement log: the list, the journal that carries it over a crash, and the PCRs.
//
// Every entry goes through append(): duplicate check, journal write, TPM extend, visible, in that
// order and in one order for all three (the ORDER lock, held across the TPM command on purpose).
// Thread-safe. Readers never wait for the TPM.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "imafs/log_entry.h"
#include "imafs/log_lock.h"
#include "imafs/pcr_extender.h"
#include "imafs/result.h"

namespace imafs {

// Who caused an entry. Kept in the journal beside the entry, outside the hashed data.
struct EntryOrigin {
  std::int64_t time_ns = 0;  // CLOCK_REALTIME
  std::uint32_t pid = 0;
  std::uint32_t uid = 0;
  std::string comm;  // at most 15 bytes
  std::uint64_t size = 0;  // bytes that the file's digest is of; 0 where nothing was hashed
  std::string path;  // the file's, byte by byte, where the entry's name is not that: it has '_' for blanks, and escapes; else empty
};

// imafs itself, now.
EntryOrigin own_origin();

// Asked only for an entry that is logged: to learn who it is for costs more than to find it a duplicate.
using AskOrigin = std::function<EntryOrigin()>;

// A PC client TPM's. Entries for PCRs beyond are logged and extended nowhere, as in the kernel.
inline constexpr std::uint32_t kTpmPcrs = 24;

enum class Appended { kLogged, kDuplicate };

// One form of the log, as a file of .ima/ shows it.
struct LogView {
  enum class Form { kAscii, kBinary } form = Form::kAscii;
  std::size_t bank = 0;  // index into MeasurementLog::view_banks()
};

struct LogOptions {
  std::string state_directory;  // exists; journal, archives and lock live here
  std::shared_ptr<LogLock> state_lock;  // on that directory, if the caller has it already
  std::uint32_t default_pcr = 10;
  HashAlgorithm file_hash = HashAlgorithm::kSha256;  // the hash of the duplicate check, as the kernel's
  bool dedupe = true;
  bool continue_on_tpm_error = false;  // --tpm-error continue
  bool new_log = false;                // --new-log: archive what does not fit and start anew
  // A private TPM: each mount is a boot, the old log is archived.
  bool mount_is_boot = false;
};

// What a start found and did, for status and the operator's messages.
struct LogStart {
  enum class Kind { kNew, kContinued, kFinishedPending, kArchivedReboot, kArchivedByRequest } kind = Kind::kNew;
  std::string message;       // one sentence
  std::uint64_t entries = 0;  // entries carried over
  bool needs_boot_aggregate = true;  // true for every kind that begins a new log
};

struct TpmHealth {
  bool ok = true;
  bool foreign_extend = false;
  std::string message;
  std::uint64_t missing_extends = 0;  // entries logged but not extended (--tpm-error continue)
  std::optional<std::uint64_t> first_missing;  // index of the first of them
  // Violations that are not in the PCR yet: they come first when the TPM or the disk is back.
  std::uint64_t owed_violations = 0;
  std::uint64_t extends = 0;                   // of this mount's entries, and how long they took together
  std::uint64_t extend_ns = 0;
};

// What the PCRs held when they were last read.
struct TpmReading {
  std::map<std::uint32_t, BankValues> pcrs;
  std::string error;  // why they could not be read the last time; empty: they could
  bool late = false;  // the TPM did not answer in time: the values are older than the question
};

// Bytes that can still be logged when the file system of the state directory is full. `in_use`: it is full now.
struct LogRoom {
  std::uint64_t bytes = 0;
  bool in_use = false;
};

// Whether the journal in `state_directory` was made with this TPM, since its last reset. Changes nothing.
bool journal_fits(const std::string& state_directory, PcrExtender& tpm);

class MeasurementLog {
 public:
  // `tpm` may be null (--tpm none): nothing is extended and the only bank is sha1. It must outlive
  // the log. EALREADY: another imafs holds the state directory or the PCR (the sentence says which
  // process). EBADMSG: the journal does not fit the PCR; the sentence names the entry.
  static Result<std::unique_ptr<MeasurementLog>> open(LogOptions options, PcrExtender* tpm);
  virtual ~MeasurementLog() = default;

  virtual const LogStart& start() const = 0;

  // Success: the entry stands in journal, PCR and list (or a duplicate of it does).
  // With an error it stands in none of them for good: ENOSPC, EROFS, EIO of the journal, EIO of
  // the TPM. Violations skip the duplicate check. `origin` is called with the ORDER lock held: it must not append.
  //
  // A violation is never lost: with an error it is kept, in the journal if that can be written and else in memory, and comes
  // before anything else once TPM and disk are back. Until then every entry that is new is refused. While one is kept, equal
  // ones add nothing. The log tries by itself every few seconds.
  //
  // A TPM that does not answer costs its time limit once: who waited for the same command gets the same error.
  virtual Result<Appended> append(const LogEntry& entry, const AskOrigin& origin) = 0;

  // Stores the violations that are kept, if there are any. With an error some still are.
  virtual Status store_owed() = 0;

  // What a log begins with (boot_aggregate first), for when one must be begun while we run: the TPM was reset,
  // the old log is archived. Called with the ORDER lock held: must not call append().
  using Opening = std::function<Result<std::vector<LogEntry>>()>;
  virtual void begin_new_logs_with(Opening opening) = 0;
  // Counts the logs begun since open(). What was measured into an earlier one is not in this one.
  virtual std::uint32_t generation() const = 0;

  virtual std::uint64_t count() const = 0;       // entries visible
  virtual std::uint64_t violations() const = 0;  // attempts, also those that could not be stored
  virtual TpmHealth tpm_health() const = 0;

  // The TPM's banks, and sha1 in front of them if no bank is sha1. What views exist for.
  virtual const std::vector<Bank>& view_banks() const = 0;
  virtual bool has_tpm() const = 0;
  virtual std::uint64_t view_size(LogView view) const = 0;  // bytes
  // Bytes of the view from `offset`: as many as fit and exist, 0 at the end. Offsets are stable.
  virtual Result<std::size_t> read_view(LogView view, std::uint64_t offset, std::span<char> out) const = 0;

  // The PCR values the log replays to, one for each bank of the TPM, for every PCR it names.
  virtual std::map<std::uint32_t, BankValues> replayed() const = 0;
  // The values the PCRs held when the log began, if they were no reset values: lines for
  // parse_pcr_values().
  virtual std::string base() const = 0;
  // Compares replayed() with the TPM now, under the ORDER lock; notes a foreign extend.
  virtual Status check_tpm() = 0;
  // Has that done by the log's own thread, and waits for it no longer than `wait`. For who only reads. Empty without a TPM.
  virtual TpmReading look_at_tpm(std::chrono::milliseconds wait) = 0;
  virtual LogRoom room() const = 0;

  // Moves the first `entries` to an archive that ends in the PCR values they lead to; the log goes on from those.
  // Views shrink by them, offsets begin anew; what was measured stays measured. Returns the archive's directory.
  // EINVAL: there are not as many. ENOTSUP: no TPM. EBADMSG: the log does not replay to the PCR.
  virtual Result<std::string> trim(std::uint64_t entries) = 0;

  // Calls back, on an internal thread or the appending one, after entries became visible.
  virtual void on_growth(std::function<void()> callback) = 0;
};

}  // namespace imafs
