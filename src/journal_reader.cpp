#include "imafs/journal_reader.h"

#include "imafs/log_journal.h"
#include "log_header.h"
#include "log_index.h"

namespace imafs {

Result<JournalRead> read_journal(const std::string& directory) {
  JournalRead journal;
  if (auto read = read_on(directory, journal); !read) return fail(read.error());
  return journal;
}

Status read_on(const std::string& directory, JournalRead& journal) {
  const auto end = LogJournal::scan(directory, journal.end, [&](const LogJournal::Frame& frame) -> Status {
    if (static_cast<FrameKind>(frame.kind) == FrameKind::kHeader) {
      const auto header = parse_log_header(as_text(frame.payload));
      if (!header) return fail(header.error());
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
  if (!end) return fail(end.error());
  journal.end = *end;
  return {};
}

}  // namespace imafs
