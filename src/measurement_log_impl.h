// The measurement log's insides, shared by its sources: measurement_log.cpp (appending, views), log_faults.cpp (what happens
// when TPM or disk fail), log_start.cpp (what a start finds, and recovery), log_archive.cpp and log_trim.cpp.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <thread>

#include "imafs/log_journal.h"
#include "imafs/measurement_log.h"
#include "imafs/pcr_value.h"
#include "log_header.h"
#include "log_index.h"

namespace imafs {

// PCR values as a log is folded in, one for each bank of the TPM.
using PcrMap = std::map<std::uint32_t, BankValues>;

class Log final : public MeasurementLog {
 public:
  Log(LogOptions options, PcrExtender* tpm);
  ~Log() override;

  Status begin();

  const LogStart& start() const override { return start_; }
  Result<Appended> append(const LogEntry& entry, const AskOrigin& origin) override;
  Status store_owed() noexcept override;
  std::uint64_t count() const override { return count_; }
  std::uint64_t violations() const override { return violations_; }
  TpmHealth tpm_health() const override {
    const std::lock_guard lock(health_mutex_);
    TpmHealth health = health_;
    health.extends = extends_;
    health.extend_ns = extend_ns_;
    return health;
  }
  const std::vector<Bank>& view_banks() const override { return view_banks_; }
  bool has_tpm() const override { return tpm_ != nullptr; }
  std::uint64_t view_size(LogView view) const override {
    const std::shared_lock lock(index_mutex_);
    return index_.view_size(view.form, view_banks_[view.bank].size);
  }
  Result<std::size_t> read_view(LogView view, std::uint64_t offset, std::span<char> out) const override;
  PcrMap replayed() const override {
    const std::shared_lock lock(index_mutex_);
    return pcrs_;
  }
  std::string base() const override {
    const std::shared_lock lock(index_mutex_);
    return base_lines(header_);
  }
  Result<std::string> trim(std::uint64_t entries) noexcept override;
  Status check_tpm() override;
  TpmReading look_at_tpm(std::chrono::milliseconds wait) override;
  LogRoom room() const override {
    const std::shared_lock lock(index_mutex_);
    if (!journal_) return {};
    const LogJournal::Room room = journal_->room();
    return {room.bytes, room.in_use};
  }
  std::uint32_t generation() const override { return generation_; }
  void begin_new_logs_with(Opening opening) override {
    const std::lock_guard order(order_);
    opening_ = std::move(opening);
  }
  void on_growth(std::function<void()> callback) override {
    const std::lock_guard lock(health_mutex_);
    growth_.push_back(std::move(callback));
  }

 private:
  std::string journal_directory() const { return options_.state_directory + "/journal"; }

  // Starting (all but create_new in the order of the file).
  Status load();
  Status take_frame(const LogJournal::Frame& frame);
  BankValues extension_of(const JournalEntry& entry, const std::vector<Bank>& banks) const;
  // Reads the journal from disk.
  Status each_extension(const std::vector<Bank>& banks, const std::function<Status(std::uint32_t pcr, const BankValues&)>& visit) const;
  Status fit_to_tpm();
  Status cut_torn();
  Status start_over();
  Result<LogHeader> new_header(std::string& base_text) const;
  Status create_new();
  void discard_new_journal() const;
  Status archive_and_begin(LogStart::Kind kind, const std::string& why);
  Status archive(const std::string& why);
  Result<std::string> next_archive() const;
  Status write_end_pcrs(const std::string& directory, const std::string& why, const std::vector<Bank>& banks, const PcrMap& values) const;
  PcrMap end_values(std::vector<Bank>& banks) const;
  Status finish_trim() const;
  bool is_of_another_log(std::string& why) const;

  // An entry and what is made of it before it is its turn.
  struct Prepared {
    LogEntry entry;
    BankValues digests;
    BankValues extended;
    LogIndex::Key key;
  };
  Prepared prepare(const LogEntry& entry) const;

  // REQUIRES: order_ is held.
  Result<Appended> append_in_order(const Prepared& prepared, const AskOrigin& origin);
  Status settle();
  Status settle_pending();
  Status extend_missing();
  Result<bool> tpm_was_reset() const;
  Status begin_anew();
  Status write_opening();
  Status extend_pending();
  Result<Appended> append_prepared(const Prepared& prepared, const AskOrigin& origin, std::chrono::steady_clock::time_point arrived) noexcept;
  Result<Appended> fail_append(Error error);
  void publish(std::uint64_t frame, const LogEntry& entry);
  Status compare_with_tpm();
  Status compare_each_pcr();
  Result<LogHeader> write_halves(std::uint64_t entries) const;
  void remove_halves() const;
  Status undo_change();
  Status change_over(const std::string& target);
  BankValues folded(std::uint32_t pcr, const BankValues& extended) const;
  BankValues first_value(std::uint32_t pcr) const;  // when the log began
  BankValues& pcr_slot(std::uint32_t pcr);
  Status begin_pcr(std::uint32_t pcr);
  Status lock_pcr(std::uint32_t pcr);
  bool has_failed_since_arrival() const { return last_slow_fault_ > arrived_; }
  Status note_fault(std::chrono::steady_clock::time_point start, Status failed);
  // Violations that could not be stored.
  Status leave_gap();
  static LogIndex::Key owed_key(const Prepared& prepared);
  void keep_violation(const Prepared& prepared, const EntryOrigin& origin);
  Status write_owed();
  void tell_owed();

  void set_health(const std::function<void(TpmHealth&)>& change) {
    const std::lock_guard lock(health_mutex_);
    change(health_);
  }
  void tell_growth();
  void keep_up();  // the keeper thread

  LogOptions options_;  // constant after begin()
  PcrExtender* const tpm_;
  const std::vector<Bank> banks_;       // the TPM's
  const std::vector<Bank> view_banks_;  // those and sha1
  std::vector<Bank> digest_banks_;      // those and file_hash: what a frame carries, in this order
  std::size_t dedupe_digest_ = 0;

  std::map<std::uint32_t, LogLock> pcr_locks_;  // guarded by order_ after begin()
  LogStart start_;
  LogHeader header_;  // replaced under order_ and index_mutex_

  // The ORDER lock: list, journal and PCR see entries in one order. Held across the TPM command.
  std::mutex order_;
  std::shared_ptr<LogJournal> journal_;  // replaced under index_mutex_ too; null: a new log could not be begun
  // Written to the journal, not known to be extended, not visible: guarded by order_.
  struct Pending {
    std::uint64_t frame = 0;
    Prepared prepared;
    EntryOrigin origin;
  };
  std::optional<Pending> pending_;
  // Visible entries that did not reach the PCR (--tpm-error continue, and violations), oldest first: guarded by order_.
  std::deque<std::pair<std::uint32_t, BankValues>> missing_;
  struct Owed {
    Prepared prepared;
    EntryOrigin origin;
  };
  // Violations that are not in the PCR. `owed_`: nor in the journal; `in_gap_`: among missing_. `owed_keys_`: of both.
  // Guarded by order_.
  std::deque<Owed> owed_;
  std::vector<Owed> in_gap_;
  std::set<LogIndex::Key> owed_keys_;
  std::optional<Error> halted_;  // a trim that could be neither ended nor undone: nothing is appended. Guarded by order_
  bool must_begin_anew_ = false;  // the TPM was reset, and the old log could not be archived yet. Guarded by order_
  bool is_opening_ = false;      // it is being written. Guarded by order_
  bool opening_due_ = false;     // a new log has begun, and what it begins with is not in it. Guarded by order_
  // When the entry in hand came, and when the TPM last failed slowly, and how. Guarded by order_.
  std::chrono::steady_clock::time_point arrived_{}, last_slow_fault_{};
  Error slow_fault_{EIO, ""};
  std::uint64_t appended_since_check_ = 0;
  bool settled_by_cut_ = false;  // the last settle() took the pending entry back
  std::chrono::steady_clock::time_point last_contact_;  // when the TPM was last extended or looked at
  Opening opening_;

  // Only while loading: entries that were to be extended, and the first one known not to have been.
  std::uint64_t extended_entries_ = 0;
  std::optional<std::uint64_t> start_gap_;

  mutable std::shared_mutex index_mutex_;  // index_ and pcrs_; never held across a system call but reads
  LogIndex index_;
  PcrMap pcrs_;
  std::atomic<std::uint64_t> count_{0}, violations_{0};
  std::atomic<std::uint32_t> generation_{0};

  mutable std::mutex health_mutex_;
  TpmHealth health_;
  std::atomic<std::uint64_t> extends_{0}, extend_ns_{0};
  std::vector<std::function<void()>> growth_;

  // The keeper: looks at the TPM for readers, and stores what is owed once TPM and disk are back.
  std::mutex keeper_mutex_;
  std::condition_variable keeper_changed_;
  std::uint64_t looks_wanted_ = 0, looks_done_ = 0;  // guarded by keeper_mutex_
  bool keeper_stops_ = false;                        // likewise
  bool has_owed_ = false;                            // likewise
  TpmReading reading_;                               // likewise
  std::thread keeper_;
};

}  // namespace imafs
