// What an entry of the log says, whatever its template: for exports, checks against a manifest, and reports.
#pragma once

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

  bool is_file() const { return data.empty() && name != "boot_aggregate"; }
};

EntryView view_of(const LogEntry& entry);

}  // namespace imafs
