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
  Bytes data;             // of a field buf
  // No digest of the log binds an entry's template, so whoever hands a log over can give an entry another one that fits the same bytes.
  // Whether it can only be read like this: it begins with a digest and a name, each as its template says. See SECURITY.md.
  bool is_sound = false;
  bool is_data = false;   // an ima-buf entry whose digest is that of its data, and which has no path for a name

  // Whether it is about a file. `index`: of the entry, counted from the first one after the PCRs' reset, archives included: the
  // boot_aggregate is the first entry and nothing else; a file may be called so, too.
  bool is_file(std::uint64_t index) const { return !is_data && !is_boot_aggregate(index); }
  bool is_boot_aggregate(std::uint64_t index) const { return index == 0 && is_sound && data.empty() && name == "boot_aggregate"; }
};

EntryView view_of(const LogEntry& entry);

}  // namespace imafs
