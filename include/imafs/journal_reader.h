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
  bool has_tpm = false;       // whether its entries were extended into a TPM
  std::uint32_t pcr = 10;    // the log's own
  std::uint64_t trimmed = 0;  // entries that came before and are in archives
  ExpectedPcrs base;          // what the PCRs held when it began, where that was no reset value
  std::vector<HashAlgorithm> kept;  // the template digests each entry has
  std::vector<JournalEntryRead> entries;
  std::uint64_t end = 0;  // bytes of the journal that were read
};

// A torn frame at the end is left out. ENOENT: no journal. EBADMSG: damaged, with the place.
Result<JournalRead> read_journal(const std::string& directory);
// Appends what came since `journal` was read; only that is read from disk. If another journal stands there now, `journal` is
// that one, read whole.
Status read_on(const std::string& directory, JournalRead& journal);

// The numbers of the archives of a state directory, ascending: the order of the logs in them. Empty: there is none.
Result<std::vector<unsigned>> archive_numbers(const std::string& state_directory);

}  // namespace imafs
