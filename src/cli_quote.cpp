#include <algorithm>
#include <charconv>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "imafs/cli_attest.h"
#include "imafs/entry_view.h"
#include "imafs/evidence.h"
#include "imafs/journal_reader.h"
#include "imafs/mount_info.h"
#include "imafs/posix_file.h"
#include "imafs/quote.h"

namespace imafs {
namespace {

using Json = nlohmann::ordered_json;
using PcrValues = std::map<std::uint32_t, Bytes>;

constexpr std::size_t kMaxLog = std::size_t{4} << 30;
constexpr std::size_t kMaxNonce = 64;  // TPM2B_DATA
constexpr std::uint32_t kTpmPcrs = 24;
constexpr int kRounds = 5;  // a log may grow, begin to use another PCR, or be trimmed, while it is quoted

ExitCode complain(const Error& error, ExitCode code = ExitCode::kUsage) {
  std::fprintf(stderr, "imafs: %s\n", printable(error.what).c_str());
  return code;
}

std::string pcr_lines(HashAlgorithm bank, const PcrValues& values) {
  std::string text;
  for (const auto& [pcr, value] : values) text += std::string(name_of(bank)) + ":" + std::to_string(pcr) + ": " + to_hex(value) + "\n";
  return text;
}

// The numbers of the archives in a state directory, the newest first.
std::vector<unsigned> archives_in(const std::string& state) {
  std::vector<unsigned> numbers;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(state + "/archive", ignored)) {
    const std::string name = entry.path().filename().string();
    unsigned number = 0;
    const auto parsed = std::from_chars(name.data(), name.data() + name.size(), number);
    if (parsed.ec == std::errc() && parsed.ptr == name.data() + name.size()) numbers.push_back(number);
  }
  std::sort(numbers.rbegin(), numbers.rend());
  return numbers;
}

// The part of a log that was trimmed, as binary records in `bank`: the archives whose entries lead, without a gap, from entry 0 to
// the first one that is still in the journal. Nothing: some of it is not there any more.
Result<std::optional<Bytes>> archived_part(const std::string& state, HashAlgorithm bank) {
  const auto live = read_journal(state + "/journal");
  if (!live) return fail(live.error());
  std::vector<Bytes> parts;
  std::uint64_t wanted = live->trimmed;
  for (const unsigned number : archives_in(state)) {
    if (wanted == 0) break;
    const auto archive = read_journal(state + "/archive/" + std::to_string(number));
    if (!archive || archive->trimmed + archive->entries.size() != wanted) continue;
    Bytes part;
    for (const JournalEntryRead& read : archive->entries) append_binary(part, read.entry, template_digests(read.entry, {Bank::of(bank)})[0]);
    parts.push_back(std::move(part));
    wanted = archive->trimmed;
  }
  if (wanted != 0) return std::optional<Bytes>();
  Bytes whole;
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) append(whole, *part);
  return std::optional<Bytes>(std::move(whole));
}

// A log, and where its PCRs began.
struct Log {
  std::string bytes;
  std::vector<DecodedRecord> records;
  ExpectedPcrs base;
  bool is_whole = true;  // it begins where a reset leaves the PCRs
};

Result<Log> read_whole_log(const ControlFiles& files, const MountInfo& info, HashAlgorithm bank) {
  Log log;
  auto bytes = files.read("binary_runtime_measurements_" + std::string(name_of(bank)), kMaxLog);
  if (!bytes) return fail(bytes.error());
  log.bytes = std::move(*bytes);
  if (!info.base.empty()) {
    const auto head = archived_part(info.state, bank);
    if (head && *head && !(*head)->empty()) {
      log.bytes.insert(0, as_text(**head));
    } else {
      log.base = info.base;
      log.is_whole = false;
    }
  }
  auto records = decode_log(as_bytes(log.bytes), digest_size(bank));
  if (!records) return fail(EBADMSG, records.error().what);
  log.records = std::move(*records);
  return log;
}

std::set<std::uint32_t> pcrs_of(const Log& log) {
  std::set<std::uint32_t> pcrs;
  for (const DecodedRecord& record : log.records) {
    if (record.entry.pcr < kTpmPcrs) pcrs.insert(record.entry.pcr);
  }
  return pcrs;
}

// How many entries lead to what was quoted. The values of the log's PCRs go to `values`.
std::optional<std::size_t> quoted_prefix(const Log& log, const QuoteContents& quote, const std::set<std::uint32_t>& pcrs, PcrValues& values) {
  const Bank bank = Bank::of(quote.bank);
  const auto of_bank = log.base.find(name_of(bank));
  std::map<std::uint32_t, BankValues> fold;
  for (const std::uint32_t pcr : pcrs) {
    const bool has_base = of_bank != log.base.end() && of_bank->second.contains(pcr);
    fold[pcr] = {has_base ? of_bank->second.at(pcr) : pcr_reset_value(bank, pcr)};
    values[pcr] = fold[pcr][0];
  }
  for (std::size_t count = 0;; ++count) {
    if (composite_of(quote.digest_algorithm, values) == quote.pcr_digest) return count;
    if (count == log.records.size()) return std::nullopt;
    const LogEntry& entry = log.records[count].entry;
    if (entry.pcr >= kTpmPcrs) continue;
    const auto found = fold.find(entry.pcr);
    if (found == fold.end()) return std::nullopt;  // of a PCR that was not quoted
    extend_pcr({bank}, found->second, extend_values(entry, {bank}));
    values[entry.pcr] = found->second[0];
  }
}

// What was quoted, and the beginning of the log that leads to it.
struct Quoted {
  SignedQuote quote;
  Log log;
  std::size_t entries = 0;
};

Result<Quoted> take(const QuoteOptions& options, const ControlFiles& files, const std::string& tcti, ByteView nonce, HashAlgorithm bank) {
  for (int round = 0; round < kRounds; ++round) {
    const auto info = read_mount_info(files);
    if (!info) return fail(info.error());
    auto log = read_whole_log(files, *info, bank);
    if (!log) return fail(log.error());
    std::set<std::uint32_t> measured = pcrs_of(*log);
    measured.insert(info->pcr);
    std::set<std::uint32_t> pcrs = measured;
    for (std::uint32_t pcr = 0; pcr < 10; ++pcr) pcrs.insert(pcr);
    // The quote first, then the log: it has at least what was quoted.
    auto quote = take_quote(tcti, options.ak_handle, nonce, bank, {pcrs.begin(), pcrs.end()});
    if (!quote) return fail(quote.error().code == EPERM ? EPERM : EIO, quote.error().what);
    const auto contents = read_quote(quote->attest);
    if (!contents) return fail(EIO, contents.error().what);
    log = read_whole_log(files, *info, bank);
    if (!log) return fail(log.error());
    const auto count = quoted_prefix(*log, *contents, measured, quote->pcrs);
    if (!count) continue;
    std::size_t size = 0;
    for (std::size_t i = 0; i < *count; ++i) size += log->records[i].size;
    log->bytes.resize(size);
    return Quoted{std::move(*quote), std::move(*log), *count};
  }
  return fail(EBADMSG, "no beginning of the log leads to the quoted PCRs: something else extended them");
}

// The bank that boot_aggregate is of, so that a verifier can compare it; else the strongest habit.
Result<HashAlgorithm> bank_of(const QuoteOptions& options, const ControlFiles& files) {
  if (!options.bank.empty()) {
    const auto bank = hash_algorithm_named(options.bank);
    if (!bank || !tpm_algorithm_of(*bank) || !can_compute(*bank)) return fail(EINVAL, "'" + options.bank + "' is no bank of a TPM");
    return *bank;
  }
  const auto has = [&](HashAlgorithm bank) { return ::access(files.path_of("binary_runtime_measurements_" + std::string(name_of(bank))).c_str(), F_OK) == 0; };
  if (const auto log = files.read("binary_runtime_measurements", kMaxLog)) {
    const auto first = decode_record(as_bytes(*log), digest_size(HashAlgorithm::kSha1));
    const auto made_of = first ? hash_algorithm_named(view_of(first->entry).algorithm) : std::nullopt;
    if (made_of && *made_of != HashAlgorithm::kSha1 && tpm_algorithm_of(*made_of) && can_compute(*made_of) && has(*made_of)) return *made_of;
  }
  for (const HashAlgorithm bank : {HashAlgorithm::kSha256, HashAlgorithm::kSha384, HashAlgorithm::kSha512, HashAlgorithm::kSha1}) {
    if (has(bank)) return bank;
  }
  return HashAlgorithm::kSha256;
}

ExitCode code_of(const Error& error) { return error.code == EIO || error.code == ENODEV ? ExitCode::kTpm : error.code == EBADMSG ? ExitCode::kMismatch : ExitCode::kUsage; }

}  // namespace

ExitCode run_quote(const QuoteOptions& options) {
  const auto nonce = from_hex(options.nonce);
  if (!nonce || nonce->empty()) return complain({EINVAL, "--nonce takes an even number of hexadecimal digits"});
  if (nonce->size() > kMaxNonce) return complain({EINVAL, "a nonce has at most " + std::to_string(kMaxNonce) + " bytes"});
  const auto files = ControlFiles::open(options.mountpoint);
  if (!files) return complain(files.error());
  const auto info = read_mount_info(*files);
  if (!info) return complain(info.error());
  const auto tcti = tcti_of(*info, options.tcti);
  if (!tcti) return complain(tcti.error(), code_of(tcti.error()));
  const auto bank = bank_of(options, *files);
  if (!bank) return complain(bank.error());
  const auto taken = take(options, *files, *tcti, *nonce, *bank);
  if (!taken) return complain(taken.error(), code_of(taken.error()));

  const SignedQuote& quote = taken->quote;
  const Bytes raw = tpm2_tools_pcrs(*bank, quote.pcrs);
  // For people: a verifier believes none of it.
  const Json about{{"imafs", info->version}, {"nonce", to_hex(*nonce)}, {"bank", name_of(*bank)}, {"pcr", info->pcr},
                   {"entries", taken->entries}, {"made", std::time(nullptr)}};
  if (auto made = make_directories(options.directory, 0700); !made) return complain(made.error());
  const std::string values = pcr_lines(*bank, quote.pcrs), about_text = about.dump(1, ' ', true, Json::error_handler_t::replace) + "\n";
  for (const auto& [name, text] : {std::pair<const char*, std::string_view>{"quote.msg", as_text(quote.attest)},
                                   {"quote.sig", as_text(quote.signature)},
                                   {"ak.pem", quote.ak_pem},
                                   {"ak.pub", as_text(quote.ak_public)},
                                   {"pcrs.bin", as_text(raw)},
                                   {"pcrs", values},
                                   {"log", taken->log.bytes},
                                   {"about.json", about_text}}) {
    if (auto written = write_file_atomically(options.directory + "/" + name, text, 0644); !written) return complain(written.error());
  }
  if (!taken->log.is_whole) {
    std::fprintf(stderr, "imafs: warning: the log does not begin where a reset leaves the PCRs, and the archives of what came before are not there: "
                         "only a verifier who has a base (--base) can judge it\n");
  }
  std::printf("quoted %zu entries of '%s' in '%s'\n", taken->entries, printable(options.mountpoint).c_str(), printable(options.directory).c_str());
  return ExitCode::kOk;
}

ExitCode run_ak(const AkOptions& options) {
  const auto info = read_mount_info(options.mountpoint);
  if (!info) return complain(info.error());
  const auto tcti = tcti_of(*info, options.tcti);
  if (!tcti) return complain(tcti.error(), code_of(tcti.error()));
  const auto key = attestation_key_of(*tcti, options.ak_handle);
  if (!key) return complain(key.error(), key.error().code == EPERM ? ExitCode::kUsage : ExitCode::kTpm);
  const auto facts = read_public(*key);
  if (!facts) return complain(facts.error(), ExitCode::kTpm);
  if (!options.output.empty()) {
    if (auto written = write_file_atomically(options.output, as_text(*key), 0644); !written) return complain(written.error());
  }
  std::printf("name: %s\n%s", to_hex(facts->name).c_str(), facts->pem.c_str());
  return std::fflush(stdout) == 0 ? ExitCode::kOk : complain(errno_error("cannot write"));
}

}  // namespace imafs
