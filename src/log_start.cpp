// What a start finds, and what it makes of it: continue, finish the last entry, archive, or refuse.
#include <unistd.h>

#include <algorithm>

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
  if (tpm_) {
    auto lock = LogLock::of_tpm(tpm_->identity(), options_.default_pcr);
    if (!lock) return fail(lock.error());
    tpm_lock_ = std::move(*lock);
  }
  if (auto finished = finish_trim(); !finished) return finished;
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
  start_.needs_boot_aggregate = count_ == 0 && header_.trimmed == 0;
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

// The directory for the next archive, which does not exist yet.
Result<std::string> Log::next_archive() const {
  const std::string parent = options_.state_directory + "/archive";
  if (auto made = make_directories(parent, 0700); !made) return fail(made.error());
  for (unsigned number = 1;; ++number) {
    std::string path = parent + "/" + std::to_string(number);
    if (::access(path.c_str(), F_OK) != 0) return path;
  }
}

Status Log::write_end_pcrs(const std::string& directory, const std::string& why, const PcrMap& values) const {
  std::string text = "# " + why + "\n";
  for (const auto& [pcr, of_pcr] : values) {
    for (std::size_t i = 0; i < banks_.size(); ++i) {
      text += name_of(banks_[i]) + ":" + std::to_string(pcr) + ": " + to_hex(of_pcr[i]) + "\n";
    }
  }
  return write_file_atomically(directory + "/end-pcrs", text);
}

// Moves the journal aside, with the PCR values it ends in.
Status Log::archive(const std::string& why) {
  const auto target = next_archive();
  if (!target) return fail(target.error());
  if (auto written = write_end_pcrs(journal_directory(), why, pcrs_); !written) return written;
  if (::rename(journal_directory().c_str(), target->c_str()) != 0) return fail(errno_error("cannot archive the log in '" + *target + "'"));
  const std::unique_lock lock(index_mutex_);
  journal_.reset();
  return {};
}

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

}  // namespace imafs
