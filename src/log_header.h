// The first frame of a journal: whose log it is, and what its entries carry. Text, a key a line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "imafs/bank.h"
#include "imafs/result.h"
#include "imafs/verifier.h"

namespace imafs {

struct LogHeader {
  std::string tpm;                // PcrExtender::identity(); empty: none
  std::string boot_id;            // of the machine, for a log without a TPM
  std::uint32_t reset_count = 0;  // of the TPM when the log began
  std::uint32_t pcr = 10;
  std::vector<HashAlgorithm> digests;  // the template digests kept with each entry
  ExpectedPcrs base;                   // PCR values at the beginning that were no reset values
  std::uint64_t trimmed = 0;           // entries that came before and are in archives
  bool operator==(const LogHeader&) const = default;
};

std::string to_text(const LogHeader& header);
// "sha256:10: HEX" for each value of `base`.
std::string base_lines(const LogHeader& header);
Result<LogHeader> parse_log_header(std::string_view text);

}  // namespace imafs
