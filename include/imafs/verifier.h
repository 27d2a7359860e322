// Replays a log and compares it with PCR values: the judgement behind `imafs verify`, usable as a
// function. Never prints, never exits.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "imafs/log_codec.h"
#include "imafs/pcr_value.h"

namespace imafs {

// kNotChecked: what could be compared fits, but a point that the verdict needs could not be compared: incomplete.
enum class Verdict { kVerified, kMismatch, kNotChecked };  // exit codes 0, 1, 2

struct BankReplay {
  Bank bank;
  std::map<std::uint32_t, Bytes> replayed;               // by PCR
  std::map<std::uint32_t, std::optional<Bytes>> expected;  // as read; absent: not compared
  bool matches = false;        // every expected value equals the replayed one
  bool used_padded_sha1 = false;  // the bank fits only with sha1 template digests padded with zeros
};

struct Verification {
  Verdict verdict = Verdict::kNotChecked;
  std::uint64_t entries = 0;
  std::uint64_t violations = 0;
  std::vector<BankReplay> banks;
  // The first entry whose template digest does not fit its data, or the number of entries that lead
  // to the PCR's value when the log goes on beyond it. 0-based index.
  std::optional<std::uint64_t> first_bad_entry;
  std::string message;  // one sentence: what was found
  std::vector<std::string> unchecked;  // why it is not verified although nothing contradicts; a sentence each
};

// What a log has to show beyond replaying to the values that are there.
struct VerifyDemands {
  // Each of these needs a value to compare with, and an entry of the log unless `base` has a value of it: a log about
  // other PCRs says nothing about these. Those that the log has entries of are demanded anyway.
  std::set<std::uint32_t> pcrs{10};
  // Whether a bank may rest on SHA-1: kernels before 5.8 extend all banks with the sha1 digest padded with zeros.
  bool may_be_padded_sha1 = false;
};

// PCR values to compare with: by bank name ("sha256") and PCR.
using ExpectedPcrs = std::map<std::string, std::map<std::uint32_t, Bytes>>;

// Told now and then how many steps more are done, of log.size() * (1 + banks.size()) in all.
using VerifyProgress = std::function<void(std::uint64_t steps)>;

// `digest_bytes`: of the log's own bank. `base`: values the PCRs held before the log began, by bank
// name and PCR; reset values where absent.
Verification verify_log(const std::vector<DecodedRecord>& log, std::size_t digest_bytes,
                        const std::vector<Bank>& banks, const ExpectedPcrs& expected,
                        const ExpectedPcrs& base = {}, const VerifyProgress& progress = {}, const VerifyDemands& demands = {});

// Lines "PCR-10: HEX", "10: 0xHEX", "sha256:10: HEX", "bank index hex" and tpm2_pcrread's YAML
// ("  sha256:" then "    10: 0xHEX"). EINVAL: file:line of the first line that is none of these.
// A line without a bank belongs to the bank whose digest has its length.
Result<ExpectedPcrs> parse_pcr_values(std::string_view text, const std::string& origin);

}  // namespace imafs
