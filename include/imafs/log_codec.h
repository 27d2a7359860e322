// Log entries as bytes: the kernel's binary records, its ASCII lines, and the blob that carries a
// log over kexec. Pure functions; thread-safe.
//
// docs/LOG_FORMAT.md has every byte with a worked example.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "imafs/log_entry.h"

namespace imafs {

// Appends one record of the binary log. `template_digest` is the digest in the file's bank.
void append_binary(Bytes& out, const LogEntry& entry, ByteView template_digest,
                   ByteOrder order = ByteOrder::kLittle);
// Appends one line, '\n' included.
void append_ascii(std::string& out, const LogEntry& entry, ByteView template_digest,
                  ByteOrder order = ByteOrder::kLittle);

// The longest name that a log is believed to hold: a path of PATH_MAX bytes, each of them percent-encoded, behind a prefix.
inline constexpr std::size_t kMaxLoggedName = std::size_t{32} << 10;

struct DecodedRecord {
  LogEntry entry;         // is_violation: the digest is all zeros
  Bytes template_digest;  // as it stands in the record
  std::size_t size = 0;   // bytes of the record
};

// Decodes the record at the start of `log`. `digest_bytes` is the size of the file's bank (20 for
// the suffix-less file). Unknown template names are tried as formats; a name that is neither, a
// length beyond the input or fields that do not fill the data exactly are EBADMSG. A record cut
// short by the end of input is ENODATA. Legacy `d` may be 20 or 16 bytes: 20 is tried first.
Result<DecodedRecord> decode_record(ByteView log, std::size_t digest_bytes,
                                    ByteOrder order = ByteOrder::kLittle);

// A whole binary log. The error says at which entry and byte offset.
Result<std::vector<DecodedRecord>> decode_log(ByteView log, std::size_t digest_bytes,
                                              ByteOrder order = ByteOrder::kLittle);

// Guesses the digest size (20, 32, 48 or 64) of a binary log by decoding it in full with each.
Result<std::size_t> guess_digest_size(ByteView log);

// The kernel's kexec buffer, version 1: header of 24 bytes, then records of the sha1 file.
Bytes encode_kexec_blob(const std::vector<LogEntry>& entries);
bool is_kexec_blob(ByteView blob);
// Refuses, as the kernel does, records named `ima`, names of 69 bytes or more, and sizes or counts
// that do not come out: EINVAL.
Result<std::vector<DecodedRecord>> decode_kexec_blob(ByteView blob);

}  // namespace imafs
