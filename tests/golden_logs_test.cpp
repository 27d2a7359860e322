// The captured logs of real kernels: decoded, encoded again, recomputed, replayed to the PCRs of their TPM.
#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <filesystem>

#include "imafs/log_codec.h"
#include "imafs/posix_file.h"
#include "imafs/verifier.h"

namespace imafs {
namespace {

const std::string kGolden = std::string(IMAFS_TEST_DATA) + "/golden/";

std::vector<std::string> scenarios() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kGolden)) {
    if (std::filesystem::exists(entry.path() / "pcrs.txt")) names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// Of the captured values only the PCRs a log can name: 10 and up.
ExpectedPcrs pcrs_of(const std::string& scenario) {
  auto values = parse_pcr_values(*read_file(kGolden + scenario + "/pcrs.txt", 1 << 20), "pcrs.txt");
  REQUIRE(values);
  return *values;
}

}  // namespace

TEST_CASE("captured binary logs are decoded and encoded again byte for byte, in every bank") {
  std::size_t logs = 0;
  for (const std::string& scenario : scenarios()) {
    for (const HashAlgorithm bank : {HashAlgorithm::kSha1, HashAlgorithm::kSha256, HashAlgorithm::kSha384, HashAlgorithm::kSha512}) {
      const std::string suffix = std::string(name_of(bank));
      CAPTURE(scenario, suffix);
      const auto binary = read_file(kGolden + scenario + "/binary_runtime_measurements_" + suffix, 64 << 20);
      const auto ascii = read_file(kGolden + scenario + "/ascii_runtime_measurements_" + suffix, 64 << 20);
      REQUIRE(binary);
      REQUIRE(ascii);
      const auto records = decode_log(as_bytes(*binary), digest_size(bank));
      REQUIRE(records);
      Bytes again;
      std::string text;
      for (const DecodedRecord& record : *records) {
        append_binary(again, record.entry, record.template_digest);
        append_ascii(text, record.entry, record.template_digest);
      }
      CHECK(as_text(again) == *binary);
      CHECK(text == *ascii);
      CHECK(guess_digest_size(as_bytes(*binary)) == digest_size(bank));
      ++logs;
    }
  }
  CHECK(logs >= 4 * 45);
}

TEST_CASE("captured logs replay to the PCRs of their TPM in four banks") {
  const std::vector<Bank> banks{Bank::of(HashAlgorithm::kSha1), Bank::of(HashAlgorithm::kSha256), Bank::of(HashAlgorithm::kSha384),
                                Bank::of(HashAlgorithm::kSha512)};
  for (const std::string& scenario : scenarios()) {
    CAPTURE(scenario);
    const auto binary = read_file(kGolden + scenario + "/binary_runtime_measurements_sha1", 64 << 20);
    const auto records = decode_log(as_bytes(*binary), 20);
    REQUIRE(records);
    const Verification verdict = verify_log(*records, 20, banks, pcrs_of(scenario));
    for (const BankReplay& bank : verdict.banks) CHECK(bank.matches);
    // An entry for a PCR that no TPM has (rules may name up to 63) was never extended, and nothing vouches for it.
    const bool names_no_pcr = scenario == "c-pcr";
    CHECK(verdict.verdict == (names_no_pcr ? Verdict::kNotChecked : Verdict::kVerified));
    CHECK(verdict.unchecked == (names_no_pcr ? std::vector<std::string>{"PCR 30 has no value to compare with"} : std::vector<std::string>()));
    CHECK(verdict.entries == records->size());
  }
}

TEST_CASE("a changed byte of a captured log is found and its entry named") {
  const std::vector<Bank> banks{Bank::of(HashAlgorithm::kSha256)};
  const auto binary = read_file(kGolden + "a-ima-ng/binary_runtime_measurements_sha256", 64 << 20);
  auto records = decode_log(as_bytes(*binary), 32);
  REQUIRE(records);
  (*records)[3].entry.values[0].back() ^= 1;
  const Verification verdict = verify_log(*records, 32, banks, pcrs_of("a-ima-ng"));
  CHECK(verdict.verdict == Verdict::kMismatch);
  CHECK(verdict.first_bad_entry == 3);
}

TEST_CASE("a log that goes on beyond the PCR says how far it fits") {
  const std::vector<Bank> banks{Bank::of(HashAlgorithm::kSha256)};
  const auto binary = read_file(kGolden + "a-ima-ng/binary_runtime_measurements_sha256", 64 << 20);
  auto records = decode_log(as_bytes(*binary), 32);
  REQUIRE(records);
  const std::size_t count = records->size();
  DecodedRecord more = records->back();
  more.entry.is_violation = true;
  more.template_digest.assign(32, 0);
  records->push_back(more);
  const Verification verdict = verify_log(*records, 32, banks, pcrs_of("a-ima-ng"));
  CHECK(verdict.verdict == Verdict::kMismatch);
  CHECK(verdict.first_bad_entry == count);
}

}  // namespace imafs
