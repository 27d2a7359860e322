#include "imafs/cli_verify.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <memory>
#include <optional>
#include <set>

#include "imafs/log_source.h"
#include "imafs/mount_info.h"
#include "imafs/posix_file.h"
#include "imafs/progress.h"
#include "imafs/tpm_connection.h"
#include "imafs/verification_text.h"
#include "imafs/verifier.h"

namespace imafs {
namespace {

constexpr std::size_t kMaxLog = std::size_t{4} << 30;
constexpr std::size_t kMaxPcrValues = 1 << 20;
constexpr std::uint32_t kTpmPcrs = 24;
constexpr int kRounds = 20;  // a log may grow between reading it and reading the PCR

// What to verify, and with what.
struct Material {
  std::vector<DecodedRecord> log;
  std::size_t digest_bytes = 20;
  std::vector<Bank> banks;
  ExpectedPcrs expected;
  ExpectedPcrs base;
  VerifyDemands demands;
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
  const auto text = read_file(path, kMaxPcrValues);
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
  if (!options.pcrs.empty()) material.demands.pcrs = {options.pcrs.begin(), options.pcrs.end()};
  if (auto decoded = decode(*bytes, material); !decoded) return fail(decoded.error().code, "'" + options.target + "': " + decoded.error().what);
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
    auto files = ControlFiles::open(options.target);
    if (!files) return fail(files.error());
    const auto info = read_mount_info(*files);
    if (!info) return fail(info.error().code, "'" + options.target + "': " + info.error().what);
    MountLog mount(std::move(*files));
    mount.demanded_.insert(options.pcrs.begin(), options.pcrs.end());
    if (options.pcrs.empty()) mount.demanded_.insert(info->pcr);
    if (!options.pcr_values.empty()) {
      auto values = values_of_file(options.pcr_values);
      if (!values) return fail(values.error());
      mount.given_ = std::move(*values);
    } else if (!info->tcti.empty() || !options.tcti.empty()) {
      const auto tcti = tcti_of(*info, options.tcti);
      if (!tcti) return fail(tcti.error());
      auto tpm = open_pcr_extender(*tcti);
      if (!tpm) return fail(tpm.error());
      mount.tpm_ = std::move(*tpm);
    }
    return mount;
  }

  // The log, then the PCRs: these may be ahead of the log we have, never behind. The base is that of the log: a trim or a
  // reset of the TPM changes both, and between two reads of the base that are equal there was none.
  Result<Material> read() {
    Material material;
    const auto before = read_mount_info(files_);
    if (!before) return fail(before.error());
    const auto bytes = files_.read("binary_runtime_measurements", kMaxLog);
    if (!bytes) return fail(bytes.error());
    if (auto decoded = decode(*bytes, material); !decoded) return fail(decoded.error());
    material.demands.pcrs = demanded_;
    material.base = before->base;
    if (given_) {
      material.expected = *given_;
      material.banks = banks_of(*given_);
    } else if (tpm_) {
      material.banks = tpm_->banks();
      std::set<std::uint32_t> pcrs = demanded_;
      for (const DecodedRecord& record : material.log) pcrs.insert(record.entry.pcr);
      for (const std::uint32_t pcr : pcrs) {
        if (pcr >= kTpmPcrs) continue;
        const auto values = tpm_->read(pcr);
        if (!values) return fail(values.error());
        for (std::size_t i = 0; i < values->size(); ++i) material.expected[name_of(material.banks[i])][pcr] = (*values)[i];
      }
    } else {
      material.banks = usual_banks();
    }
    const auto after = read_mount_info(files_);
    if (!after) return fail(after.error());
    is_of_one_moment_ = after->base == before->base;
    return material;
  }
  bool can_grow() const { return tpm_ != nullptr; }
  bool is_of_one_moment() const { return is_of_one_moment_; }

 private:
  explicit MountLog(ControlFiles files) : files_(std::move(files)) {}

  ControlFiles files_;
  std::set<std::uint32_t> demanded_;
  std::optional<ExpectedPcrs> given_;
  std::unique_ptr<PcrExtender> tpm_;
  bool is_of_one_moment_ = true;
};

Verification verify_visibly(Material material, const VerifyOptions& options) {
  material.demands.may_be_padded_sha1 = options.allow_sha1;
  Progress progress("steps", material.log.size() * (1 + material.banks.size()));
  return verify_log(material.log, material.digest_bytes, material.banks, material.expected, material.base,
                    [&](std::uint64_t steps) { progress.add(steps, 0); }, material.demands);
}

void print(const Verification& result, const VerifyOptions& options) {
  if (options.quiet && result.verdict == Verdict::kVerified) return;
  const std::string text =
      options.json ? to_json(result).dump(2, ' ', true, nlohmann::ordered_json::error_handler_t::replace) + "\n" : to_text(result);
  std::fputs(text.c_str(), options.quiet ? stderr : stdout);
}

ExitCode could_not_check(const Error& error) {
  // A log that does not even decode does not fit; anything else kept us from looking.
  std::fprintf(stderr, "imafs: %s\n", printable(error.what).c_str());
  return error.code == EBADMSG || error.code == ENODATA ? ExitCode::kMismatch : ExitCode::kUsage;
}

// One journal of a state directory.
struct KeptLog {
  std::string name;
  Verification result;
  ExpectedPcrs end;  // what its end-pcrs say; empty for the live one
  bool has_tpm = false;
};

std::vector<DecodedRecord> as_records(JournalRead journal, std::size_t digest_bytes) {
  std::vector<DecodedRecord> records;
  for (JournalEntryRead& entry : journal.entries) {
    DecodedRecord record;
    for (auto& [algorithm, digest] : entry.digests) {
      if (digest.size() == digest_bytes && record.template_digest.empty()) record.template_digest = std::move(digest);
    }
    record.entry = std::move(entry.entry);
    records.push_back(std::move(record));
  }
  return records;
}

// `before`: what the archive before it ends in; null if that is not asked.
Result<KeptLog> verify_kept(const std::string& directory, std::string name, const ExpectedPcrs* before) {
  auto journal = read_journal(directory);
  if (!journal) return fail(EBADMSG, name + ": " + journal.error().what);
  KeptLog kept;
  kept.name = std::move(name);
  const std::string end = directory + "/end-pcrs";
  if (::access(end.c_str(), F_OK) == 0) {
    const auto text = read_regular_file(end, kMaxPcrValues);
    if (!text) return fail(EBADMSG, text.error().what);
    auto values = parse_pcr_values(*text, end);
    if (!values) return fail(EBADMSG, values.error().what);
    kept.end = std::move(*values);
  }
  const ExpectedPcrs base = journal->base;
  VerifyDemands demands;
  demands.pcrs = {journal->pcr};
  kept.has_tpm = journal->has_tpm;
  const bool follows = journal->trimmed > 0;
  const std::size_t digest_bytes = journal->kept.empty() ? digest_size(HashAlgorithm::kSha1) : digest_size(journal->kept[0]);
  kept.result = verify_log(as_records(std::move(*journal), digest_bytes), digest_bytes,
                           kept.end.empty() ? usual_banks() : banks_of(kept.end), kept.end, base, {}, demands);
  if (before && follows && base != *before) {
    kept.result.verdict = Verdict::kMismatch;
    kept.result.message = "it does not begin where the archive before it ends";
  }
  return kept;
}

// Archives in their order, then the live log, which only its TPM can judge: it has to be sound.
ExitCode verify_state(const VerifyOptions& options) {
  std::vector<KeptLog> logs;
  const auto add = [&](const std::string& name) -> Status {
    const ExpectedPcrs before = logs.empty() ? ExpectedPcrs() : logs.back().end;
    auto kept = verify_kept(options.state + "/" + name, name, &before);
    if (!kept) return fail(kept.error());
    logs.push_back(std::move(*kept));
    return {};
  };
  const auto numbers = archive_numbers(options.state);
  if (!numbers) return could_not_check(numbers.error());
  for (const unsigned number : *numbers) {
    if (auto added = add("archive/" + std::to_string(number)); !added) return could_not_check(added.error());
  }
  if (::access((options.state + "/journal").c_str(), F_OK) == 0) {
    if (auto added = add("journal"); !added) return could_not_check(added.error());
  }
  if (logs.empty()) return could_not_check({ENOENT, "'" + options.state + "' holds no log"});
  Verdict worst = Verdict::kVerified;
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const KeptLog& log : logs) {
    // The live log, which its TPM has to judge, and one that never had a TPM.
    const bool has_no_end = (log.name == "journal" || !log.has_tpm) && log.result.verdict == Verdict::kNotChecked;
    if (log.result.verdict == Verdict::kMismatch) worst = Verdict::kMismatch;
    if (log.result.verdict == Verdict::kNotChecked && !has_no_end && worst == Verdict::kVerified) worst = Verdict::kNotChecked;
    if (options.json) {
      json.push_back(to_json(log.result));
      json.back()["log"] = log.name;
    } else {
      std::printf("%s: %s", printable(log.name).c_str(), to_text(log.result).c_str());
    }
  }
  if (options.json) std::printf("%s\n", json.dump(2, ' ', true, nlohmann::ordered_json::error_handler_t::replace).c_str());
  return exit_code_of(worst);
}

}  // namespace

Result<Verification> verify_target(const VerifyOptions& options) {
  struct stat attr {};
  if (::stat(options.target.c_str(), &attr) != 0) return fail(errno_error("'" + options.target + "'"));
  if (!S_ISDIR(attr.st_mode)) {
    auto material = material_of_log(options);
    if (!material) return fail(material.error());
    return verify_visibly(std::move(*material), options);
  }
  auto mount = MountLog::open(options);
  if (!mount) {
    const auto place = find_journal(options.target);  // of a mount that is no more
    if (!place) return fail(mount.error());
    auto kept = verify_kept(place->directory, options.target, nullptr);
    if (!kept) return fail(kept.error());
    return std::move(kept->result);
  }
  Verification result;
  std::uint64_t entries = 0;
  for (int round = 0; round < kRounds; ++round) {
    auto material = mount->read();
    if (!material) return fail(material.error());
    result = verify_visibly(std::move(*material), options);
    if (result.verdict != Verdict::kVerified && !mount->is_of_one_moment()) continue;
    // A PCR that is ahead of a log that still grows is the log's, later.
    const bool grew = round == 0 || result.entries != entries;
    entries = result.entries;
    if (result.verdict != Verdict::kMismatch || !mount->can_grow() || !grew) break;
  }
  return result;
}

ExitCode run_verify(const VerifyOptions& options) {
  if (!options.state.empty()) return verify_state(options);
  const auto result = verify_target(options);
  if (!result) return could_not_check(result.error());
  print(*result, options);
  return exit_code_of(result->verdict);
}

}  // namespace imafs
