// What a command read, as a document for others: in-toto Statements, SPDX, or plain lines. Pure functions.
//
// Sources: in-toto Attestation Framework (Statement v1, predicates runtime-trace v0.1 and SLSA provenance v1), SPDX 2.3.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "imafs/bytes.h"

namespace imafs {

struct FileDigest {
  std::string name;  // the path, byte by byte
  std::string algorithm;
  Bytes digest;
  Bytes sha1{};             // of the same bytes; SPDX demands it. Empty: not known
  bool is_earlier = false;  // the file has other bytes by now; looked at for "spdx" and "text" alone
  auto operator<=>(const FileDigest&) const = default;
};

struct RunRecord {
  std::string version;              // of imafs
  std::vector<std::string> command;
  std::string directory;            // it ran in
  std::string host;
  std::string policy;               // the rules in force
  std::vector<FileDigest> read;     // sorted, each once
  std::vector<FileDigest> gone;     // likewise, without names: read, and not there any more at the end (temporary files)
  std::vector<std::string> violations;  // names of files that changed while they were read; sorted, each once
  std::vector<FileDigest> subjects;     // what was made; empty: the list of files itself is the subject
  int exit_code = 0;
  std::int64_t started = 0;         // seconds since the epoch
  std::int64_t finished = 0;
};

// "in-toto", "slsa", "spdx", "text"; empty for another format. Without the times, and an SPDX document's namespace, two
// runs of the same are equal.
std::string attest(const RunRecord& run, const std::string& format);

}  // namespace imafs
