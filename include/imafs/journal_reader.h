// Reads a journal that somebody else may be writing: the live one of a mount, or one in an archive. Changes nothing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "imafs/measurement_log.h"
#include "imafs/verifier.h"

namespace imafs {

struct JournalEntryRead {
  LogEntry entry;
  EntryOrigin origin;
  std::vector<std::pair<HashAlgorithm, Bytes>> digests;  // its template digests, as kept
};

struct JournalRead {
  std::uint32_t pcr = 10;    // the log's own
  std::uint64_t trimmed = 0;  // entries that came before and are in archives
  ExpectedPcrs base;          // what the PCRs held when it began, where that was no reset value
  std::vector<HashAlgorithm> kept;  // the template digests each entry has
  std::vector<JournalEntryRead> entries;
  std::uint64_t end = 0;  // bytes of the journal that were read
};

// A torn frame at the end is left out. ENOENT: no journal. EBADMSG: damaged, with the place.
Result<JournalRead> read_journal(const std::string& directory);
// Appends what came since `journal` was read.
Status read_on(const std::string& directory, JournalRead& journal);

}  // namespace imafs
