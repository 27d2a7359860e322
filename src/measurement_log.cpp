#include "imafs/measurement_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <shared_mutex>

#include "imafs/file_version.h"
#include "imafs/log_journal.h"
#include "imafs/pcr_value.h"
#include "imafs/posix_file.h"
#include "log_header.h"
#include "log_index.h"

namespace imafs {
namespace {

constexpr std::uint32_t kTpmPcrs = 24;           // entries for PCRs beyond are logged and extended nowhere, as in the kernel
constexpr std::uint64_t kForeignCheckEvery = 64;  // entries
constexpr std::size_t kReadChunk = 256 * 1024;

std::vector<Bank> with_sha1(std::vector<Bank> banks) {
  const Bank sha1 = Bank::of(HashAlgorithm::kSha1);
  if (std::find(banks.begin(), banks.end(), sha1) == banks.end()) banks.insert(banks.begin(), sha1);
  return banks;
}

std::string boot_id() {
  auto text = read_file("/proc/sys/kernel/random/boot_id", 256);
  return text ? text->substr(0, text->find('\n')) : "";
}

// PCR values as a log is folded in, one for each bank of the TPM.
using PcrMap = std::map<std::uint32_t, BankValues>;

class Log final : public MeasurementLog {
 public:
  Log(LogOptions options, PcrExtender* tpm)
      : options_(std::move(options)),
        tpm_(tpm),
        banks_(tpm ? tpm->banks() : std::vector<Bank>{}),
        view_banks_(with_sha1(banks_)) {
    for (const Bank& bank : view_banks_) digest_banks_.push_back(bank);
    const Bank of_file = tpm_algorithm_of(options_.file_hash) ? Bank::of(options_.file_hash) : Bank::of(HashAlgorithm::kSha256);
    const auto found = std::find(digest_banks_.begin(), digest_banks_.end(), of_file);
    dedupe_digest_ = static_cast<std::size_t>(found - digest_banks_.begin());
    if (found == digest_banks_.end()) digest_banks_.push_back(of_file);
  }

  Status begin();

  const LogStart& start() const override { return start_; }
  Result<Appended> append(const LogEntry& entry, const EntryOrigin& origin) override;
  std::uint64_t count() const override { return count_; }
  std::uint64_t violations() const override { return violations_; }
  TpmHealth tpm_health() const override {
    const std::lock_guard lock(health_mutex_);
    return health_;
  }
  const std::vector<Bank>& view_banks() const override { return view_banks_; }
  std::uint64_t view_size(LogView view) const override {
    const std::shared_lock lock(index_mutex_);
    return index_.view_size(view.form, view_banks_[view.bank].size);
  }
  Result<std::size_t> read_view(LogView view, std::uint64_t offset, std::span<char> out) const override;
  PcrMap replayed() const override {
    const std::shared_lock lock(index_mutex_);
    return pcrs_;
  }
  std::string base() const override { return base_lines(header_); }
  Status check_tpm() override {
    const std::lock_guard order(order_);
    return compare_with_tpm();
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
  BankValues extension_of(const JournalEntry& entry) const;
  Status each_extension(const std::function<Status(std::uint32_t pcr, const BankValues&)>& visit) const;
  Status fit_to_tpm();
  Status create_new();
  Status archive(const std::string& why);
  bool began_before_reset(std::string& why) const;

  // REQUIRES: order_ is held.
  Status settle();
  Status extend_pending();
  Result<Appended> fail_append(Error error);
  void publish(std::uint64_t frame, const LogEntry& entry);
  Status compare_with_tpm();
  BankValues folded(std::uint32_t pcr, const BankValues& extended) const;
  BankValues first_value(std::uint32_t pcr) const;  // when the log began
  BankValues& pcr_slot(std::uint32_t pcr);
  void set_health(const std::function<void(TpmHealth&)>& change) {
    const std::lock_guard lock(health_mutex_);
    change(health_);
  }

  LogOptions options_;  // constant after begin()
  PcrExtender* const tpm_;
  const std::vector<Bank> banks_;       // the TPM's
  const std::vector<Bank> view_banks_;  // those and sha1
  std::vector<Bank> digest_banks_;      // those and file_hash: what a frame carries, in this order
  std::size_t dedupe_digest_ = 0;

  LogLock tpm_lock_;
  LogStart start_;
  LogHeader header_;

  // The ORDER lock: list, journal and PCR see entries in one order. Held across the TPM command.
  std::mutex order_;
  std::unique_ptr<LogJournal> journal_;
  // Written to the journal, not known to be extended, not visible: guarded by order_.
  struct Pending {
    std::uint64_t frame = 0;
    LogEntry entry;
    BankValues digests;
    BankValues extended;
  };
  std::optional<Pending> pending_;
  // Visible entries that did not reach the PCR (--tpm-error continue), oldest first: guarded by order_.
  std::deque<std::pair<std::uint32_t, BankValues>> missing_;
  std::uint64_t appended_since_check_ = 0;
  bool settled_by_cut_ = false;  // the last settle() took the pending entry back

  // Only while loading: entries that were to be extended, and the first one known not to have been.
  std::uint64_t extended_entries_ = 0;
  std::optional<std::uint64_t> start_gap_;

  mutable std::shared_mutex index_mutex_;  // index_ and pcrs_; never held across a system call but reads
  LogIndex index_;
  PcrMap pcrs_;
  std::atomic<std::uint64_t> count_{0}, violations_{0};

  mutable std::mutex health_mutex_;
  TpmHealth health_;
  std::vector<std::function<void()>> growth_;
};

// ---- start ----

Status Log::begin() {
  if (!options_.state_lock) {
    auto state = LogLock::of_directory(options_.state_directory);
    if (!state) return fail(state.error());
    options_.state_lock = std::make_shared<LogLock>(std::move(*state));
  }
  if (tpm_) {
    auto lock = LogLock::of_tpm(tpm_->identity(), options_.default_pcr);
    if (!lock) return fail(lock.error());
    tpm_lock_ = std::move(*lock);
  }
  if (!LogJournal::exists(journal_directory())) return create_new();

  // Only a log that is still that of this boot is worth reading.
  auto loaded = load();
  std::string why;
  if (loaded && (options_.mount_is_boot || began_before_reset(why))) {
    const auto kept = archive(options_.mount_is_boot ? "the private TPM was started anew" : why);
    if (!kept) return kept;
    start_.kind = LogStart::Kind::kArchivedReboot;
    return create_new();
  }
  if (loaded) loaded = fit_to_tpm();
  if (!loaded && options_.new_log && loaded.error().code == EBADMSG) {
    if (auto kept = archive(loaded.error().what); !kept) return kept;
    start_.kind = LogStart::Kind::kArchivedByRequest;
    return create_new();
  }
  if (!loaded) return loaded;
  start_.entries = count_;
  start_.needs_boot_aggregate = count_ == 0;
  if (start_.kind == LogStart::Kind::kNew) start_.kind = LogStart::Kind::kContinued;
  start_.message = "the log goes on after " + std::to_string(count_) + " entries" +
                   (start_.kind == LogStart::Kind::kFinishedPending ? "; the last one was extended now" : "");
  return {};
}

bool Log::began_before_reset(std::string& why) const {
  if (!tpm_) {
    why = "the machine was started anew";
    return header_.boot_id != boot_id();
  }
  why = "the log belongs to another TPM";
  if (header_.tpm != tpm_->identity()) return true;
  why = "the TPM was reset";
  const auto clock = tpm_->clock();
  return clock && clock->reset_count != header_.reset_count;
}

Status Log::create_new() {
  index_ = LogIndex();
  extended_entries_ = 0;
  start_gap_.reset();
  pcrs_.clear();
  missing_.clear();
  pending_.reset();
  count_ = violations_ = 0;
  header_ = LogHeader();
  header_.boot_id = boot_id();
  header_.pcr = options_.default_pcr;
  for (const Bank& bank : digest_banks_) {
    if (bank.hash) header_.digests.push_back(*bank.hash);
  }
  std::string base_text;
  if (tpm_) {
    header_.tpm = tpm_->identity();
    const auto clock = tpm_->clock();
    if (!clock) return fail(clock.error());
    header_.reset_count = clock->reset_count;
    const auto value = tpm_->read(options_.default_pcr);
    if (!value) return fail(value.error());
    for (std::size_t i = 0; i < banks_.size(); ++i) {
      if ((*value)[i] != pcr_reset_value(banks_[i], options_.default_pcr)) {
        header_.base[name_of(banks_[i])][options_.default_pcr] = (*value)[i];
        base_text = "; the PCR was not zero, its value is the base";
      }
    }
  }
  auto journal = LogJournal::create(journal_directory());
  if (!journal) return fail(journal.error());
  journal_ = std::move(*journal);
  if (auto written = journal_->append(static_cast<std::uint8_t>(FrameKind::kHeader), as_bytes(to_text(header_))); !written) {
    return fail(written.error());
  }
  start_.entries = 0;
  start_.needs_boot_aggregate = true;
  start_.message = (start_.kind == LogStart::Kind::kNew ? "a new log" : "the old log is archived, a new one begins") + base_text;
  return {};
}

Status Log::take_frame(const LogJournal::Frame& frame) {
  switch (static_cast<FrameKind>(frame.kind)) {
    case FrameKind::kHeader: {
      auto header = parse_log_header(as_text(frame.payload));
      if (!header) return fail(header.error());
      header_ = std::move(*header);
      return {};
    }
    case FrameKind::kGap: {
      start_gap_ = load_le64(frame.payload);
      return {};
    }
    case FrameKind::kClosed: start_gap_.reset(); return {};
    case FrameKind::kEntry: break;
    default: return {};
  }
  auto decoded = decode_journal_entry(frame.payload);
  if (!decoded) return fail(EBADMSG, "entry " + std::to_string(index_.size()) + ": " + decoded.error().what);
  if (tpm_ && decoded->entry.pcr < kTpmPcrs) {
    extend_pcr(banks_, pcr_slot(decoded->entry.pcr), extension_of(*decoded));
    ++extended_entries_;
  }
  index_.add(frame.offset, decoded->sizes);
  std::size_t at = 0;
  for (std::size_t i = 0; i < header_.digests.size(); ++i) {
    const std::size_t size = digest_size(header_.digests[i]);
    if (header_.digests[i] == digest_banks_[dedupe_digest_].hash && decoded->digests.size() >= at + size && !decoded->entry.is_violation) {
      index_.remember(LogIndex::key_of(decoded->digests.subspan(at, size), decoded->entry.pcr));
    }
    at += size;
  }
  ++count_;
  if (decoded->entry.is_violation) ++violations_;
  return {};
}

// What an entry of the journal put into the PCRs: its digests as kept, but for violations and for banks that
// were not there when it was written.
BankValues Log::extension_of(const JournalEntry& entry) const {
  BankValues extended;
  for (const Bank& bank : banks_) {
    std::size_t at = 0;
    std::optional<ByteView> digest;
    for (const HashAlgorithm algorithm : header_.digests) {
      const std::size_t size = digest_size(algorithm);
      if (bank.hash == algorithm && entry.digests.size() >= at + size) digest = entry.digests.subspan(at, size);
      at += size;
    }
    if (entry.entry.is_violation || !digest) {
      extended.push_back(extend_values(entry.entry, {bank})[0]);
    } else {
      extended.emplace_back(digest->begin(), digest->end());
    }
  }
  return extended;
}

// Every extend the journal stands for, in order.
Status Log::each_extension(const std::function<Status(std::uint32_t pcr, const BankValues&)>& visit) const {
  auto again = LogJournal::open(journal_directory(), [&](const LogJournal::Frame& frame) -> Status {
    if (static_cast<FrameKind>(frame.kind) != FrameKind::kEntry) return {};
    const auto decoded = decode_journal_entry(frame.payload);
    if (!decoded) return fail(decoded.error());
    if (decoded->entry.pcr >= kTpmPcrs) return {};
    return visit(decoded->entry.pcr, extension_of(*decoded));
  });
  if (!again) return fail(again.error());
  return {};
}

Status Log::load() {
  auto journal = LogJournal::open(journal_directory(), [this](const LogJournal::Frame& frame) { return take_frame(frame); });
  if (!journal) return fail(journal.error());
  journal_ = std::move(*journal);
  return {};
}

// The journal must replay to the PCR, but for entries that were written and not extended: the last one
// after a crash, those behind a gap with --tpm-error continue.
Status Log::fit_to_tpm() {
  if (!tpm_ || extended_entries_ == 0) return {};
  PcrMap now;
  for (const auto& [pcr, value] : pcrs_) {
    const auto read = tpm_->read(pcr);
    if (!read) return fail(read.error());
    now[pcr] = *read;
  }
  if (now == pcrs_) return {};
  // From how many entries on does nothing stand in the PCRs? Fold again, and see where it fits.
  PcrMap fold;
  for (const auto& [pcr, value] : pcrs_) fold[pcr] = first_value(pcr);
  std::optional<std::uint64_t> fits;
  std::uint64_t folded = 0;
  if (fold == now) fits = 0;
  auto read = each_extension([&](std::uint32_t pcr, const BankValues& values) -> Status {
    extend_pcr(banks_, fold[pcr], values);
    ++folded;
    if (fold == now) fits = folded;
    return {};
  });
  if (!read) return read;
  const bool pending = fits && *fits + 1 == folded;
  const bool gap = fits && start_gap_;
  if (!pending && !gap) {
    const std::string where = fits ? "the PCR holds its first " + std::to_string(*fits) + " entries; entry " + std::to_string(*fits) + " is the first that is missing"
                                   : "the PCR holds something else than any beginning of the log";
    return fail(EBADMSG, "the journal of " + std::to_string(folded) + " entries does not fit the TPM: " + where +
                             " (--new-log archives it and starts anew)");
  }
  std::uint64_t index = 0;
  auto finished = each_extension([&](std::uint32_t pcr, const BankValues& values) -> Status {
    if (index++ < *fits) return {};
    return tpm_->extend(pcr, values);
  });
  if (!finished) return finished;
  if (start_gap_) (void)journal_->append(static_cast<std::uint8_t>(FrameKind::kClosed), {});
  start_.kind = LogStart::Kind::kFinishedPending;
  return {};
}

// Moves the journal aside, with the PCR values it ends in.
Status Log::archive(const std::string& why) {
  const std::string parent = options_.state_directory + "/archive";
  if (auto made = make_directories(parent, 0700); !made) return made;
  std::string target;
  for (unsigned number = 1;; ++number) {
    target = parent + "/" + std::to_string(number);
    if (::access(target.c_str(), F_OK) != 0) break;
  }
  std::string text = "# " + why + "\n";
  for (const auto& [pcr, values] : pcrs_) {
    for (std::size_t i = 0; i < banks_.size(); ++i) {
      text += name_of(banks_[i]) + ":" + std::to_string(pcr) + ": " + to_hex(values[i]) + "\n";
    }
  }
  journal_.reset();
  if (auto written = write_file_atomically(journal_directory() + "/end-pcrs", text); !written) return written;
  if (::rename(journal_directory().c_str(), target.c_str()) != 0) return fail(errno_error("cannot archive the log in '" + target + "'"));
  return {};
}

// ---- append ----

BankValues Log::first_value(std::uint32_t pcr) const {
  BankValues value = pcr_reset_values(banks_, pcr);
  for (std::size_t i = 0; i < banks_.size(); ++i) {
    const auto bank = header_.base.find(name_of(banks_[i]));
    if (bank != header_.base.end() && bank->second.contains(pcr)) value[i] = bank->second.at(pcr);
  }
  return value;
}

BankValues& Log::pcr_slot(std::uint32_t pcr) {
  const auto found = pcrs_.find(pcr);
  return found != pcrs_.end() ? found->second : pcrs_.emplace(pcr, first_value(pcr)).first->second;
}

BankValues Log::folded(std::uint32_t pcr, const BankValues& extended) const {
  BankValues value = pcrs_.at(pcr);
  extend_pcr(banks_, value, extended);
  return value;
}

Result<Appended> Log::fail_append(Error error) {
  set_health([&](TpmHealth& health) {
    health.ok = false;
    health.message = error.what;
  });
  return fail(std::move(error));
}

Result<Appended> Log::append(const LogEntry& entry, const EntryOrigin& origin) {
  const BankValues digests = template_digests(entry, digest_banks_);
  const BankValues extended = extend_values(entry, banks_);
  const LogIndex::Key key = LogIndex::key_of(digests[dedupe_digest_], entry.pcr);
  std::unique_lock order(order_);
  if (entry.is_violation) ++violations_;
  if (auto settled = settle(); !settled) {
    if (!options_.continue_on_tpm_error) return fail_append({EIO, settled.error().what});
  }
  const bool may_repeat = entry.is_violation || !options_.dedupe;
  if (!may_repeat && index_.has(key)) return Appended::kDuplicate;

  const auto frame = journal_->append(static_cast<std::uint8_t>(FrameKind::kEntry), encode_journal_entry(entry, origin, digests));
  if (!frame) return fail(frame.error());
  pending_ = Pending{*frame, entry, digests, extended};
  if (auto reached = extend_pending(); !reached) {
    if (!options_.continue_on_tpm_error) return fail_append({EIO, reached.error().what});
    // The entry stands in the log and not in the PCR: said in the journal, before anything follows.
    if (missing_.empty()) {
      Bytes index;
      append_le64(index, count_);
      (void)journal_->append(static_cast<std::uint8_t>(FrameKind::kGap), index);
    }
    if (entry.pcr < kTpmPcrs) missing_.emplace_back(entry.pcr, extended);
    publish(*frame, entry);
    pending_.reset();
    set_health([&](TpmHealth& health) {
      health.ok = false;
      health.message = reached.error().what;
      if (!health.first_missing) health.first_missing = count_ - 1;
      health.missing_extends = missing_.size();
    });
  }
  if (!may_repeat) index_.remember(key);
  if (++appended_since_check_ >= kForeignCheckEvery) (void)compare_with_tpm();
  order.unlock();
  std::vector<std::function<void()>> callbacks;
  {
    const std::lock_guard lock(health_mutex_);
    callbacks = growth_;
  }
  for (const auto& callback : callbacks) callback();
  return Appended::kLogged;
}

void Log::publish(std::uint64_t frame, const LogEntry& entry) {
  const std::unique_lock lock(index_mutex_);
  index_.add(frame, view_sizes_of(entry));
  ++count_;
}

// Extends what is written. A fault leaves it open whether the TPM took it: the next settle() asks.
Status Log::extend_pending() {
  const std::uint32_t pcr = pending_->entry.pcr;
  if (tpm_ && pcr < kTpmPcrs) {
    if (!missing_.empty()) return fail(EIO, health_.message);
    {
      const std::unique_lock lock(index_mutex_);
      (void)pcr_slot(pcr);
    }
    if (auto extended = tpm_->extend(pcr, pending_->extended); !extended) {
      if (auto settled = settle(); !settled) return fail(extended.error());
      // It was taken back or it was done: when it was taken back, this entry has not happened.
      if (settled_by_cut_) return fail(extended.error());
      return {};
    }
    const std::unique_lock lock(index_mutex_);
    pcrs_[pcr] = folded(pcr, pending_->extended);
  }
  publish(pending_->frame, pending_->entry);
  pending_.reset();
  return {};
}

// After a fault: reads the PCR to learn what happened, and makes journal and PCR agree again.
Status Log::settle() {
  settled_by_cut_ = false;
  if (!tpm_ || (!pending_ && missing_.empty())) return {};
  if (auto connected = tpm_->reconnect(); !connected) return connected;
  const auto clock = tpm_->clock();
  if (!clock) return fail(clock.error());
  if (clock->reset_count != header_.reset_count) {
    return fail(EIO, "the TPM was reset: its PCRs no longer hold the log; mount again to begin a new one");
  }
  const std::uint32_t pcr = pending_ ? pending_->entry.pcr : missing_.front().first;
  const auto now = tpm_->read(pcr);
  if (!now) return fail(now.error());
  if (pending_) {
    if (*now == folded(pcr, pending_->extended)) {
      {
        const std::unique_lock lock(index_mutex_);
        pcrs_[pcr] = *now;
      }
      publish(pending_->frame, pending_->entry);
      index_.remember(LogIndex::key_of(pending_->digests[dedupe_digest_], pcr));
    } else if (*now == pcrs_.at(pcr)) {
      if (auto cut = journal_->cut(pending_->frame); !cut) return cut;
      settled_by_cut_ = true;
    } else {
      set_health([](TpmHealth& health) { health.foreign_extend = true; });
      return fail(EIO, "PCR " + std::to_string(pcr) + " holds something that is not from this log");
    }
    pending_.reset();
  }
  while (!missing_.empty()) {
    const auto& [index, values] = missing_.front();
    if (auto extended = tpm_->extend(index, values); !extended) return extended;
    const std::unique_lock lock(index_mutex_);
    (void)pcr_slot(index);
    pcrs_[index] = folded(index, values);
    missing_.pop_front();
    if (missing_.empty()) (void)journal_->append(static_cast<std::uint8_t>(FrameKind::kClosed), {});
  }
  set_health([](TpmHealth& health) {
    health.ok = true;
    health.message.clear();
    health.missing_extends = 0;
    health.first_missing.reset();
  });
  return {};
}

Status Log::compare_with_tpm() {
  appended_since_check_ = 0;
  if (!tpm_) return {};
  if (auto settled = settle(); !settled) return settled;
  for (const auto& [pcr, value] : replayed()) {
    const auto now = tpm_->read(pcr);
    if (!now) return fail(now.error());
    if (*now == value) continue;
    const std::string what = "PCR " + std::to_string(pcr) + " of the " + tpm_->description() + " was extended by somebody else";
    set_health([&](TpmHealth& health) {
      health.foreign_extend = true;
      health.message = what;
    });
    return fail(EBADMSG, what);
  }
  return {};
}

// ---- views ----

Result<std::size_t> Log::read_view(LogView view, std::uint64_t offset, std::span<char> out) const {
  const std::size_t digest_size = view_banks_[view.bank].size;
  std::size_t digest_at = 0;
  for (std::size_t i = 0; i < view.bank; ++i) digest_at += view_banks_[i].size;
  std::uint64_t frame = 0, skip = 0, left = 0;
  {
    const std::shared_lock lock(index_mutex_);
    if (offset >= index_.view_size(view.form, digest_size)) return std::size_t{0};
    const std::uint64_t first = index_.entry_at(view.form, digest_size, offset);
    frame = index_[first].frame;
    skip = offset - index_.view_offset(view.form, digest_size, first);
    left = index_.size() - first;
  }
  std::string text;
  Bytes record;
  Bytes chunk(std::clamp<std::size_t>(out.size() * 3, 4096, kReadChunk));
  std::size_t done = 0;
  while (left > 0 && done < out.size()) {
    const auto got = journal_->read(frame, chunk);
    if (!got) return fail(got.error());
    ByteView bytes = ByteView(chunk).first(*got);
    bool progress = false;
    while (left > 0 && done < out.size()) {
      const auto next = LogJournal::frame_at(bytes, frame);
      if (!next) break;
      progress = true;
      bytes = bytes.subspan(next->size);
      frame += next->size;
      if (next->kind != static_cast<std::uint8_t>(FrameKind::kEntry)) continue;
      const auto decoded = decode_journal_entry(next->payload);
      if (!decoded) return fail(decoded.error());
      --left;
      const ByteView digest = decoded->digests.subspan(digest_at, digest_size);
      std::string_view whole;
      if (view.form == LogView::Form::kAscii) {
        text.clear();
        append_ascii(text, decoded->entry, digest);
        whole = text;
      } else {
        record.clear();
        append_binary(record, decoded->entry, digest);
        whole = as_text(record);
      }
      const std::string_view wanted = whole.substr(std::min<std::size_t>(skip, whole.size()));
      skip = 0;
      const std::size_t size = std::min(wanted.size(), out.size() - done);
      std::copy_n(wanted.begin(), size, out.begin() + static_cast<std::ptrdiff_t>(done));
      done += size;
    }
    if (!progress) chunk.resize(chunk.size() * 2);  // a frame larger than the chunk
  }
  return done;
}

}  // namespace

bool journal_fits(const std::string& state_directory, PcrExtender& tpm) {
  LogHeader header;
  const auto journal = LogJournal::open(state_directory + "/journal", [&](const LogJournal::Frame& frame) -> Status {
    if (static_cast<FrameKind>(frame.kind) != FrameKind::kHeader) return {};
    auto parsed = parse_log_header(as_text(frame.payload));
    if (!parsed) return fail(parsed.error());
    header = std::move(*parsed);
    return {};
  });
  if (!journal || header.tpm != tpm.identity()) return false;
  const auto clock = tpm.clock();
  return clock && clock->reset_count == header.reset_count;
}

Result<std::unique_ptr<MeasurementLog>> MeasurementLog::open(LogOptions options, PcrExtender* tpm) {
  auto log = std::make_unique<Log>(std::move(options), tpm);
  if (auto begun = log->begin(); !begun) return fail(begun.error());
  return log;
}

}  // namespace imafs
