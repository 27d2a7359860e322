#include "imafs/measurement_log.h"

#include <algorithm>
#include <chrono>

#include "measurement_log_impl.h"

namespace imafs {
namespace {

constexpr std::uint64_t kForeignCheckEvery = 64;  // entries
constexpr auto kQuiet = std::chrono::milliseconds(20);  // a TPM cannot be reset unseen in less: a command would fail
constexpr std::size_t kReadChunk = 256 * 1024;

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
  const Prepared prepared = prepare(entry);
  std::unique_lock order(order_);
  if (entry.is_violation) ++violations_;
  // A TPM that nobody spoke to for a while may have been reset, or extended by somebody else.
  if (std::chrono::steady_clock::now() - last_contact_ > kQuiet) (void)compare_with_tpm();
  const std::uint32_t before = generation_;
  auto appended = append_in_order(prepared, origin);
  // A new log began instead: there the entry is new.
  if (!appended && generation_ != before) appended = append_in_order(prepared, origin);
  if (!appended || *appended == Appended::kDuplicate) return appended;
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

Log::Prepared Log::prepare(const LogEntry& entry) const {
  Prepared prepared{entry, template_digests(entry, digest_banks_), extend_values(entry, banks_), {}};
  prepared.key = LogIndex::key_of(prepared.digests[dedupe_digest_], entry.pcr);
  return prepared;
}

Result<Appended> Log::append_in_order(const Prepared& prepared, const AskOrigin& origin) {
  const LogEntry& entry = prepared.entry;
  if (auto settled = settle(); !settled) {
    if (!options_.continue_on_tpm_error || pending_) return fail_append({EIO, settled.error().what});
  }
  if (!journal_) return fail_append({EIO, "there is no journal to write to"});
  const bool may_repeat = entry.is_violation || !options_.dedupe;
  if (!may_repeat && index_.has(prepared.key)) return Appended::kDuplicate;

  const auto frame =
      journal_->append(static_cast<std::uint8_t>(FrameKind::kEntry), encode_journal_entry(entry, origin(), prepared.digests));
  if (!frame) return fail(frame.error());
  pending_ = Pending{*frame, prepared};
  if (auto reached = extend_pending(); !reached) {
    if (!pending_) return fail({EIO, reached.error().what});  // settled: taken back, or a new log began
    if (!options_.continue_on_tpm_error) return fail_append({EIO, reached.error().what});
    // The entry stands in the log and not in the PCR: said in the journal, before anything follows.
    if (missing_.empty()) {
      Bytes index;
      append_le64(index, count_);
      if (auto said = journal_->append(static_cast<std::uint8_t>(FrameKind::kGap), index); !said) {
        // A start would find entries that it cannot explain: this one is denied, and settled as without `continue`.
        return fail_append({said.error().code, said.error().what});
      }
    }
    if (entry.pcr < kTpmPcrs) missing_.emplace_back(entry.pcr, prepared.extended);
    publish(*frame, entry);
    pending_.reset();
    set_health([&](TpmHealth& health) {
      health.ok = false;
      health.message = reached.error().what;
      if (!health.first_missing) health.first_missing = count_ - 1;
      health.missing_extends = missing_.size();
    });
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

// Extends what is written. A fault leaves it open whether the TPM took it: settle() asks.
Status Log::extend_pending() {
  const Prepared& prepared = pending_->prepared;
  const std::uint32_t pcr = prepared.entry.pcr;
  if (tpm_ && pcr < kTpmPcrs) {
    if (!missing_.empty()) return fail(EIO, health_.message);
    {
      const std::unique_lock lock(index_mutex_);
      (void)pcr_slot(pcr);
    }
    const auto start = std::chrono::steady_clock::now();
    auto extended = tpm_->extend(pcr, prepared.extended);
    ++extends_;
    extend_ns_ += static_cast<std::uint64_t>(std::chrono::nanoseconds(std::chrono::steady_clock::now() - start).count());
    if (!extended) {
      if (auto settled = settle(); !settled) return fail(extended.error());
      // It was taken back or it was done: when it was taken back, this entry has not happened.
      if (settled_by_cut_) return fail(extended.error());
      return {};
    }
    const std::unique_lock lock(index_mutex_);
    pcrs_[pcr] = folded(pcr, prepared.extended);
  }
  publish(pending_->frame, prepared.entry);
  pending_.reset();
  return {};
}

// After a fault: reads the PCR to learn what happened, and makes journal and PCR agree again.
Status Log::settle() {
  settled_by_cut_ = false;
  if (!tpm_) return {};
  if (!journal_) return begin_anew();
  if (!pending_ && missing_.empty()) return {};
  if (auto connected = tpm_->reconnect(); !connected) return connected;
  const auto was_reset = tpm_was_reset();
  if (!was_reset) return fail(was_reset.error());
  if (*was_reset) return begin_anew();
  if (pending_) {
    if (auto settled = settle_pending(); !settled) return settled;
  }
  while (!missing_.empty()) {
    const auto& [index, values] = missing_.front();
    // Of the command that failed nobody knows whether it was carried out: the PCR does.
    const auto now = tpm_->read(index);
    if (!now) return fail(now.error());
    BankValues after;
    {
      const std::unique_lock lock(index_mutex_);
      (void)pcr_slot(index);
      after = folded(index, values);
    }
    if (*now != after) {
      if (auto extended = tpm_->extend(index, values); !extended) return extended;
    }
    const std::unique_lock lock(index_mutex_);
    pcrs_[index] = std::move(after);
    missing_.pop_front();
    if (missing_.empty()) (void)journal_->append(static_cast<std::uint8_t>(FrameKind::kClosed), {});
  }
  set_health([](TpmHealth& health) {
    const bool foreign = health.foreign_extend;
    health = TpmHealth{};
    health.foreign_extend = foreign;
  });
  return {};
}

Status Log::settle_pending() {
  const std::uint32_t pcr = pending_->prepared.entry.pcr;
  const auto now = tpm_->read(pcr);
  if (!now) return fail(now.error());
  if (*now == folded(pcr, pending_->prepared.extended)) {
    {
      const std::unique_lock lock(index_mutex_);
      pcrs_[pcr] = *now;
    }
    publish(pending_->frame, pending_->prepared.entry);
    index_.remember(pending_->prepared.key);
  } else if (*now == pcrs_.at(pcr)) {
    if (auto cut = journal_->cut(pending_->frame); !cut) return cut;
    settled_by_cut_ = true;
  } else {
    set_health([](TpmHealth& health) { health.foreign_extend = true; });
    return fail(EIO, "PCR " + std::to_string(pcr) + " holds something that is not from this log");
  }
  pending_.reset();
  return {};
}

Result<bool> Log::tpm_was_reset() const {
  const auto clock = tpm_->clock();
  if (!clock) return fail(clock.error());
  return clock->reset_count != header_.reset_count;
}

// The TPM was reset under us: its PCRs hold nothing of this log any more. The log is archived with the values it
// replays to, and a new one begins as that of a new boot does.
Status Log::begin_anew() {
  if (journal_) {
    if (pending_) {
      if (auto cut = journal_->cut(pending_->frame); !cut) return cut;
      pending_.reset();
    }
    if (auto kept = archive("the TPM was reset"); !kept) return kept;
  }
  {
    const std::unique_lock lock(index_mutex_);
    start_.kind = LogStart::Kind::kArchivedReboot;
    if (auto created = create_new(); !created) {
      journal_.reset();
      return created;
    }
    ++generation_;
  }
  set_health([](TpmHealth& health) { health = TpmHealth{}; });
  if (opening_) {
    const auto entries = opening_();
    if (!entries) return fail(entries.error());
    for (const LogEntry& entry : *entries) {
      if (auto appended = append_in_order(prepare(entry), own_origin); !appended) return fail(appended.error());
    }
  }
  settled_by_cut_ = true;
  return {};
}

Status Log::compare_with_tpm() {
  appended_since_check_ = 0;
  last_contact_ = std::chrono::steady_clock::now();
  if (!tpm_) return {};
  if (auto settled = settle(); !settled) return settled;
  for (const auto& [pcr, value] : replayed()) {
    auto now = tpm_->read(pcr);
    if (!now && tpm_->reconnect()) now = tpm_->read(pcr);
    if (!now) return fail(now.error());
    if (*now == value) continue;
    const auto was_reset = tpm_was_reset();
    if (!was_reset) return fail(was_reset.error());
    if (*was_reset) return begin_anew();
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
  std::shared_ptr<const LogJournal> journal;
  {
    const std::shared_lock lock(index_mutex_);
    journal = journal_;
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

Result<std::unique_ptr<MeasurementLog>> MeasurementLog::open(LogOptions options, PcrExtender* tpm) {
  auto log = std::make_unique<Log>(std::move(options), tpm);
  if (auto begun = log->begin(); !begun) return fail(begun.error());
  return log;
}

}  // namespace imafs
