// An entry of a log in the forms that `imafs log` has. Pure functions, thread-safe.
//
// Names and commands come from whoever made the log: text and CSV have no control character of theirs, no change of direction and
// nothing that is no UTF-8 ('?' stands there); JSON is ASCII and exact, but for bytes that are no UTF-8.
#pragma once

#include <cstdint>
#include <string>

#include "imafs/journal_reader.h"

namespace imafs {

std::string to_line(const JournalEntryRead& entry, std::uint64_t index);  // one line, its end included
std::string to_csv(const JournalEntryRead& entry, std::uint64_t index);   // one record of RFC 4180 on one line, its end included
std::string to_json_text(const JournalEntryRead& entry, std::uint64_t index);
// A record of the TCG's Canonical Event Log, JSON encoding.
std::string to_cel_text(const JournalEntryRead& entry, std::uint64_t index);

}  // namespace imafs
