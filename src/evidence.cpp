#include "imafs/evidence.h"

#include <algorithm>

#include "imafs/bounded_json.h"
#include "imafs/entry_view.h"

namespace imafs {
namespace {

using Json = nlohmann::ordered_json;
using PcrValues = std::map<std::uint32_t, Bytes>;

constexpr std::uint32_t kFirstFreePcr = 10;  // below: the machine's own boot, which boot_aggregate is about
constexpr std::uint32_t kTpmPcrs = 24;
constexpr std::uint64_t kBaseVersion = 1;

// Judges one piece of evidence, a point after the other.
class Judge {
 public:
  Judge(const Evidence& evidence, const EvidenceDemands& demands) : evidence_(evidence), demands_(demands) {}

  Judgement run() {
    look_at_key();
    look_at_signature();
    auto quote = read_quote(as_bytes(evidence_.attest));
    if (!quote) {
      add("quote", false, quote.error().what);
    } else if (!can_compute(quote->bank) || !tpm_algorithm_of(quote->bank)) {
      add("quote", false, "it is of a bank that cannot be computed here");
    } else {
      quote_ = std::move(*quote);
      look_at_nonce();
      look_at_values();
      look_at_log();
    }
    judgement_.verdict = verdict();
    if (judgement_.verdict == Verdict::kVerified) judgement_.end = end();
    return std::move(judgement_);
  }

 private:
  void add(std::string name, std::optional<bool> holds, std::string detail) {
    judgement_.points.push_back({std::move(name), holds, std::move(detail)});
  }

  Verdict verdict() const {
    const auto any = [&](std::optional<bool> wanted) {
      return std::any_of(judgement_.points.begin(), judgement_.points.end(), [&](const Point& point) { return point.holds == wanted; });
    };
    return any(false) ? Verdict::kMismatch : any(std::nullopt) ? Verdict::kNotChecked : Verdict::kVerified;
  }

  // Whose key it has to be, and whether only a TPM can have made a quote that it signed. The evidence's own ak.pub counts only as far as
  // the trusted key confirms it: by its name, or, where a PEM is all that was enrolled, by being about the same key.
  void look_at_key() {
    std::optional<KeyFacts> facts;
    std::string malformed;
    if (!evidence_.ak_public.empty()) {
      auto read = read_public(as_bytes(evidence_.ak_public));
      if (read) facts = std::move(*read);
      else malformed = read.error().what;
    }
    if (!demands_.key) {
      key_pem_ = facts ? facts->pem : evidence_.ak_pem;
      add("key", std::nullopt, "the one beside the quote: --ak FILE says which it has to be");
      return;
    }
    const TrustedKey& key = *demands_.key;
    key_pem_ = key.pem;
    if (key.facts) facts = key.facts;
    if (!malformed.empty() && !key.facts) return add("key", false, "ak.pub: " + malformed);
    if (!facts) return add("key", std::nullopt, "there is no ak.pub: nothing says that it is a TPM's, and signs what the TPM made alone");
    if (!key.name.empty() && facts->name != key.name) return add("key", false, "ak.pub is of another key than --ak says: its name is " + to_hex(facts->name));
    if (key.pem.empty()) key_pem_ = facts->pem;
    if (fingerprint_of(facts->pem) != fingerprint_of(key_pem_)) return add("key", false, "ak.pub is of another key than --ak says");
    if (!facts->can_attest_alone) return add("key", false, "it is no restricted signing key of one TPM: who has it can sign any quote");
    add("key", true, "the one that --ak says: a restricted signing key of one TPM");
  }

  void look_at_signature() {
    const auto hash = check_signature(as_bytes(evidence_.attest), as_bytes(evidence_.signature), key_pem_);
    if (!hash) return add("signature", false, hash.error().what);
    signature_hash_ = *hash;
    if (*hash == HashAlgorithm::kSha1 && !demands_.allow_sha1) return add("signature", false, "it is made with SHA-1: --allow-sha1 accepts that");
    add("signature", true, "by that key");
  }

  void look_at_nonce() {
    if (!demands_.nonce) return add("nonce", std::nullopt, "--nonce was not given; the quote has " + to_hex(quote_.nonce));
    const bool fresh = quote_.nonce == *demands_.nonce;
    add("nonce", fresh, fresh ? "the one that was asked for" : "the quote has " + to_hex(quote_.nonce));
  }

  bool is_quoted(std::uint32_t pcr) const { return std::find(quote_.pcrs.begin(), quote_.pcrs.end(), pcr) != quote_.pcrs.end(); }

  // The values are not in the quote, only a digest over them: they come beside it.
  void look_at_values() {
    const auto given = parse_pcr_values(evidence_.pcrs, "pcrs");
    if (!given) return add("pcrs", false, given.error().what);
    const std::size_t size = digest_size(quote_.bank);
    if (const auto of_bank = given->find(std::string(name_of(quote_.bank))); of_bank != given->end()) {
      for (const auto& [pcr, value] : of_bank->second) {
        if (is_quoted(pcr) && value.size() == size) values_[pcr] = value;
      }
    }
    const HashAlgorithm algorithm = signature_hash_.value_or(quote_.digest_algorithm);
    are_quoted_ = values_.size() == quote_.pcrs.size() && composite_of(algorithm, values_) == quote_.pcr_digest;
    add("pcrs", are_quoted_, are_quoted_ ? "the values that were quoted" : "not the values that were quoted");
  }

  void look_at_log() {
    auto log = decode_log(as_bytes(evidence_.log), digest_size(quote_.bank));
    if (!log) return add("log", false, log.error().what);
    log_ = std::move(*log);
    judgement_.entries = log_.size();
    judgement_.violations = static_cast<std::uint64_t>(std::count_if(log_.begin(), log_.end(), [](const DecodedRecord& record) { return record.entry.is_violation; }));
    std::set<std::uint32_t> explained = demands_.pcrs;
    for (const DecodedRecord& record : log_) explained.insert(record.entry.pcr);
    ExpectedPcrs start;
    if (demands_.base) {
      look_at_base();
      starts_at_reset_ = begins_before_base();
      if (!starts_at_reset_) start[std::string(name_of(quote_.bank))] = demands_.base->pcrs;
      for (const auto& [pcr, value] : demands_.base->pcrs) explained.insert(pcr);
    }
    ExpectedPcrs expected;
    for (const auto& [pcr, value] : values_) {
      if (explained.contains(pcr)) expected[std::string(name_of(quote_.bank))][pcr] = value;
    }
    VerifyDemands demands;
    demands.pcrs = explained;
    demands.may_be_padded_sha1 = demands_.allow_sha1;
    const Verification result = verify_log(log_, digest_size(quote_.bank), {Bank::of(quote_.bank)}, expected, start, {}, demands);
    const bool fits = result.verdict != Verdict::kMismatch;
    if (!fits) {
      add("log", false, result.message + (demands_.base ? "" : ", beginning where a reset leaves it: an earlier part is missing, or something else extended it"));
    } else {
      add("log", result.unchecked.empty() && result.verdict == Verdict::kVerified ? std::optional(true) : std::nullopt, result.message);
      for (const std::string& point : result.unchecked) add("pcr", std::nullopt, point);
    }
    look_at_other_pcrs(explained);
    look_at_boot_aggregate(explained);
    if (demands_.manifest) look_at_files(fits && are_quoted_);
  }

  // The log of another PCR was left out, or somebody else extended it: what was measured into it is not known.
  void look_at_other_pcrs(const std::set<std::uint32_t>& explained) {
    for (const auto& [pcr, value] : values_) {
      if (pcr < kFirstFreePcr || pcr >= kTpmPcrs || explained.contains(pcr)) continue;
      const std::uint8_t first = value[0];
      const bool is_as_reset = (first == 0 || first == 0xff) && std::all_of(value.begin(), value.end(), [first](std::uint8_t byte) { return byte == first; });
      if (!is_as_reset) add("pcr", std::nullopt, "PCR " + std::to_string(pcr) + " is quoted, and no entry of the log explains its value");
    }
  }

  void look_at_base() {
    const EvidenceBase& base = *demands_.base;
    std::string problem;
    if (base.bank != name_of(quote_.bank)) problem = "it is of bank " + base.bank + ", the quote of " + std::string(name_of(quote_.bank));
    else if (base.ak != fingerprint_of(key_pem_)) problem = "it is of another key";
    else if (base.reset_count != quote_.reset_count || base.restart_count != quote_.restart_count) problem = "the TPM was reset since it was saved";
    base_holds_ = problem.empty();
    add("base", base_holds_, base_holds_ ? "after " + std::to_string(base.entries) + " entries that were verified before" : problem);
  }

  // Whether the log has the base's part once more.
  bool begins_before_base() const {
    const EvidenceBase& base = *demands_.base;
    if (base.bank != name_of(quote_.bank) || log_.size() < base.entries) return false;
    const Bank bank = Bank::of(quote_.bank);
    std::map<std::uint32_t, BankValues> fold;
    for (const auto& [pcr, value] : base.pcrs) fold[pcr] = {pcr_reset_value(bank, pcr)};
    for (std::uint64_t i = 0; i < base.entries; ++i) {
      const LogEntry& entry = log_[i].entry;
      extend_pcr({bank}, fold.try_emplace(entry.pcr, BankValues{pcr_reset_value(bank, entry.pcr)}).first->second, extend_values(entry, {bank}));
    }
    return std::all_of(base.pcrs.begin(), base.pcrs.end(), [&](const auto& value) { return fold.at(value.first)[0] == value.second; });
  }

  // The first entry, and it has to say what the quoted PCRs say. Those that the log itself goes on extending it found as a reset left them.
  void look_at_boot_aggregate(const std::set<std::uint32_t>& explained) {
    const char* const name = "boot_aggregate";
    if (!starts_at_reset_ && !base_holds_) return add(name, std::nullopt, "it is not in the log, and the base does not hold");
    if (!starts_at_reset_) return add(name, true, "it was checked before the base");
    if (log_.empty()) return add(name, std::nullopt, "the log is empty");
    const EntryView view = view_of(log_[0].entry);
    if (log_[0].entry.is_violation || !view.is_boot_aggregate(0)) return add(name, false, "the log does not begin with it");
    const bool is_sha1 = quote_.bank == HashAlgorithm::kSha1, is_usual = is_sha1 || quote_.bank == HashAlgorithm::kSha256;
    if (view.algorithm != name_of(quote_.bank)) {
      // The kernel's rule: the bank of the file digests, sha256 or sha1; a TPM that has none of these gets zeros.
      const bool is_zero = !view.digest.empty() && std::all_of(view.digest.begin(), view.digest.end(), [](std::uint8_t byte) { return byte == 0; });
      if (is_zero && !is_usual) return add(name, true, "zeros: the TPM has no bank that it is made of");
      return add(name, std::nullopt, "it is of bank " + view.algorithm + ", the quote of " + std::string(name_of(quote_.bank)));
    }
    PcrValues boot;
    for (std::uint32_t pcr = 0; pcr < (is_sha1 ? 8U : 10U); ++pcr) {
      const auto found = values_.find(pcr);
      if (found == values_.end()) return add(name, std::nullopt, "the quote does not cover PCR " + std::to_string(pcr));
      boot[pcr] = explained.contains(pcr) ? pcr_reset_value(Bank::of(quote_.bank), pcr) : found->second;
    }
    const bool holds = composite_of(quote_.bank, boot) == view.digest;
    add(name, holds, holds ? "it is that of the quoted PCRs 0 to 9" : "it is not that of the quoted PCRs 0 to 9");
  }

  void look_at_files(bool replays) {
    if (!replays) return add("files", std::nullopt, "not looked at, because the log is not the one that was quoted");
    std::size_t files = 0, excluded = 0;
    std::vector<std::string>& refused = judgement_.not_accepted;
    for (std::size_t i = 0; i < log_.size(); ++i) {
      const EntryView view = view_of(log_[i].entry);
      // Nothing binds what a violation says: not even that it is about a file.
      if (!log_[i].entry.is_violation && !view.is_file(starts_at_reset_ ? i : i + 1)) continue;
      ++files;
      if (log_[i].entry.is_violation) {
        refused.push_back(view.name + ": a violation: nobody knows what was read");
        continue;
      }
      if (!view.is_sound) {
        refused.push_back(view.name + ": it does not begin with a digest and a name, as its template '" + log_[i].entry.template_name + "' says");
        continue;
      }
      switch (demands_.manifest->ask(view.name, view.digest)) {
        case Manifest::Answer::kAllowed: break;
        case Manifest::Answer::kExcluded: ++excluded; break;
        case Manifest::Answer::kUnknownFile: refused.push_back(view.name + ": not in the manifest"); break;
        case Manifest::Answer::kOtherDigest: refused.push_back(view.name + ": another digest, " + view.algorithm + ":" + to_hex(view.digest)); break;
      }
    }
    std::string detail = std::to_string(files) + " files, " + std::to_string(refused.size()) + " not accepted";
    if (excluded > 0) detail += ", " + std::to_string(excluded) + " excluded";
    add("files", refused.empty(), detail);
    if (!starts_at_reset_ && !demands_.base->files_checked) add("files", std::nullopt, "those before the base were not compared with a manifest");
  }

  EvidenceBase end() const {
    EvidenceBase end;
    end.bank = name_of(quote_.bank);
    for (const DecodedRecord& record : log_) end.pcrs[record.entry.pcr] = values_.at(record.entry.pcr);
    for (const std::uint32_t pcr : demands_.pcrs) end.pcrs[pcr] = values_.at(pcr);
    if (demands_.base) {
      for (const auto& [pcr, value] : demands_.base->pcrs) end.pcrs[pcr] = values_.at(pcr);
    }
    end.entries = log_.size() + (starts_at_reset_ ? 0 : demands_.base->entries);
    end.ak = fingerprint_of(key_pem_);
    end.reset_count = quote_.reset_count;
    end.restart_count = quote_.restart_count;
    end.files_checked = demands_.manifest != nullptr;
    return end;
  }

  const Evidence& evidence_;
  const EvidenceDemands& demands_;
  Judgement judgement_;
  std::string key_pem_;
  std::optional<HashAlgorithm> signature_hash_;  // the quote's PCR digest is made with the same
  QuoteContents quote_;
  PcrValues values_;  // those that are quoted
  bool are_quoted_ = false;
  std::vector<DecodedRecord> log_;
  bool starts_at_reset_ = true, base_holds_ = false;
};

std::string_view line_after(std::string_view text, std::string_view key) {
  const std::size_t at = text.find(key);
  if (at == std::string_view::npos || (at != 0 && text[at - 1] != '\n')) return {};
  const std::string_view rest = text.substr(at + key.size());
  const std::string_view line = rest.substr(0, rest.find_first_of("\r\n"));
  const std::size_t start = line.find_first_not_of(' ');
  return start == std::string_view::npos ? std::string_view() : line.substr(start);
}

}  // namespace

Bytes composite_of(HashAlgorithm algorithm, const std::map<std::uint32_t, Bytes>& values) {
  Hasher hasher(algorithm);
  for (const auto& [pcr, value] : values) hasher.update(value);
  const Digest digest = hasher.finish();
  return {digest.bytes().begin(), digest.bytes().end()};
}

Judgement judge(const Evidence& evidence, const EvidenceDemands& demands) { return Judge(evidence, demands).run(); }

Result<TrustedKey> parse_trusted_key(std::string_view text) {
  constexpr std::string_view begin = "-----BEGIN PUBLIC KEY-----", name = "name:";
  TrustedKey key;
  if (auto facts = read_public(as_bytes(text))) {
    key.pem = facts->pem;
    key.name = facts->name;
    key.facts = std::move(*facts);
    return key;
  }
  const std::size_t pem = text.find(begin);
  const std::string_view head = text.substr(0, pem);
  if (pem != std::string_view::npos) key.pem = text.substr(pem);
  if (!key.pem.empty() && !is_public_key(key.pem)) return fail(EINVAL, "no public key");
  if (const std::string_view line = line_after(head, name); !line.empty()) {
    auto bytes = from_hex(line);
    if (!bytes || bytes->size() < 2 + digest_size(HashAlgorithm::kSha256)) return fail(EINVAL, "no public key: a name is hexadecimal, as 'imafs ak' prints it");
    key.name = std::move(*bytes);
  }
  if (key.pem.empty() && key.name.empty()) return fail(EINVAL, "no public key");
  return key;
}

std::string to_text(const EvidenceBase& base) {
  Json pcrs = Json::object();
  for (const auto& [pcr, value] : base.pcrs) pcrs[std::to_string(pcr)] = to_hex(value);
  const Json json{{"imafs_base", kBaseVersion}, {"bank", base.bank}, {"pcrs", std::move(pcrs)}, {"entries", base.entries}, {"ak", base.ak},
                  {"reset_count", base.reset_count}, {"restart_count", base.restart_count}, {"files_checked", base.files_checked}};
  return json.dump(1) + "\n";
}

Result<EvidenceBase> parse_evidence_base(std::string_view text, const std::string& origin) {
  const auto bad = [&] { return fail(EINVAL, origin + ": not written by 'imafs verify --save-base'"); };
  const auto json = parse_json_object<Json>(text, origin);
  if (!json || count_at(*json, "imafs_base") != kBaseVersion) return bad();
  EvidenceBase base;
  base.bank = text_at(*json, "bank");
  base.ak = text_at(*json, "ak");
  const auto hash = hash_algorithm_named(base.bank);
  const Json& pcrs = member(*json, "pcrs");
  if (!hash || base.ak.empty() || !pcrs.is_object() || pcrs.empty()) return bad();
  for (const auto& [name, value] : pcrs.items()) {
    const auto parsed = parse_pcr_values(value.is_string() ? base.bank + ":" + name + ": " + value.template get<std::string>() : "?", origin);
    if (!parsed || parsed->size() != 1 || parsed->begin()->second.size() != 1) return bad();
    const auto& [pcr, bytes] = *parsed->begin()->second.begin();
    if (pcr >= kTpmPcrs || bytes.size() != digest_size(*hash)) return bad();
    base.pcrs[pcr] = bytes;
  }
  for (const char* key : {"entries", "reset_count", "restart_count"}) {
    if (!member(*json, key).is_number_unsigned()) return bad();
  }
  base.entries = count_at(*json, "entries");
  base.reset_count = static_cast<std::uint32_t>(count_at(*json, "reset_count"));
  base.restart_count = static_cast<std::uint32_t>(count_at(*json, "restart_count"));
  base.files_checked = flag_at(*json, "files_checked");
  return base;
}

}  // namespace imafs
