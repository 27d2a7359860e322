#include "imafs/measurement_log.h"

#include <algorithm>
#include <chrono>

#include "measurement_log_impl.h"

namespace imafs {
namespace {

constexpr std::uint64_t kForeignCheckEvery = 64;  // entries
constexpr auto kQuiet = std::chrono::milliseconds(20);  // a TPM cannot be reset unseen in less: a command would fail
constexpr std::size_t kReadChunk = 256 * 1024;
constexpr auto kLastChanceAfter = std::chrono::minutes(1);  // at the end: a TPM that hung since is not waited for once more
constexpr auto kShareFault = std::chrono::seconds(2);  // for a violation: how long a TPM that did not answer is not asked again

std::vector<Bank> with_sha1(std::vector<Bank> banks) {
  const Bank sha1 = Bank::of(HashAlgorithm::kSha1);
  if (std::find(banks.begin(), banks.end(), sha1) == banks.end()) banks.insert(banks.begin(), sha1);
  return banks;
}

}  // namespace

EntryOrigin own_origin() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return {std::chrono::duration_cast<std::chrono::nanoseconds>(now).count(), 0, 0, "imafs", 0, {}};
}

Log::Log(LogOptions options, PcrExtender* tpm)
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

Log::~Log() {
  {
    const std::lock_guard lock(keeper_mutex_);
    keeper_stops_ = true;
  }
  keeper_changed_.notify_all();
  if (keeper_.joinable()) keeper_.join();
  // The last chance for violations that could not be written.
  const std::lock_guard order(order_);
  arrived_ = std::chrono::steady_clock::now();
  const bool may_answer = last_slow_fault_ + kLastChanceAfter < arrived_;
  if (journal_ && !halted_ && (!owed_.empty() || pending_ || !missing_.empty()) && may_answer && settle()) (void)write_owed();
  if (journal_) journal_->give_back_room();
}

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

Result<Appended> Log::append(const LogEntry& entry, const AskOrigin& origin) {
  const auto arrived = std::chrono::steady_clock::now();
  return append_prepared(prepare(entry), origin, arrived);
}

// Between the journal, the PCR and what is known of both nothing may be left half done: without memory the process ends, and the
// next start finds what a crash leaves.
Result<Appended> Log::append_prepared(const Prepared& prepared, const AskOrigin& origin, std::chrono::steady_clock::time_point arrived) noexcept {
  const LogEntry& entry = prepared.entry;
  std::unique_lock order(order_);
  arrived_ = arrived;
  // Who breaks a lease waits for the violation. One that cannot be stored is kept, so it need not wait for a TPM that was
  // just seen not to answer.
  if (entry.is_violation) {
    ++violations_;
    if (last_slow_fault_ + kShareFault > arrived) arrived_ = last_slow_fault_ - std::chrono::nanoseconds(1);
  }
  const std::uint64_t count = count_;
  // A TPM that nobody spoke to for a while may have been reset, or extended by somebody else.
  if (!has_failed_since_arrival() && std::chrono::steady_clock::now() - last_contact_ > kQuiet) (void)compare_with_tpm();
  const std::uint32_t before = generation_;
  auto appended = append_in_order(prepared, origin);
  // A new log began instead: there the entry is new. A violation is among those that are owed to it.
  if (!appended && generation_ != before) {
    if (!entry.is_violation) {
      appended = append_in_order(prepared, origin);
    } else if (write_opening() && write_owed()) {
      appended = Appended::kLogged;
    }
  }
  if (appended == Appended::kLogged && ++appended_since_check_ >= kForeignCheckEvery) (void)compare_with_tpm();
  const bool grew = count_ != count || generation_ != before;
  order.unlock();
  if (grew) tell_growth();
  return appended;
}

void Log::tell_growth() {
  std::vector<std::function<void()>> callbacks;
  {
    const std::lock_guard lock(health_mutex_);
    callbacks = growth_;
  }
  for (const auto& callback : callbacks) callback();
}

Log::Prepared Log::prepare(const LogEntry& entry) const {
  Prepared prepared{entry, template_digests(entry, digest_banks_), extend_values(entry, banks_), {}};
  prepared.key = LogIndex::key_of(prepared.digests[dedupe_digest_], entry.pcr);
  return prepared;
}

Result<Appended> Log::append_in_order(const Prepared& prepared, const AskOrigin& origin) {
  const LogEntry& entry = prepared.entry;
  if (halted_) (void)undo_change();
  Status ready = halted_ ? Status(fail(*halted_)) : settle();
  if (ready) ready = write_opening();
  if (ready) ready = write_owed();
  if (!ready && (!options_.continue_on_tpm_error || pending_ || opening_due_ || !owed_.empty() || !journal_)) {
    if (entry.is_violation) keep_violation(prepared, origin());
    return fail_append(ready.error());
  }
  if (!journal_) {
    if (entry.is_violation) keep_violation(prepared, origin());
    return fail_append({EIO, "there is no journal to write to"});
  }
  const bool may_repeat = entry.is_violation || !options_.dedupe;
  if (!may_repeat && index_.has(prepared.key)) return Appended::kDuplicate;
  if (tpm_ && has_failed_since_arrival() && !options_.continue_on_tpm_error) {
    if (entry.is_violation) keep_violation(prepared, origin());
    return fail_append(slow_fault_);
  }
  if (auto begun = begin_pcr(entry.pcr); !begun) {
    if (entry.is_violation) keep_violation(prepared, origin());
    return fail_append(begun.error());
  }

  const EntryOrigin from = origin();
  const auto frame = journal_->append(static_cast<std::uint8_t>(FrameKind::kEntry), encode_journal_entry(entry, from, prepared.digests));
  if (!frame) {
    if (entry.is_violation) keep_violation(prepared, from);
    return fail(frame.error());
  }
  pending_ = Pending{*frame, prepared, from};
  if (auto reached = extend_pending(); !reached) {
    if (!pending_) return fail({EIO, reached.error().what});  // settled: taken back, or a new log began
    if (!options_.continue_on_tpm_error && !entry.is_violation) return fail_append({EIO, reached.error().what});
    // The entry stands in the log and not in the PCR: said in the journal, before anything follows.
    if (auto said = leave_gap(); !said) {
      // A start would find entries that it cannot explain: this one is denied. One of a violation stays, as the last one.
      tell_owed();
      return fail_append({said.error().code, said.error().what});
    }
    if (entry.is_violation) {
      in_gap_.push_back({prepared, from});
      owed_keys_.insert(owed_key(prepared));
    }
    tell_owed();
    set_health([&](TpmHealth& health) {
      health.ok = false;
      health.message = reached.error().what;
    });
    if (!options_.continue_on_tpm_error) return fail({EIO, reached.error().what});
  }
  if (!may_repeat) index_.remember(prepared.key);
  last_contact_ = std::chrono::steady_clock::now();
  return Appended::kLogged;
}

void Log::publish(std::uint64_t frame, const LogEntry& entry) {
  const std::unique_lock lock(index_mutex_);
  index_.add(frame, view_sizes_of(entry));
  ++count_;
}

// ---- views ----

Result<std::size_t> Log::read_view(LogView view, std::uint64_t offset, std::span<char> out) const {
  const std::size_t digest_size = view_banks_[view.bank].size;
  std::size_t digest_at = 0;
  for (std::size_t i = 0; i < view.bank; ++i) digest_at += view_banks_[i].size;
  std::uint64_t frame = 0, skip = 0, left = 0;
  std::shared_ptr<const LogJournal> journal;
  {
    const std::shared_lock lock(index_mutex_);
    journal = journal_;
    if (!journal) return fail(EIO, "the old log is archived, and a new one could not be begun yet");
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
    const auto got = journal->read(frame, chunk);
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
      if (decoded->digests.size() < digest_at + digest_size) return fail(EBADMSG, "an entry of the journal lacks a digest");
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
    if (progress) continue;
    // A frame larger than the chunk, or a journal that somebody has cut or damaged behind our back.
    const bool is_all = *got < chunk.size() || chunk.size() >= LogJournal::kMaxPayload + LogJournal::kFrameOverhead;
    if (is_all) return fail(EBADMSG, "the journal was changed: entry at byte " + std::to_string(frame) + " is not whole");
    chunk.resize(std::min(chunk.size() * 2, LogJournal::kMaxPayload + LogJournal::kFrameOverhead));
  }
  return done;
}

Result<std::unique_ptr<MeasurementLog>> MeasurementLog::open(LogOptions options, PcrExtender* tpm) {
  auto log = std::make_unique<Log>(std::move(options), tpm);
  if (auto begun = log->begin(); !begun) return fail(begun.error());
  return log;
}

}  // namespace imafs
