// What an entry of the log says, whatever its template: for exports, checks against a manifest, and reports.
#pragma once

#include <cstdint>
#include <string>

#include "imafs/log_entry.h"

namespace imafs {

struct EntryView {
  std::string name;       // as logged: blanks are '_', "//..." is percent-encoded; empty: the template has none
  std::string algorithm;  // of the digest, "sha256"
  Bytes digest;           // of the file or of the data; zeros for a violation; empty: the template has none
  bool is_verity = false;
  Bytes signature;
  Bytes data;             // of an ima-buf entry

  // Whether it is about a file. `index`: of the entry, counted from the first one after the PCRs' reset, archives included: the
  // boot_aggregate is the first entry and nothing else; a file may be called so, too.
  bool is_file(std::uint64_t index) const { return data.empty() && !is_boot_aggregate(index); }
  bool is_boot_aggregate(std::uint64_t index) const { return index == 0 && data.empty() && name == "boot_aggregate"; }
};

EntryView view_of(const LogEntry& entry);

}  // namespace imafs
