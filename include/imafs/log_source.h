// The log that somebody names on a command line: of a mount, in a state or archive directory, or a binary log.
#pragma once

#include <cstdint>
#include <string>

#include "imafs/journal_reader.h"

namespace imafs {

// Where a journal is. Of a mount's, entries from `limit` on are not extended yet.
struct JournalPlace {
  std::string directory;
  std::uint64_t limit = ~std::uint64_t{0};
  bool is_mount = false;
};

// `target` is a directory. ENOENT: no mount, no state or archive directory.
Result<JournalPlace> find_journal(const std::string& target);
// A binary log as a journal, without circumstances. EBADMSG: it does not decode.
Result<JournalRead> read_binary_log(const std::string& path);
// Either, whole. The entries of a mount are those its PCR holds.
Result<JournalRead> read_log(const std::string& target);

}  // namespace imafs
