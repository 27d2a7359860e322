#include "imafs/cli_verify.h"

#include <sys/stat.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "imafs/posix_file.h"
#include "imafs/tpm_connection.h"
#include "imafs/verifier.h"

namespace imafs {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kMaxLog = std::size_t{4} << 30;
constexpr int kRounds = 20;  // a log may grow between reading it and reading the PCR

// What to verify, and with what.
struct Material {
  std::vector<DecodedRecord> log;
  std::size_t digest_bytes = 20;
  std::vector<Bank> banks;
  ExpectedPcrs expected;
  ExpectedPcrs base;
};

std::vector<Bank> banks_of(const ExpectedPcrs& values) {
  std::vector<Bank> banks;
  for (const auto& [name, pcrs] : values) {
    const auto hash = hash_algorithm_named(name);
    if (hash && tpm_algorithm_of(*hash)) banks.push_back(Bank::of(*hash));
  }
  return banks;
}

// The banks a log is shown in when there is nothing to compare with.
std::vector<Bank> usual_banks() {
  return {Bank::of(HashAlgorithm::kSha1), Bank::of(HashAlgorithm::kSha256), Bank::of(HashAlgorithm::kSha384), Bank::of(HashAlgorithm::kSha512)};
}

Result<ExpectedPcrs> values_of_file(const std::string& path) {
  const auto text = read_file(path, 1 << 20);
  if (!text) return fail(text.error());
  return parse_pcr_values(*text, path);
}

Status decode(const std::string& bytes, Material& material) {
  if (is_kexec_blob(as_bytes(bytes))) {
    auto records = decode_kexec_blob(as_bytes(bytes));
    if (!records) return fail(records.error());
    material.log = std::move(*records);
    return {};
  }
  const auto size = guess_digest_size(as_bytes(bytes));
  if (!size) return fail(size.error());
  material.digest_bytes = *size;
  auto records = decode_log(as_bytes(bytes), *size);
  if (!records) return fail(records.error());
  material.log = std::move(*records);
  return {};
}

Result<Material> material_of_log(const VerifyOptions& options) {
  Material material;
  const auto bytes = read_file(options.target, kMaxLog);
  if (!bytes) return fail(bytes.error());
  if (auto decoded = decode(*bytes, material); !decoded) return fail(decoded.error());
  if (!options.pcr_values.empty()) {
    auto values = values_of_file(options.pcr_values);
    if (!values) return fail(values.error());
    material.expected = std::move(*values);
    material.banks = banks_of(material.expected);
  } else {
    material.banks = usual_banks();
  }
  return material;
}

// A mount: its status says which TPM holds its PCRs, and what they held before.
class MountLog {
 public:
  static Result<MountLog> open(const VerifyOptions& options) {
    MountLog mount;
    mount.directory_ = options.target + "/.ima/";
    const auto text = read_file(mount.directory_ + "status", 64 << 20);
    if (!text) return fail(text.error());
    const Json status = Json::parse(*text, nullptr, false);
    if (status.is_discarded()) return fail(EBADMSG, "'" + mount.directory_ + "status' is no JSON");
    const Json& in_force = status.value("options", Json::object());
    auto base = parse_pcr_values(in_force.value("base", ""), "base");
    if (!base) return fail(base.error());
    mount.base_ = std::move(*base);
    if (!options.pcr_values.empty()) {
      auto values = values_of_file(options.pcr_values);
      if (!values) return fail(values.error());
      mount.given_ = std::move(*values);
    } else if (const std::string tcti = in_force.value("tcti", ""); !tcti.empty()) {
      auto tpm = open_pcr_extender(tcti);
      if (!tpm) return fail(tpm.error());
      mount.tpm_ = std::move(*tpm);
    }
    return mount;
  }

  // The log, then the PCRs: these may be ahead of the log we have, never behind.
  Result<Material> read() {
    Material material;
    const auto bytes = read_file(directory_ + "binary_runtime_measurements", kMaxLog);
    if (!bytes) return fail(bytes.error());
    if (auto decoded = decode(*bytes, material); !decoded) return fail(decoded.error());
    material.base = base_;
    if (given_) {
      material.expected = *given_;
      material.banks = banks_of(*given_);
    } else if (tpm_) {
      material.banks = tpm_->banks();
      for (const DecodedRecord& record : material.log) {
        if (record.entry.pcr < 24) (void)material.expected["sha1"][record.entry.pcr];
      }
      std::vector<std::uint32_t> pcrs;
      for (const auto& [pcr, value] : material.expected["sha1"]) pcrs.push_back(pcr);
      material.expected.clear();
      for (const std::uint32_t pcr : pcrs) {
        const auto values = tpm_->read(pcr);
        if (!values) return fail(values.error());
        for (std::size_t i = 0; i < values->size(); ++i) material.expected[name_of(material.banks[i])][pcr] = (*values)[i];
      }
    } else {
      material.banks = usual_banks();
    }
    return material;
  }
  bool can_grow() const { return tpm_ != nullptr; }

 private:
  std::string directory_;
  ExpectedPcrs base_;
  std::optional<ExpectedPcrs> given_;
  std::unique_ptr<PcrExtender> tpm_;
};

void print(const Verification& result, bool json) {
  if (!json) {
    std::printf("%s: %s (%llu entries, %llu violations)\n",
                result.verdict == Verdict::kVerified ? "verified" : result.verdict == Verdict::kMismatch ? "MISMATCH" : "not compared",
                result.message.c_str(), static_cast<unsigned long long>(result.entries),
                static_cast<unsigned long long>(result.violations));
    for (const BankReplay& bank : result.banks) {
      for (const auto& [pcr, value] : bank.replayed) {
        const auto& expected = bank.expected.at(pcr);
        std::printf("  %s:%u %s%s\n", name_of(bank.bank).c_str(), pcr, to_hex(value).c_str(),
                    !expected ? "" : *expected == value ? " = PCR" : (" but the PCR is " + to_hex(*expected)).c_str());
      }
    }
    return;
  }
  Json out{{"verdict", result.verdict == Verdict::kVerified ? "verified" : result.verdict == Verdict::kMismatch ? "mismatch" : "not-compared"},
           {"message", result.message},
           {"entries", result.entries},
           {"violations", result.violations},
           {"banks", Json::array()}};
  if (result.first_bad_entry) out["first_bad_entry"] = *result.first_bad_entry;
  for (const BankReplay& bank : result.banks) {
    Json pcrs = Json::object();
    for (const auto& [pcr, value] : bank.replayed) {
      pcrs[std::to_string(pcr)] = {{"replayed", to_hex(value)}};
      if (const auto& expected = bank.expected.at(pcr)) pcrs[std::to_string(pcr)]["expected"] = to_hex(*expected);
    }
    out["banks"].push_back({{"name", name_of(bank.bank)}, {"matches", bank.matches}, {"pcrs", pcrs}});
  }
  std::printf("%s\n", out.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
}

ExitCode could_not_check(const Error& error) {
  // A log that does not even decode does not fit; anything else kept us from looking.
  std::fprintf(stderr, "imafs: %s\n", error.what.c_str());
  return error.code == EBADMSG || error.code == ENODATA ? ExitCode::kMismatch : ExitCode::kUsage;
}

}  // namespace

ExitCode run_verify(const VerifyOptions& options) {
  struct stat attr {};
  if (::stat(options.target.c_str(), &attr) != 0) return could_not_check(errno_error("'" + options.target + "'"));
  Verification result;
  if (!S_ISDIR(attr.st_mode)) {
    const auto material = material_of_log(options);
    if (!material) return could_not_check(material.error());
    result = verify_log(material->log, material->digest_bytes, material->banks, material->expected, material->base);
  } else {
    auto mount = MountLog::open(options);
    if (!mount) return could_not_check(mount.error());
    std::uint64_t entries = 0;
    for (int round = 0; round < kRounds; ++round) {
      const auto material = mount->read();
      if (!material) return could_not_check(material.error());
      result = verify_log(material->log, material->digest_bytes, material->banks, material->expected, material->base);
      // A PCR that is ahead of a log that still grows is the log's, later.
      const bool grew = round == 0 || result.entries != entries;
      entries = result.entries;
      if (result.verdict != Verdict::kMismatch || !mount->can_grow() || !grew) break;
    }
  }
  print(result, options.json);
  switch (result.verdict) {
    case Verdict::kVerified: return ExitCode::kOk;
    case Verdict::kMismatch: return ExitCode::kMismatch;
    default: return ExitCode::kUsage;
  }
}

}  // namespace imafs
