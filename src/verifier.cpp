#include "imafs/verifier.h"

#include <algorithm>
#include <charconv>
#include <set>

namespace imafs {
namespace {

const Bytes* value_of(const ExpectedPcrs& values, const Bank& bank, std::uint32_t pcr) {
  const auto of_bank = values.find(name_of(bank));
  if (of_bank == values.end()) return nullptr;
  const auto found = of_bank->second.find(pcr);
  return found == of_bank->second.end() ? nullptr : &found->second;
}

// One bank's PCRs as the entries are folded in.
class Replay {
 public:
  Replay(const Bank& bank, const ExpectedPcrs& expected, const ExpectedPcrs& base)
      : bank_(bank), expected_(expected), base_(base) {}

  // A PCR that takes part even if no entry is of it.
  void begin(std::uint32_t pcr) { (void)value_before(pcr); }

  void extend(std::uint32_t pcr, const Bytes& value, std::uint64_t index) {
    BankValues& slot = value_before(pcr);
    extend_pcr({bank_}, slot, {value});
    const Bytes* const wanted = value_of(expected_, bank_, pcr);
    if (wanted && slot[0] == *wanted) last_fit_[pcr] = index + 1;
  }

  // PCRs from 24 on exist in no TPM: entries for them are logged, never extended.
  bool matches() const {
    for (const auto& [pcr, value] : values_) {
      const Bytes* const wanted = value_of(expected_, bank_, pcr);
      if (wanted && *wanted != value[0]) return false;
    }
    return true;
  }
  const std::map<std::uint32_t, BankValues>& values() const { return values_; }
  // How many entries lead to the expected value of the first PCR that does not fit.
  std::optional<std::uint64_t> fits_up_to() const {
    for (const auto& [pcr, value] : values_) {
      const Bytes* const wanted = value_of(expected_, bank_, pcr);
      if (!wanted || *wanted == value[0]) continue;
      const auto found = last_fit_.find(pcr);
      if (found != last_fit_.end()) return found->second;
    }
    return std::nullopt;
  }

 private:
  BankValues& value_before(std::uint32_t pcr) {
    auto [slot, is_new] = values_.try_emplace(pcr);
    if (is_new) {
      const Bytes* const start = value_of(base_, bank_, pcr);
      slot->second = BankValues{start && start->size() == bank_.size ? *start : pcr_reset_value(bank_, pcr)};
    }
    return slot->second;
  }

  const Bank& bank_;
  const ExpectedPcrs& expected_;
  const ExpectedPcrs& base_;
  std::map<std::uint32_t, BankValues> values_;
  std::map<std::uint32_t, std::uint64_t> last_fit_;
};

// The template digest of `entry` in the bank that the log was written for.
bool digest_fits(const DecodedRecord& record, const std::vector<Bank>& of_that_size) {
  if (record.entry.is_violation) return true;
  const BankValues digests = template_digests(record.entry, of_that_size);
  if (std::find(digests.begin(), digests.end(), record.template_digest) != digests.end()) return true;
  // Written by a kernel that could not compute the bank: sha1 and zeros.
  Bytes padded = template_digests(record.entry, {Bank::of(HashAlgorithm::kSha1)})[0];
  padded.resize(record.template_digest.size());
  return padded == record.template_digest;
}

std::vector<Bank> banks_of_size(std::size_t size) {
  std::vector<Bank> banks;
  for (const HashAlgorithm hash : {HashAlgorithm::kSha1, HashAlgorithm::kSha256, HashAlgorithm::kSha384,
                                   HashAlgorithm::kSha512, HashAlgorithm::kSm3, HashAlgorithm::kSha3_256,
                                   HashAlgorithm::kSha3_384, HashAlgorithm::kSha3_512}) {
    const Bank bank = Bank::of(hash);
    if (bank.size == size && bank.hash) banks.push_back(bank);
  }
  return banks;
}

constexpr std::size_t kEntriesAStep = 4096;

BankReplay replay_bank(const std::vector<DecodedRecord>& log, const Bank& bank, const ExpectedPcrs& expected,
                       const ExpectedPcrs& base, bool padded, std::optional<std::uint64_t>& fits, const VerifyProgress& progress,
                       const VerifyDemands& demands) {
  Replay replay(bank, expected, base);
  for (const std::uint32_t pcr : demands.pcrs) {
    if (value_of(expected, bank, pcr)) replay.begin(pcr);
  }
  Bank shown = bank;
  if (padded) shown.hash.reset();  // entries are computed as for a bank nobody knows, PCRs as they are
  for (std::size_t i = 0; i < log.size(); ++i) {
    replay.extend(log[i].entry.pcr, extend_values(log[i].entry, {log[i].entry.is_violation ? bank : shown})[0], i);
    if (progress && !padded && (i + 1) % kEntriesAStep == 0) progress(kEntriesAStep);
  }
  BankReplay result;
  result.bank = bank;
  result.matches = replay.matches();
  result.used_padded_sha1 = padded;
  for (const auto& [pcr, value] : replay.values()) {
    result.replayed[pcr] = value[0];
    const Bytes* const wanted = value_of(expected, bank, pcr);
    result.expected[pcr] = wanted ? std::optional<Bytes>(*wanted) : std::nullopt;
  }
  fits = replay.fits_up_to();
  return result;
}

// Why a log that fits all there is to compare with is not verified, a sentence each.
std::vector<std::string> unchecked_points(const std::vector<DecodedRecord>& log, const std::vector<BankReplay>& banks, const ExpectedPcrs& base,
                                          const VerifyDemands& demands) {
  std::set<std::uint32_t> used;
  for (const DecodedRecord& record : log) used.insert(record.entry.pcr);
  std::set<std::uint32_t> wanted = demands.pcrs;
  wanted.insert(used.begin(), used.end());
  std::vector<std::string> points;
  for (const std::uint32_t pcr : wanted) {
    const std::string name = "PCR " + std::to_string(pcr);
    const bool is_compared = std::any_of(banks.begin(), banks.end(), [&](const BankReplay& bank) {
      const auto found = bank.expected.find(pcr);
      return found != bank.expected.end() && found->second.has_value();
    });
    const bool has_base = std::any_of(banks.begin(), banks.end(), [&](const BankReplay& bank) { return value_of(base, bank.bank, pcr) != nullptr; });
    if (!is_compared) points.push_back(name + " has no value to compare with");
    else if (!used.contains(pcr) && !has_base) points.push_back("the log has no entry of " + name);
  }
  for (const BankReplay& bank : banks) {
    if (bank.used_padded_sha1 && !demands.may_be_padded_sha1) {
      points.push_back("bank " + name_of(bank.bank) + " holds SHA-1 digests padded with zeros, and is as weak as they are");
    }
  }
  return points;
}

}  // namespace

Verification verify_log(const std::vector<DecodedRecord>& log, std::size_t digest_bytes, const std::vector<Bank>& banks,
                        const ExpectedPcrs& expected, const ExpectedPcrs& base, const VerifyProgress& progress,
                        const VerifyDemands& demands) {
  Verification verification;
  verification.entries = log.size();
  const std::vector<Bank> of_that_size = banks_of_size(digest_bytes);
  for (std::size_t i = 0; i < log.size(); ++i) {
    verification.violations += log[i].entry.is_violation ? 1 : 0;
    if (progress && (i + 1) % kEntriesAStep == 0) progress(kEntriesAStep);
    if (digest_fits(log[i], of_that_size)) continue;
    verification.verdict = Verdict::kMismatch;
    verification.first_bad_entry = i;
    verification.message = "entry " + std::to_string(i) + ": the template digest does not fit the entry's data";
    return verification;
  }
  bool compared = false;
  bool matches = true;
  for (const Bank& bank : banks) {
    if (!bank.hash) continue;
    std::optional<std::uint64_t> fits;
    BankReplay replay = replay_bank(log, bank, expected, base, false, fits, progress, demands);
    if (!replay.matches) {
      std::optional<std::uint64_t> padded_fits;
      BankReplay padded = replay_bank(log, bank, expected, base, true, padded_fits, progress, demands);
      if (padded.matches) replay = std::move(padded);
    }
    for (const auto& [pcr, wanted] : replay.expected) compared |= wanted.has_value();
    if (!replay.matches && matches) {
      matches = false;
      verification.first_bad_entry = fits;
      verification.message = "the log does not replay to the PCR in bank " + name_of(bank);
      if (fits) verification.message += "; its first " + std::to_string(*fits) + " entries do";
    }
    verification.banks.push_back(std::move(replay));
  }
  if (!matches) {
    verification.verdict = Verdict::kMismatch;
    return verification;
  }
  if (!compared) {
    verification.message = "nothing to compare with: the replayed values are shown";
    return verification;
  }
  verification.unchecked = unchecked_points(log, verification.banks, base, demands);
  verification.verdict = verification.unchecked.empty() ? Verdict::kVerified : Verdict::kNotChecked;
  verification.message = verification.unchecked.empty() ? "the log replays to the PCR" : verification.unchecked.front();
  return verification;
}

namespace {

constexpr std::string_view kBlank = " \t\r";

std::vector<std::string_view> words_of(std::string_view line) {
  std::vector<std::string_view> words;
  while (true) {
    const std::size_t start = line.find_first_not_of(kBlank);
    if (start == std::string_view::npos) return words;
    line.remove_prefix(start);
    const std::size_t end = std::min(line.find_first_of(kBlank), line.size());
    words.push_back(line.substr(0, end));
    line.remove_prefix(end);
  }
}

std::optional<std::uint32_t> pcr_number(std::string_view text) {
  if (text.starts_with("PCR-")) text.remove_prefix(4);
  std::uint32_t pcr = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), pcr);
  if (text.empty() || parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() || pcr > 63) return std::nullopt;
  return pcr;
}

std::optional<Bytes> pcr_bytes(std::string_view text) {
  if (text.starts_with("0x") || text.starts_with("0X")) text.remove_prefix(2);
  auto bytes = from_hex(text);
  if (!bytes || (bytes->size() != 20 && bytes->size() != 32 && bytes->size() != 48 && bytes->size() != 64)) return std::nullopt;
  return bytes;
}

std::string bank_of_size(std::size_t size) {
  switch (size) {
    case 20: return "sha1";
    case 32: return "sha256";
    case 48: return "sha384";
    default: return "sha512";
  }
}

// Splits "sha256:10:" into words where blanks would stand.
std::string unpunctuated(std::string_view line) {
  std::string text(line.substr(0, line.find('#')));
  std::replace(text.begin(), text.end(), ':', ' ');
  return text;
}

}  // namespace

Result<ExpectedPcrs> parse_pcr_values(std::string_view text, const std::string& origin) {
  ExpectedPcrs values;
  std::string current_bank;  // of tpm2_pcrread's listing
  unsigned number = 0;
  while (!text.empty()) {
    ++number;
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string line = unpunctuated(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    std::vector<std::string_view> words = words_of(line);
    if (words.empty()) continue;
    std::string bank = current_bank;
    if (hash_algorithm_named(words[0]) || words[0].starts_with("tpm_alg_")) {
      bank = words[0];
      words.erase(words.begin());
      if (words.empty()) {
        current_bank = bank;
        continue;
      }
    }
    const auto pcr = words.size() == 2 ? pcr_number(words[0]) : std::nullopt;
    const auto bytes = words.size() == 2 ? pcr_bytes(words[1]) : std::nullopt;
    if (!pcr || !bytes) {
      return fail(EINVAL, origin + ":" + std::to_string(number) +
                              ": not a PCR value; 'PCR-10: HEX', 'sha256:10: HEX' or tpm2_pcrread's output is expected");
    }
    values[bank.empty() ? bank_of_size(bytes->size()) : bank][*pcr] = *bytes;
  }
  return values;
}

}  // namespace imafs
