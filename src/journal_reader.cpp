#include "imafs/journal_reader.h"

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "imafs/log_journal.h"
#include "log_header.h"
#include "log_index.h"

namespace imafs {

namespace {

Result<std::uint64_t> read_from(const std::string& directory, JournalRead& journal) {
  return LogJournal::scan(directory, journal.end, [&](const LogJournal::Frame& frame) -> Status {
    if (static_cast<FrameKind>(frame.kind) == FrameKind::kHeader) {
      const auto header = parse_log_header(as_text(frame.payload));
      if (!header) return fail(header.error());
      journal.has_tpm = !header->tpm.empty();
      journal.pcr = header->pcr;
      journal.trimmed = header->trimmed;
      journal.base = header->base;
      journal.kept = header->digests;
    }
    if (static_cast<FrameKind>(frame.kind) != FrameKind::kEntry) return {};
    auto decoded = decode_journal_entry(frame.payload);
    if (!decoded) return fail(EBADMSG, "entry " + std::to_string(journal.entries.size()) + ": " + decoded.error().what);
    JournalEntryRead entry{std::move(decoded->entry), std::move(decoded->origin), {}};
    ByteView kept = decoded->digests;
    for (const HashAlgorithm algorithm : journal.kept) {
      const std::size_t size = digest_size(algorithm);
      if (kept.size() < size) break;
      entry.digests.emplace_back(algorithm, Bytes(kept.begin(), kept.begin() + static_cast<std::ptrdiff_t>(size)));
      kept = kept.subspan(size);
    }
    journal.entries.push_back(std::move(entry));
    return {};
  });
}

}  // namespace

Result<JournalRead> read_journal(const std::string& directory) {
  JournalRead journal;
  const auto end = read_from(directory, journal);
  if (!end) return fail(end.error());
  journal.end = *end;
  return journal;
}

Status read_on(const std::string& directory, JournalRead& journal) {
  const std::uint64_t from = journal.end;
  const auto end = read_from(directory, journal);
  if (end && *end >= from) {
    journal.end = *end;
    return {};
  }
  if (from == 0) return fail(end.error());
  // An entry that was read has been taken back, or the log was trimmed: where we were is no longer the end of a frame.
  auto again = read_journal(directory);
  if (!again) return fail(again.error());
  journal = std::move(*again);
  return {};
}

Result<std::vector<unsigned>> archive_numbers(const std::string& state_directory) {
  std::vector<unsigned> numbers;
  std::error_code failed;
  for (auto entry = std::filesystem::directory_iterator(state_directory + "/archive", failed); !failed && entry != std::filesystem::directory_iterator();
       entry.increment(failed)) {
    const std::string name = entry->path().filename().string();
    unsigned number = 0;
    const auto parsed = std::from_chars(name.data(), name.data() + name.size(), number);
    if (parsed.ec == std::errc() && parsed.ptr == name.data() + name.size() && number > 0) numbers.push_back(number);
  }
  if (failed && failed.value() != ENOENT) return fail(error_of(failed.value(), "cannot list '" + state_directory + "/archive'"));
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

}  // namespace imafs
