// What the log does when the TPM or the disk fail: settling what is open between journal and PCR, violations that are owed,
// a TPM that was reset, and the keeper thread that tries again.
#include <algorithm>

#include "measurement_log_impl.h"

namespace imafs {
namespace {

// A command that takes longer before it fails has run into its time limit: others do not wait for the same again.
constexpr auto kSlow = std::chrono::seconds(1);
constexpr auto kFirstRetry = std::chrono::milliseconds(500);
constexpr auto kLastRetry = std::chrono::seconds(8);

}  // namespace

Status Log::note_fault(std::chrono::steady_clock::time_point start, Status failed) {
  const auto now = std::chrono::steady_clock::now();
  if (!failed && now - start >= kSlow) {
    last_slow_fault_ = now;
    slow_fault_ = {EIO, failed.error().what};
  }
  return failed;
}

// Extends what is written. A fault leaves it open whether the TPM took it: settle() asks.
Status Log::extend_pending() {
  const Prepared& prepared = pending_->prepared;
  const std::uint32_t pcr = prepared.entry.pcr;
  if (tpm_ && pcr < kTpmPcrs) {
    if (!missing_.empty()) return fail(EIO, health_.message);
    if (has_failed_since_arrival()) return fail(slow_fault_);
    {
      const std::unique_lock lock(index_mutex_);
      (void)pcr_slot(pcr);
    }
    const auto start = std::chrono::steady_clock::now();
    auto extended = tpm_->extend(pcr, prepared.extended);
    ++extends_;
    extend_ns_ += static_cast<std::uint64_t>(std::chrono::nanoseconds(std::chrono::steady_clock::now() - start).count());
    if (!extended) {
      if (auto settled = settle(); !settled) return note_fault(start, fail(extended.error()));
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
  if (journal_ && !pending_ && missing_.empty() && !must_begin_anew_) return {};
  if (has_failed_since_arrival()) return fail(slow_fault_);
  const auto start = std::chrono::steady_clock::now();
  if (auto connected = tpm_->reconnect(); !connected) return note_fault(start, connected);
  if (!journal_ || must_begin_anew_) return note_fault(start, begin_anew());
  const auto was_reset = tpm_was_reset();
  if (!was_reset) return note_fault(start, fail(was_reset.error()));
  if (*was_reset) return begin_anew();
  if (pending_) {
    if (auto settled = settle_pending(); !settled) return note_fault(start, settled);
  }
  if (auto extended = extend_missing(); !extended) return note_fault(start, extended);
  if (owed_.empty()) owed_keys_.clear();
  set_health([](TpmHealth& health) {
    const bool foreign = health.foreign_extend;
    health = TpmHealth{};
    health.foreign_extend = foreign;
  });
  tell_owed();
  return {};
}

Status Log::settle_pending() {
  const Prepared& prepared = pending_->prepared;
  const std::uint32_t pcr = prepared.entry.pcr;
  const auto now = tpm_->read(pcr);
  if (!now) return fail(now.error());
  const BankValues after = folded(pcr, prepared.extended);
  bool is_in = same_values(banks_, *now, after);
  if (!is_in && !same_values(banks_, *now, pcrs_.at(pcr))) {
    set_health([](TpmHealth& health) { health.foreign_extend = true; });
    return fail(EIO, "PCR " + std::to_string(pcr) + " holds something that is not from this log");
  }
  if (!is_in && prepared.entry.is_violation) {
    // It happened, whoever was denied for it.
    if (auto extended = tpm_->extend(pcr, prepared.extended); !extended) return extended;
    is_in = true;
  }
  if (is_in) {
    {
      const std::unique_lock lock(index_mutex_);
      pcrs_[pcr] = after;
    }
    publish(pending_->frame, prepared.entry);
    if (!prepared.entry.is_violation) index_.remember(prepared.key);
  } else {
    if (auto cut = journal_->cut(pending_->frame); !cut) return cut;
    settled_by_cut_ = true;
  }
  pending_.reset();
  return {};
}

Status Log::extend_missing() {
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
    if (!same_values(banks_, *now, after)) {
      if (auto extended = tpm_->extend(index, values); !extended) return extended;
    }
    {
      const std::unique_lock lock(index_mutex_);
      pcrs_[index] = std::move(after);
    }
    missing_.pop_front();
    if (!missing_.empty()) continue;
    in_gap_.clear();
    (void)journal_->append(static_cast<std::uint8_t>(FrameKind::kClosed), {});
  }
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
  must_begin_anew_ = true;  // until it is done nothing goes into the old log: the PCRs are no longer its own
  if (journal_) {
    // Violations that the old PCRs never held are the first that the new ones get.
    for (auto kept = in_gap_.rbegin(); kept != in_gap_.rend(); ++kept) owed_.push_front(std::move(*kept));
    in_gap_.clear();
    if (pending_) {
      if (auto cut = journal_->cut(pending_->frame); !cut) return cut;
      if (pending_->prepared.entry.is_violation) owed_.push_back({pending_->prepared, pending_->origin});
      pending_.reset();
    }
    missing_.clear();
    if (auto kept = archive("the TPM was reset"); !kept) return kept;
  }
  start_.kind = LogStart::Kind::kArchivedReboot;
  if (auto created = create_new(); !created) return created;
  must_begin_anew_ = false;
  violations_ = owed_.size();
  ++generation_;
  opening_due_ = opening_ != nullptr;
  set_health([](TpmHealth& health) { health = TpmHealth{}; });
  tell_owed();
  auto opened = write_opening();
  settled_by_cut_ = true;
  return opened;
}

// What a new log begins with. If that fails now, it is tried again before anything else is written.
Status Log::write_opening() {
  if (!opening_due_) return {};
  const auto entries = opening_();
  if (!entries) return fail(entries.error());
  opening_due_ = false;
  is_opening_ = true;
  Status written;
  for (const LogEntry& entry : *entries) {
    if (auto appended = append_in_order(prepare(entry), own_origin); !appended) {
      opening_due_ = true;
      written = fail(appended.error());
      break;
    }
  }
  is_opening_ = false;
  return written;
}

// ---- violations that are owed ----

// Says in the journal that from the pending entry on nothing is in the PCR; the entry is visible then.
Status Log::leave_gap() {
  if (missing_.empty()) {
    Bytes index;
    append_le64(index, count_);
    if (auto said = journal_->append(static_cast<std::uint8_t>(FrameKind::kGap), index); !said) return fail(said.error());
  }
  const Prepared& prepared = pending_->prepared;
  if (prepared.entry.pcr < kTpmPcrs) missing_.emplace_back(prepared.entry.pcr, prepared.extended);
  publish(pending_->frame, prepared.entry);
  set_health([&](TpmHealth& health) {
    if (!health.first_missing) health.first_missing = count_ - 1;
    health.missing_extends = missing_.size();
  });
  pending_.reset();
  return {};
}

// Violations have no digest of their own: those of one file are told from another's by what they say.
LogIndex::Key Log::owed_key(const Prepared& prepared) {
  return LogIndex::key_of(hash_of(HashAlgorithm::kSha256, template_data(prepared.entry)).bytes(), prepared.entry.pcr);
}

// A violation that cannot reach the PCR now. In the journal it outlives the daemon; where that cannot be written it waits in
// memory. One of the same file and kind that is kept already stands for it.
void Log::keep_violation(const Prepared& prepared, const EntryOrigin& origin) {
  if (!owed_keys_.insert(owed_key(prepared)).second) return;
  const auto write = [&]() -> bool {
    if (!journal_ || !tpm_ || halted_ || must_begin_anew_ || opening_due_ || !owed_.empty()) return false;
    // Behind an entry of which nobody knows whether the TPM took it: that one stays in the log, too.
    if (pending_) {
      const Prepared before = pending_->prepared;
      if (!leave_gap()) return false;
      if (!before.entry.is_violation) index_.remember(before.key);
    }
    const auto frame = journal_->append(static_cast<std::uint8_t>(FrameKind::kEntry), encode_journal_entry(prepared.entry, origin, prepared.digests));
    if (!frame) return false;
    pending_ = Pending{*frame, prepared, origin};
    if (prepared.entry.pcr < kTpmPcrs) {
      const std::unique_lock lock(index_mutex_);
      (void)pcr_slot(prepared.entry.pcr);
    }
    if (leave_gap()) {
      in_gap_.push_back({prepared, origin});
      return true;
    }
    if (!journal_->cut(*frame)) return true;  // as the last entry it is extended by settle(), or at the next start
    pending_.reset();
    return false;
  };
  if (!write()) owed_.push_back({prepared, origin});
  tell_owed();
}

// Stores the violations that wait in memory, oldest first. REQUIRES: settled.
Status Log::write_owed() {
  if (is_opening_) return {};  // a new log begins with its own entries
  while (!owed_.empty()) {
    std::deque<Owed> waiting = std::exchange(owed_, {});
    const Owed first = std::move(waiting.front());
    waiting.pop_front();
    owed_keys_.erase(owed_key(first.prepared));
    const auto stored = append_in_order(first.prepared, [&] { return first.origin; });  // with an error it is kept again
    for (Owed& next : waiting) owed_.push_back(std::move(next));
    tell_owed();
    if (!stored) return fail(stored.error());
  }
  return {};
}

Status Log::store_owed() noexcept {
  const auto arrived = std::chrono::steady_clock::now();
  std::unique_lock order(order_);
  arrived_ = arrived;
  const std::uint64_t count = count_;
  Status stored = halted_ ? Status(fail(*halted_)) : settle();
  if (stored) stored = write_opening();
  if (stored) stored = write_owed();
  const bool grew = count_ != count;
  order.unlock();
  if (grew) tell_growth();
  return stored;
}

void Log::tell_owed() {
  const std::uint64_t owed = owed_.size() + in_gap_.size() + (pending_ && pending_->prepared.entry.is_violation ? 1 : 0);
  set_health([&](TpmHealth& health) { health.owed_violations = owed; });
  const std::lock_guard lock(keeper_mutex_);
  if (has_owed_ == (owed > 0)) return;
  has_owed_ = owed > 0;
  keeper_changed_.notify_all();
}

// ---- looking at the TPM ----

Status Log::compare_with_tpm() {
  appended_since_check_ = 0;
  last_contact_ = std::chrono::steady_clock::now();
  if (!tpm_) return {};
  if (has_failed_since_arrival()) return fail(slow_fault_);
  const auto start = std::chrono::steady_clock::now();
  auto compared = settle();
  if (compared) compared = compare_each_pcr();
  // The command that failed may have taken its whole time: the answer of EBADMSG was one.
  if (!compared && compared.error().code == EBADMSG) return compared;
  return note_fault(start, compared);
}

Status Log::compare_each_pcr() {
  std::map<std::uint32_t, BankValues> seen;
  for (const auto& [pcr, value] : replayed()) {
    auto now = tpm_->read(pcr);
    if (!now && tpm_->reconnect()) now = tpm_->read(pcr);
    if (!now) {
      const std::lock_guard lock(keeper_mutex_);
      reading_.error = now.error().what;
      return fail(now.error());
    }
    seen[pcr] = *now;
    if (same_values(banks_, *now, value)) continue;
    const auto was_reset = tpm_was_reset();
    if (!was_reset) return fail(was_reset.error());
    if (*was_reset) return begin_anew();
    const std::string what = "PCR " + std::to_string(pcr) + " of the " + tpm_->description() + " was extended by somebody else";
    set_health([&](TpmHealth& health) {
      health.foreign_extend = true;
      health.message = what;
    });
    const std::lock_guard lock(keeper_mutex_);
    reading_ = {std::move(seen), {}};
    return fail(EBADMSG, what);
  }
  const std::lock_guard lock(keeper_mutex_);
  reading_ = {std::move(seen), {}};
  return {};
}

Status Log::check_tpm() {
  const auto arrived = std::chrono::steady_clock::now();
  const std::lock_guard order(order_);
  arrived_ = arrived;
  return compare_with_tpm();
}

TpmReading Log::look_at_tpm(std::chrono::milliseconds wait) {
  if (!tpm_) return {};
  std::unique_lock lock(keeper_mutex_);
  // One that is under way may have begun before what the caller wants to see.
  const std::uint64_t wanted = ++looks_wanted_;
  keeper_changed_.notify_all();
  const bool done = keeper_changed_.wait_for(lock, wait, [&] { return looks_done_ >= wanted; });
  TpmReading reading = reading_;
  reading.late = !done;
  return reading;
}

void Log::keep_up() {
  auto pause = std::chrono::milliseconds(kFirstRetry);
  auto next_try = std::chrono::steady_clock::now();
  std::unique_lock lock(keeper_mutex_);
  while (!keeper_stops_) {
    const auto has_work = [&] { return keeper_stops_ || looks_wanted_ > looks_done_; };
    if (has_owed_) {
      keeper_changed_.wait_until(lock, next_try, has_work);
    } else {
      keeper_changed_.wait(lock, [&] { return has_work() || has_owed_; });
      if (has_owed_) {
        pause = kFirstRetry;
        next_try = std::chrono::steady_clock::now() + pause;
        if (!has_work()) continue;
      }
    }
    if (keeper_stops_) return;
    const std::uint64_t wanted = looks_wanted_;
    const bool look = wanted > looks_done_;
    const bool retry = has_owed_ && std::chrono::steady_clock::now() >= next_try;
    lock.unlock();
    bool grew = false;
    {
      const auto arrived = std::chrono::steady_clock::now();
      const std::lock_guard order(order_);
      arrived_ = arrived;
      const std::uint64_t count = count_;
      if (look) (void)compare_with_tpm();
      if (retry && !halted_ && settle() && write_opening()) (void)write_owed();
      grew = count_ != count;
    }
    if (grew) tell_growth();
    lock.lock();
    looks_done_ = std::max(looks_done_, wanted);
    keeper_changed_.notify_all();
    if (retry) {
      pause = std::min<std::chrono::milliseconds>(pause * 2, kLastRetry);
      next_try = std::chrono::steady_clock::now() + pause;
    }
  }
}

}  // namespace imafs
