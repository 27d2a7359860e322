// A log as one HTML page that needs nothing else: for people, and for the record.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "imafs/journal_reader.h"
#include "imafs/verifier.h"

namespace imafs {

struct ReportSource {
  std::string target;   // as the user named it
  std::string backing;  // of a mount; empty: no mount
  std::optional<std::string> policy;  // in force, in normal form; absent: not known
  std::int64_t made_ns = 0;           // when the report is made, CLOCK_REALTIME
  JournalRead log;
  Verification verification;
};

// Entries beyond this many are counted and drawn, and the oldest of them are not in the table.
inline constexpr std::size_t kReportTableEntries = 100'000;

// UTF-8. The page's scripts are the only ones it allows itself to run, and it may load nothing.
std::string report_page(const ReportSource& source);

}  // namespace imafs
