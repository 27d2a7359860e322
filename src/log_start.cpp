// What a start finds, and what it makes of it: continue, finish the last entry, archive, or refuse.
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "imafs/posix_file.h"
#include "measurement_log_impl.h"

namespace imafs {
namespace {

std::string boot_id() {
  auto text = read_file("/proc/sys/kernel/random/boot_id", 256);
  return text ? text->substr(0, text->find('\n')) : "";
}

}  // namespace

Status Log::begin() {
  if (!options_.state_lock) {
    auto state = LogLock::of_directory(options_.state_directory);
    if (!state) return fail(state.error());
    options_.state_lock = std::make_shared<LogLock>(std::move(*state));
  }
  keeper_ = std::thread([this] { keep_up(); });
  if (auto locked = lock_pcr(options_.default_pcr); !locked) return locked;
  if (auto finished = finish_trim(); !finished) return finished;
  if (!LogJournal::exists(journal_directory())) return create_new();

  auto loaded = load();
  std::string why;
  // Only a log that is still that of this boot and this TPM is worth reading.
  const bool has_header = !header_.digests.empty();
  if (has_header && options_.mount_is_boot) return archive_and_begin(LogStart::Kind::kArchivedReboot, "the private TPM was started anew");
  if (has_header && is_of_another_log(why)) return archive_and_begin(LogStart::Kind::kArchivedReboot, why);
  // A start that ended before the header was written leaves nothing to lose.
  if (loaded && !has_header && count_ == 0) return start_over();
  if (loaded) loaded = fit_to_tpm();
  if (!loaded && loaded.error().code == EBADMSG && journal_ && !journal_->torn() && count_ == 0 && header_.trimmed == 0) return start_over();
  if (!loaded && options_.new_log && loaded.error().code == EBADMSG) {
    return archive_and_begin(LogStart::Kind::kArchivedByRequest, loaded.error().what);
  }
  if (loaded && header_.pcr != options_.default_pcr) {
    if (auto cut = cut_torn(); !cut) return cut;
    return archive_and_begin(LogStart::Kind::kArchivedByRequest, "the log was that of PCR " + std::to_string(header_.pcr));
  }
  if (loaded) loaded = cut_torn();
  if (!loaded) return loaded;
  for (const auto& [pcr, value] : pcrs_) {
    if (auto locked = lock_pcr(pcr); !locked) return locked;
  }
  journal_->keep_room();
  start_.entries = count_;
  start_.needs_boot_aggregate = count_ == 0 && header_.trimmed == 0;
  if (start_.kind == LogStart::Kind::kNew) start_.kind = LogStart::Kind::kContinued;
  start_.message = "the log goes on after " + std::to_string(count_) + " entries" +
                   (start_.kind == LogStart::Kind::kFinishedPending ? "; the last one was extended now" : "") + start_.message;
  return {};
}

// The journal holds no entry, and none is in an archive before it: whatever the PCR holds is the base of a new one.
Status Log::start_over() {
  journal_.reset();
  std::error_code failed;
  std::filesystem::remove_all(journal_directory(), failed);
  if (failed) return fail(error_of(failed.value(), "cannot remove '" + journal_directory() + "'"));
  start_.kind = LogStart::Kind::kNew;
  return create_new();
}

// What the last start left behind was never extended, or the journal would not fit the PCR.
Status Log::cut_torn() {
  if (!journal_->torn()) return {};
  const std::uint64_t bytes = journal_->torn()->bytes;
  const std::string kept = options_.state_directory + "/journal.torn";
  if (auto cut = journal_->cut_torn(kept, tpm_ == nullptr); !cut) return cut;
  if (bytes > 0) start_.message = "; " + std::to_string(bytes) + " bytes of an entry that was not written whole are in '" + kept + "'";
  return {};
}

Status Log::lock_pcr(std::uint32_t pcr) {
  if (!tpm_ || pcr >= kTpmPcrs || pcr_locks_.contains(pcr)) return {};
  auto lock = LogLock::of_tpm(tpm_->identity(), pcr);
  if (!lock) return fail(lock.error());
  pcr_locks_.emplace(pcr, std::move(*lock));
  return {};
}

// Before the first entry of a PCR: it may hold something already, which is the base then. The header says so once more.
Status Log::begin_pcr(std::uint32_t pcr) {
  if (!tpm_ || pcr >= kTpmPcrs || pcr == header_.pcr || pcrs_.contains(pcr)) return {};
  if (auto locked = lock_pcr(pcr); !locked) return locked;
  const auto start = std::chrono::steady_clock::now();
  auto value = tpm_->read(pcr);
  if (!value && tpm_->reconnect()) value = tpm_->read(pcr);
  if (!value) return note_fault(start, fail(EIO, value.error().what));
  if (!same_values(banks_, *value, pcr_reset_values(banks_, pcr))) {
    LogHeader header = header_;
    for (std::size_t i = 0; i < banks_.size(); ++i) header.base[name_of(banks_[i])][pcr] = (*value)[i];
    const auto written = journal_->append(static_cast<std::uint8_t>(FrameKind::kHeader), as_bytes(to_text(header)));
    if (!written) return fail(written.error());
    const std::unique_lock lock(index_mutex_);
    header_ = std::move(header);
  }
  const std::unique_lock lock(index_mutex_);
  (void)pcr_slot(pcr);
  return {};
}

// Whether the journal belongs to another boot or another TPM (or to none, where there is one now).
bool Log::is_of_another_log(std::string& why) const {
  if (!tpm_) {
    why = header_.tpm.empty() ? "the machine was started anew" : "the log was that of a TPM";
    return !header_.tpm.empty() || header_.boot_id != boot_id();
  }
  why = header_.tpm.empty() ? "the log had no TPM" : "the log belongs to another TPM";
  if (header_.tpm != tpm_->identity()) return true;
  why = "the TPM was reset";
  const auto clock = tpm_->clock();
  return clock && clock->reset_count != header_.reset_count;
}

// Asks the TPM: not under the locks of readers.
Result<LogHeader> Log::new_header(std::string& base_text) const {
  LogHeader header;
  header.boot_id = boot_id();
  header.pcr = options_.default_pcr;
  for (const Bank& bank : digest_banks_) {
    if (bank.hash) header.digests.push_back(*bank.hash);
  }
  if (!tpm_) return header;
  header.tpm = tpm_->identity();
  const auto clock = tpm_->clock();
  if (!clock) return fail(clock.error());
  header.reset_count = clock->reset_count;
  const auto value = tpm_->read(options_.default_pcr);
  if (!value) return fail(value.error());
  for (std::size_t i = 0; i < banks_.size(); ++i) {
    if ((*value)[i] != pcr_reset_value(banks_[i], options_.default_pcr)) {
      header.base[name_of(banks_[i])][options_.default_pcr] = (*value)[i];
      base_text = "; the PCR was not zero, its value is the base";
    }
  }
  return header;
}

Status Log::create_new() {
  std::string base_text;
  auto header = new_header(base_text);
  if (!header) return fail(header.error());
  auto created = LogJournal::create(journal_directory());
  if (!created) {
    discard_new_journal();
    return fail(created.error());
  }
  if (auto written = (*created)->append(static_cast<std::uint8_t>(FrameKind::kHeader), as_bytes(to_text(*header))); !written) {
    discard_new_journal();
    return fail(written.error());
  }
  const std::unique_lock lock(index_mutex_);
  index_ = LogIndex();
  extended_entries_ = 0;
  start_gap_.reset();
  pcrs_.clear();
  missing_.clear();
  pending_.reset();
  count_ = 0;
  violations_ = 0;
  header_ = std::move(*header);
  journal_ = std::move(*created);
  start_.entries = 0;
  start_.needs_boot_aggregate = true;
  start_.message = (start_.kind == LogStart::Kind::kNew ? "a new log" : "the old log is archived, a new one begins") + base_text;
  return {};
}

// Nothing is in it yet; what is left would be taken for a journal.
void Log::discard_new_journal() const {
  std::error_code ignored;
  std::filesystem::remove_all(journal_directory(), ignored);
}

Status Log::take_frame(const LogJournal::Frame& frame) {
  switch (static_cast<FrameKind>(frame.kind)) {
    case FrameKind::kHeader: {
      auto header = parse_log_header(as_text(frame.payload));
      if (!header) return fail(header.error());
      {
        const std::unique_lock lock(index_mutex_);
        header_ = std::move(*header);
      }
      // What a PCR held when the log began counts also while the log has no entry for it.
      for (const auto& [bank, pcrs] : header_.base) {
        for (const auto& [pcr, value] : pcrs) {
          if (tpm_ && pcr < kTpmPcrs) (void)pcr_slot(pcr);
        }
      }
      return {};
    }
    case FrameKind::kGap: {
      if (frame.payload.size() < 8) return fail(EBADMSG, "a gap of the journal is malformed");
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
    extend_pcr(banks_, pcr_slot(decoded->entry.pcr), extension_of(*decoded, banks_));
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
BankValues Log::extension_of(const JournalEntry& entry, const std::vector<Bank>& banks) const {
  BankValues extended;
  for (const Bank& bank : banks) {
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
Status Log::each_extension(const std::vector<Bank>& banks, const std::function<Status(std::uint32_t pcr, const BankValues&)>& visit) const {
  const auto again = LogJournal::scan(journal_directory(), 0, [&](const LogJournal::Frame& frame) -> Status {
    if (static_cast<FrameKind>(frame.kind) != FrameKind::kEntry) return {};
    const auto decoded = decode_journal_entry(frame.payload);
    if (!decoded) return fail(decoded.error());
    if (decoded->entry.pcr >= kTpmPcrs) return {};
    return visit(decoded->entry.pcr, extension_of(*decoded, banks));
  });
  return again ? Status() : fail(again.error());
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
  if (!tpm_) return {};
  (void)pcr_slot(header_.pcr);  // also without an entry: then it must hold what it held at the beginning
  PcrMap now;
  for (const auto& [pcr, value] : pcrs_) {
    const auto read = tpm_->read(pcr);
    if (!read) return fail(EIO, read.error().what);
    now[pcr] = *read;
  }
  const auto fits_now = [&](const PcrMap& fold) {
    return std::ranges::all_of(now, [&](const auto& one) { return same_values(banks_, one.second, fold.at(one.first)); });
  };
  if (fits_now(pcrs_)) return {};
  // From how many entries on does nothing stand in the PCRs? Fold again, and see where it fits.
  PcrMap fold;
  for (const auto& [pcr, value] : pcrs_) fold[pcr] = first_value(pcr);
  std::optional<std::uint64_t> fits;
  std::uint64_t folded = 0;
  if (fits_now(fold)) fits = 0;
  auto read = each_extension(banks_, [&](std::uint32_t pcr, const BankValues& values) -> Status {
    extend_pcr(banks_, fold[pcr], values);
    ++folded;
    if (fits_now(fold)) fits = folded;
    return {};
  });
  if (!read) return read;
  const bool pending = fits && *fits + 1 == folded;
  const bool gap = fits && start_gap_;
  if (!pending && !gap) {
    const std::string where = fits ? "the PCR holds its first " + std::to_string(*fits) + " entries; entry " + std::to_string(*fits) + " is the first that is missing"
                                   : "the PCR holds something else than any beginning of the log";
    const std::string torn = journal_->torn() ? "; its last " + std::to_string(journal_->torn()->bytes) + " bytes are no whole entry and stay where they are" : "";
    return fail(EBADMSG, "the journal of " + std::to_string(folded) + " entries does not fit the TPM: " + where + torn +
                             " (--new-log archives it and starts anew)");
  }
  if (auto cut = cut_torn(); !cut) return cut;
  std::uint64_t index = 0;
  auto finished = each_extension(banks_, [&](std::uint32_t pcr, const BankValues& values) -> Status {
    if (index++ < *fits) return {};
    return tpm_->extend(pcr, values);
  });
  if (!finished) return finished;
  if (start_gap_) (void)journal_->append(static_cast<std::uint8_t>(FrameKind::kClosed), {});
  start_.kind = LogStart::Kind::kFinishedPending;
  return {};
}

bool journal_fits(const std::string& state_directory, PcrExtender& tpm) {
  LogHeader header;
  const auto journal = LogJournal::scan(state_directory + "/journal", 0, [&](const LogJournal::Frame& frame) -> Status {
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

}  // namespace imafs
