#include "imafs/cli_attest.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>
#include <map>
#include <optional>
#include <tuple>

#include "imafs/entry_view.h"
#include "imafs/manifest.h"
#include "imafs/mount_info.h"
#include "imafs/posix_file.h"
#include "imafs/quote.h"
#include "imafs/verification_text.h"

namespace imafs {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kMaxLog = std::size_t{4} << 30;
constexpr std::size_t kMaxSmall = 1 << 20;
constexpr std::size_t kShownFiles = 20;
constexpr std::size_t kMaxNonce = 64;  // TPM2B_DATA

ExitCode complain(const Error& error, ExitCode code = ExitCode::kUsage) {
  std::fprintf(stderr, "imafs: %s\n", error.what.c_str());
  return code;
}

using PcrValues = std::map<std::uint32_t, Bytes>;

Bytes composite(HashAlgorithm algorithm, const PcrValues& values) {
  Hasher hasher(algorithm);
  for (const auto& [pcr, value] : values) hasher.update(value);
  const Digest digest = hasher.finish();
  return {digest.bytes().begin(), digest.bytes().end()};
}

// How many entries lead to what was quoted, if `pcr` is the PCR they are extended into. The PCR's value goes to `values`.
std::optional<std::size_t> quoted_prefix(const std::vector<DecodedRecord>& log, const QuoteContents& quote, const ExpectedPcrs& base,
                                         std::uint32_t pcr, PcrValues& values) {
  const Bank bank = Bank::of(quote.bank);
  BankValues value{pcr_reset_value(bank, pcr)};
  if (const auto of_bank = base.find(name_of(bank)); of_bank != base.end() && of_bank->second.contains(pcr)) value[0] = of_bank->second.at(pcr);
  for (std::size_t count = 0;; ++count) {
    values[pcr] = value[0];
    if (composite(quote.digest_algorithm, values) == quote.pcr_digest) return count;
    if (count == log.size()) return std::nullopt;
    if (log[count].entry.pcr == pcr) extend_pcr({bank}, value, extend_values(log[count].entry, {bank}));
  }
}

std::string pcr_lines(HashAlgorithm bank, const PcrValues& values) {
  std::string text;
  for (const auto& [pcr, value] : values) text += std::string(name_of(bank)) + ":" + std::to_string(pcr) + ": " + to_hex(value) + "\n";
  return text;
}

std::string base_text(const ExpectedPcrs& base) {
  std::string text;
  for (const auto& [bank, pcrs] : base) {
    for (const auto& [pcr, value] : pcrs) text += bank + ":" + std::to_string(pcr) + ": " + to_hex(value) + "\n";
  }
  return text;
}

struct Check {
  std::string name;
  std::optional<bool> holds;  // nothing: not looked at
  std::string detail;
};

struct Evidence {
  std::string attest, signature, ak_pem, log;
  ExpectedPcrs pcrs, base;
  std::uint32_t pcr = 10;
};

Result<Evidence> read_evidence(const VerifyQuoteOptions& options) {
  Evidence evidence;
  const auto take = [&](const std::string& path, std::size_t limit, std::string& into) -> Status {
    auto text = read_file(path, limit);
    if (!text) return fail(text.error());
    into = std::move(*text);
    return {};
  };
  const std::string directory = options.directory + "/";
  std::string pcrs, about;
  for (const auto& [path, limit, into] :
       {std::tuple<std::string, std::size_t, std::string*>{directory + "quote.msg", kMaxSmall, &evidence.attest},
        {directory + "quote.sig", kMaxSmall, &evidence.signature},
        {options.ak.empty() ? directory + "ak.pem" : options.ak, kMaxSmall, &evidence.ak_pem},
        {directory + "log", kMaxLog, &evidence.log},
        {directory + "pcrs", kMaxSmall, &pcrs},
        {directory + "about.json", kMaxSmall, &about}}) {
    if (auto taken = take(path, limit, *into); !taken) return fail(taken.error());
  }
  auto values = parse_pcr_values(pcrs, directory + "pcrs");
  if (!values) return fail(values.error());
  evidence.pcrs = std::move(*values);
  if (!options.ak.empty() && !is_public_key(evidence.ak_pem)) return fail(EINVAL, "'" + options.ak + "' is no public key in PEM");
  const Json json = Json::parse(about, nullptr, false);
  if (!json.is_object()) return fail(EINVAL, "'" + directory + "about.json' is no JSON object");
  const Json pcr = json.value("pcr", Json(10U)), start = json.value("base", Json(""));
  if (!pcr.is_number_unsigned() || pcr.get<std::uint64_t>() >= 24 || !start.is_string()) {
    return fail(EINVAL, "'" + directory + "about.json' names no PCR, or no values it had before");
  }
  evidence.pcr = pcr.get<std::uint32_t>();
  auto base = parse_pcr_values(start.get<std::string>(), directory + "about.json");
  if (!base) return fail(base.error());
  evidence.base = std::move(*base);
  return evidence;
}

Check check_boot_aggregate(const std::vector<DecodedRecord>& log, const QuoteContents& quote, const PcrValues& values) {
  if (log.empty() || view_of(log[0].entry).name != "boot_aggregate") return {"boot_aggregate", std::nullopt, "the log does not begin with it"};
  const EntryView view = view_of(log[0].entry);
  if (view.algorithm != name_of(quote.bank)) return {"boot_aggregate", std::nullopt, "it is of another bank than the quote"};
  PcrValues boot;
  for (const auto& [pcr, value] : values) {
    if (pcr < (quote.bank == HashAlgorithm::kSha1 ? 8U : 10U)) boot[pcr] = value;
  }
  const bool holds = composite(quote.bank, boot) == view.digest;
  return {"boot_aggregate", holds, holds ? "it is that of the quoted PCRs 0 to 9" : "it is not that of the quoted PCRs 0 to 9"};
}

// One line for each file that is not accepted.
Check check_files(const std::vector<DecodedRecord>& log, const Manifest& manifest, std::vector<std::string>& refused) {
  std::size_t files = 0, excluded = 0;
  for (const DecodedRecord& record : log) {
    const EntryView view = view_of(record.entry);
    if (!view.is_file()) continue;
    ++files;
    if (record.entry.is_violation) {
      refused.push_back(view.name + ": a violation: nobody knows what was read");
      continue;
    }
    switch (manifest.ask(view.name, view.digest)) {
      case Manifest::Answer::kAllowed: break;
      case Manifest::Answer::kExcluded: ++excluded; break;
      case Manifest::Answer::kUnknownFile: refused.push_back(view.name + ": not in the manifest"); break;
      case Manifest::Answer::kOtherDigest: refused.push_back(view.name + ": another digest, " + view.algorithm + ":" + to_hex(view.digest)); break;
    }
  }
  std::string detail = std::to_string(files) + " files, " + std::to_string(refused.size()) + " not accepted";
  if (excluded > 0) detail += ", " + std::to_string(excluded) + " excluded";
  return {"files", refused.empty(), detail};
}

}  // namespace

ExitCode run_quote(const QuoteOptions& options) {
  const auto nonce = from_hex(options.nonce);
  if (!nonce || nonce->empty()) return complain({EINVAL, "--nonce takes an even number of hexadecimal digits"});
  if (nonce->size() > kMaxNonce) return complain({EINVAL, "a nonce has at most " + std::to_string(kMaxNonce) + " bytes"});
  const auto bank = hash_algorithm_named(options.bank);
  if (!bank || !tpm_algorithm_of(*bank) || !can_compute(*bank)) return complain({EINVAL, "'" + options.bank + "' is no bank of a TPM"});
  const auto info = read_mount_info(options.mountpoint);
  if (!info) return complain(info.error());
  if (info->tcti.empty()) return complain({ENODEV, "the mount has no TPM (--tpm none)"}, ExitCode::kTpm);
  std::vector<std::uint32_t> pcrs;
  for (std::uint32_t pcr = 0; pcr < 10; ++pcr) pcrs.push_back(pcr);
  if (info->pcr >= 10) pcrs.push_back(info->pcr);

  // The quote first, then the log: it has at least what was quoted.
  auto quote = take_quote(info->tcti, options.ak_handle, *nonce, *bank, pcrs);
  if (!quote) return complain(quote.error(), ExitCode::kTpm);
  const auto contents = read_quote(quote->attest);
  if (!contents) return complain(contents.error(), ExitCode::kTpm);
  const std::string path = options.mountpoint + "/.ima/binary_runtime_measurements_" + options.bank;
  const auto bytes = read_file(path, kMaxLog);
  if (!bytes) return complain(bytes.error());
  const auto log = decode_log(as_bytes(*bytes), digest_size(*bank));
  if (!log) return complain(log.error(), ExitCode::kMismatch);
  const auto count = quoted_prefix(*log, *contents, info->base, info->pcr, quote->pcrs);
  if (!count) return complain({EBADMSG, "no beginning of the log leads to the quoted PCR: something else extended it"}, ExitCode::kMismatch);
  std::size_t size = 0;
  for (std::size_t i = 0; i < *count; ++i) size += (*log)[i].size;

  const Bytes raw = tpm2_tools_pcrs(*bank, quote->pcrs);
  const Json about{{"imafs", info->version}, {"nonce", to_hex(*nonce)},  {"bank", options.bank},
                   {"pcr", info->pcr},       {"entries", *count},        {"base", base_text(info->base)},
                   {"made", std::time(nullptr)}};
  if (auto made = make_directories(options.directory, 0700); !made) return complain(made.error());
  const std::string values = pcr_lines(*bank, quote->pcrs), about_text = about.dump(1) + "\n";
  for (const auto& [name, text] : {std::pair<const char*, std::string_view>{"quote.msg", as_text(quote->attest)},
                                   {"quote.sig", as_text(quote->signature)},
                                   {"ak.pem", quote->ak_pem},
                                   {"pcrs.bin", as_text(raw)},
                                   {"pcrs", values},
                                   {"log", std::string_view(*bytes).substr(0, size)},
                                   {"about.json", about_text}}) {
    if (auto written = write_file_atomically(options.directory + "/" + name, text, 0644); !written) return complain(written.error());
  }
  std::printf("quoted %zu entries of '%s' in '%s'\n", *count, options.mountpoint.c_str(), options.directory.c_str());
  return ExitCode::kOk;
}

ExitCode run_verify_quote(const VerifyQuoteOptions& options) {
  const auto evidence = read_evidence(options);
  if (!evidence) return complain(evidence.error());
  std::optional<Manifest> manifest;
  if (!options.manifest.empty()) {
    const auto text = read_file(options.manifest, kMaxLog);
    if (!text) return complain(text.error());
    auto parsed = parse_manifest(*text, options.manifest);
    if (!parsed) return complain(parsed.error());
    manifest = std::move(*parsed);
  }
  std::optional<Bytes> nonce;
  if (options.nonce) {
    nonce = from_hex(*options.nonce);
    if (!nonce || nonce->empty()) return complain({EINVAL, "--nonce takes an even number of hexadecimal digits"});
  }

  std::vector<Check> checks;
  std::vector<std::string> refused;
  std::size_t entries = 0;
  const auto signature = check_signature(as_bytes(evidence->attest), as_bytes(evidence->signature), evidence->ak_pem);
  checks.push_back({"signature", signature.has_value(),
                    !signature ? signature.error().what
                    : options.ak.empty() ? "by the key beside the quote: --ak FILE says which key it has to be" : "by the key in '" + options.ak + "'"});
  const auto quote = read_quote(as_bytes(evidence->attest));
  if (!quote) {
    checks.push_back({"quote", false, quote.error().what});
  } else {
    if (nonce) {
      const bool fresh = quote->nonce == *nonce;
      checks.push_back({"nonce", fresh, fresh ? "the one that was asked for" : "the quote has " + to_hex(quote->nonce)});
    } else {
      checks.push_back({"nonce", std::nullopt, "--nonce was not given; the quote has " + to_hex(quote->nonce)});
    }
    PcrValues values;
    if (const auto of_bank = evidence->pcrs.find(std::string(name_of(quote->bank))); of_bank != evidence->pcrs.end()) {
      for (const auto& [pcr, value] : of_bank->second) {
        if (std::find(quote->pcrs.begin(), quote->pcrs.end(), pcr) != quote->pcrs.end()) values[pcr] = value;
      }
    }
    const bool quoted = values.size() == quote->pcrs.size() && composite(quote->digest_algorithm, values) == quote->pcr_digest;
    checks.push_back({"pcrs", quoted, quoted ? "the values that were quoted" : "not the values that were quoted"});
    const bool has_log = std::find(quote->pcrs.begin(), quote->pcrs.end(), evidence->pcr) != quote->pcrs.end();
    const auto log = decode_log(as_bytes(evidence->log), digest_size(quote->bank));
    if (!has_log || !log) {
      checks.push_back({"log", false, log ? "the quote does not cover its PCR" : log.error().what});
    } else {
      entries = log->size();
      const Verification result = verify_log(*log, digest_size(quote->bank), {Bank::of(quote->bank)},
                                             {{std::string(name_of(quote->bank)), {{evidence->pcr, values[evidence->pcr]}}}}, evidence->base);
      checks.push_back({"log", result.verdict == Verdict::kVerified, result.message});
      checks.push_back(check_boot_aggregate(*log, *quote, values));
      if (manifest) checks.push_back(check_files(*log, *manifest, refused));
    }
  }

  bool good = true;
  for (const Check& check : checks) good = good && check.holds.value_or(true);
  if (options.json) {
    Json json{{"verdict", good ? "verified" : "mismatch"}, {"entries", entries}, {"checks", Json::array()}, {"not_accepted", refused}};
    for (const Check& check : checks) {
      json["checks"].push_back({{"name", check.name}, {"holds", check.holds ? Json(*check.holds) : Json()}, {"detail", check.detail}});
    }
    std::printf("%s\n", json.dump(1, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    std::printf("%s: %zu entries\n", good ? "verified" : "MISMATCH", entries);
    for (const Check& check : checks) {
      std::printf("  %-4s %s: %s\n", !check.holds ? "-" : *check.holds ? "ok" : "FAIL", check.name.c_str(), check.detail.c_str());
    }
    for (std::size_t i = 0; i < refused.size() && i < kShownFiles; ++i) std::printf("       %s\n", refused[i].c_str());
    if (refused.size() > kShownFiles) std::printf("       and %zu more (--json lists them)\n", refused.size() - kShownFiles);
  }
  return good ? ExitCode::kOk : ExitCode::kMismatch;
}

}  // namespace imafs
