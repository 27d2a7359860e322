// Trimming: the first entries of the log go to the archive, and the log goes on from the PCR values they end in.
//
// Both halves are written in full beside the journal; then three renames change over. finish_trim() completes or
// undoes what a crash left between them.
#include <unistd.h>

#include <filesystem>

#include "imafs/posix_file.h"
#include "measurement_log_impl.h"

namespace imafs {
namespace {

void remove_directory(const std::string& path) {
  std::error_code ignored;
  std::filesystem::remove_all(path, ignored);
}

Status rename_directory(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) return fail(errno_error("cannot move '" + from + "'"));
  return {};
}

bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

Status write_frame(LogJournal& journal, FrameKind kind, ByteView payload) {
  const auto written = journal.append(static_cast<std::uint8_t>(kind), payload);
  return written ? Status() : fail(written.error());
}

}  // namespace

// The order of the renames: journal -> whole, rest -> journal, head -> archive/N.
Status Log::finish_trim() const {
  const std::string whole = journal_directory() + ".whole", head = journal_directory() + ".head";
  if (exists(whole) && !exists(journal_directory())) {
    if (auto undone = rename_directory(whole, journal_directory()); !undone) return undone;
  } else if (exists(whole) && exists(head)) {
    auto target = next_archive();
    if (!target) return fail(target.error());
    if (auto moved = rename_directory(head, *target); !moved) return moved;
  }
  for (const std::string& leftover : {whole, head, journal_directory() + ".rest"}) remove_directory(leftover);
  return {};
}

void Log::remove_halves() const {
  for (const char* half : {".head", ".rest"}) remove_directory(journal_directory() + half);
}

// Puts the halves in the place of the journal. With an error all is as it was; where that cannot be had either, the log is
// halted until undo_change() succeeds, or a start completes or undoes the change.
Status Log::change_over(const std::string& target) {
  const std::string live = journal_directory();
  if (auto moved = rename_directory(live, live + ".whole"); !moved) return moved;
  Status moved = rename_directory(live + ".rest", live);
  if (moved) moved = rename_directory(live + ".head", target);
  if (moved) return {};
  if (!undo_change()) halted_ = Error{EIO, "the log could not be trimmed: " + moved.error().what};
  return moved;
}

// The journal that we have open is the whole one: it goes back to its place.
Status Log::undo_change() {
  const std::string live = journal_directory();
  if (exists(live + ".whole") && exists(live)) {
    if (auto moved = rename_directory(live, live + ".rest"); !moved) return moved;
  }
  if (auto moved = rename_directory(live + ".whole", live); !moved) return moved;
  halted_.reset();
  return {};
}

Result<std::string> Log::trim(std::uint64_t entries) noexcept {
  const auto arrived = std::chrono::steady_clock::now();
  const std::lock_guard order(order_);
  arrived_ = arrived;
  if (halted_) return fail(*halted_);
  if (!tpm_) return fail(ENOTSUP, "without a TPM there is no PCR value to go on from");
  if (auto compared = compare_with_tpm(); !compared) return fail(compared.error());
  if (auto paid = write_owed(); !paid) return fail(paid.error());
  if (tpm_health().foreign_extend) return fail(EBADMSG, "the log does not replay to the PCR: it stays whole");
  if (entries == 0 || entries > count_) {
    return fail(EINVAL, "cannot trim " + std::to_string(entries) + " entries of " + std::to_string(count_));
  }
  auto target = next_archive();
  if (!target) return target;
  remove_halves();
  auto halves = write_halves(entries);
  Status moved = halves ? change_over(*target) : fail(halves.error());
  if (!moved) {
    // What a halted log needs at its next start stays.
    if (!halted_) remove_halves();
    return fail(moved.error());
  }
  LogIndex index;
  auto journal = LogJournal::open(journal_directory(), [&](const LogJournal::Frame& frame) -> Status {
    if (static_cast<FrameKind>(frame.kind) != FrameKind::kEntry) return {};
    const auto decoded = decode_journal_entry(frame.payload);
    if (!decoded) return fail(decoded.error());
    index.add(frame.offset, decoded->sizes);
    return {};
  });
  if (!journal) {
    // The whole one is still there. What went to the archive is in it, too; until it is back, the archive has it alone.
    if (undo_change()) {
      remove_directory(*target);
      remove_halves();
    } else {
      halted_ = Error{EIO, "the trimmed journal cannot be read: " + journal.error().what};
    }
    return fail(journal.error());
  }
  (*journal)->keep_room();
  const std::unique_lock lock(index_mutex_);
  index.take_seen_of(index_);  // what was trimmed is still no news
  index_ = std::move(index);
  journal_ = std::move(*journal);
  header_ = std::move(*halves);
  count_ = index_.size();
  remove_directory(journal_directory() + ".whole");
  return target;
}

// Makes journal.head and journal.rest; returns the header of the rest.
Result<LogHeader> Log::write_halves(std::uint64_t entries) const {
  const std::string head_directory = journal_directory() + ".head";
  auto head = LogJournal::create(head_directory);
  if (!head) return fail(head.error());
  auto rest = LogJournal::create(journal_directory() + ".rest");
  if (!rest) return fail(rest.error());
  if (auto written = write_frame(**head, FrameKind::kHeader, as_bytes(to_text(header_))); !written) return fail(written.error());

  LogHeader rest_header = header_;
  rest_header.trimmed += entries;
  PcrMap fold;
  for (const auto& [pcr, values] : pcrs_) fold.emplace(pcr, first_value(pcr));
  std::uint64_t seen = 0;
  const auto begin_rest = [&]() -> Status {
    for (const auto& [pcr, values] : fold) {
      for (std::size_t i = 0; i < banks_.size(); ++i) rest_header.base[name_of(banks_[i])][pcr] = values[i];
    }
    if (auto text = write_end_pcrs(head_directory, "trimmed", banks_, fold); !text) return text;
    return write_frame(**rest, FrameKind::kHeader, as_bytes(to_text(rest_header)));
  };
  const auto copied = LogJournal::scan(journal_directory(), 0, [&](const LogJournal::Frame& frame) -> Status {
    // Gaps are closed, or we would not be here: what is left are entries.
    if (static_cast<FrameKind>(frame.kind) != FrameKind::kEntry) return {};
    const auto decoded = decode_journal_entry(frame.payload);
    if (!decoded) return fail(decoded.error());
    LogJournal& half = seen < entries ? **head : **rest;
    if (auto written = write_frame(half, FrameKind::kEntry, frame.payload); !written) return written;
    const std::uint32_t pcr = decoded->entry.pcr;
    if (pcr < kTpmPcrs) extend_pcr(banks_, fold.try_emplace(pcr, first_value(pcr)).first->second, extension_of(*decoded, banks_));
    return ++seen == entries ? begin_rest() : Status();
  });
  if (!copied) return fail(copied.error());
  if (fold != pcrs_) return fail(EBADMSG, "the journal does not replay to the PCR any more: it stays whole");
  (*head)->give_back_room();
  return rest_header;
}

}  // namespace imafs
