#include <cstdio>
#include <nlohmann/json.hpp>

#include "imafs/cli_attest.h"
#include "imafs/evidence.h"
#include "imafs/posix_file.h"
#include "imafs/verification_text.h"

namespace imafs {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kMaxLog = std::size_t{1} << 30;
constexpr std::size_t kMaxManifest = std::size_t{4} << 30;
constexpr std::size_t kMaxSmall = 1 << 20;
constexpr std::size_t kShownFiles = 20;

ExitCode complain(const Error& error) {
  std::fprintf(stderr, "imafs: %s\n", printable(error.what).c_str());
  return ExitCode::kUsage;
}

// Evidence is unpacked from strangers: what is no regular file is not waited for, nor followed.
Result<Evidence> read_evidence(const std::string& directory) {
  struct Part {
    const char* name;
    std::size_t limit;
    std::string Evidence::*into;
    bool is_needed;
  };
  Evidence evidence;
  for (const Part& part : {Part{"quote.msg", kMaxSmall, &Evidence::attest, true}, Part{"quote.sig", kMaxSmall, &Evidence::signature, true},
                           Part{"ak.pem", kMaxSmall, &Evidence::ak_pem, false}, Part{"ak.pub", kMaxSmall, &Evidence::ak_public, false},
                           Part{"pcrs", kMaxSmall, &Evidence::pcrs, true}, Part{"log", kMaxLog, &Evidence::log, true}}) {
    auto text = read_regular_file(directory + "/" + part.name, part.limit);
    if (!text && !part.is_needed && text.error().code == ENOENT) continue;
    if (!text) return fail(text.error());
    evidence.*part.into = std::move(*text);
  }
  return evidence;
}

// What the verifier's own files say.
struct Own {
  EvidenceDemands demands;
  std::optional<Manifest> manifest;
};

Status read_own(const VerifyQuoteOptions& options, Own& own) {
  if (!options.pcrs.empty()) own.demands.pcrs = {options.pcrs.begin(), options.pcrs.end()};
  own.demands.allow_sha1 = options.allow_sha1;
  if (options.nonce) {
    own.demands.nonce = from_hex(*options.nonce);
    if (!own.demands.nonce || own.demands.nonce->empty()) return fail(EINVAL, "--nonce takes an even number of hexadecimal digits");
  }
  if (!options.ak.empty()) {
    const auto text = read_file(options.ak, kMaxSmall);
    if (!text) return fail(text.error());
    auto key = parse_trusted_key(*text);
    if (!key) return fail(key.error().code, "'" + options.ak + "' is " + key.error().what + " (PEM or TPM2B_PUBLIC, or the name of one)");
    own.demands.key = std::move(*key);
  }
  if (!options.base.empty()) {
    const auto text = read_file(options.base, kMaxSmall);
    if (!text) return fail(text.error());
    auto base = parse_evidence_base(*text, "'" + options.base + "'");
    if (!base) return fail(base.error());
    own.demands.base = std::move(*base);
  }
  if (!options.manifest.empty()) {
    const auto text = read_file(options.manifest, kMaxManifest);
    if (!text) return fail(text.error());
    auto parsed = parse_manifest(*text, options.manifest);
    if (!parsed) return fail(parsed.error());
    own.manifest = std::move(*parsed);
    own.demands.manifest = &*own.manifest;
  }
  return {};
}

const char* word_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::kVerified: return "verified";
    case Verdict::kMismatch: return "MISMATCH";
    default: return "incomplete";
  }
}

std::string as_json(const Judgement& judgement) {
  const bool is_incomplete = judgement.verdict == Verdict::kNotChecked;
  Json json{{"verdict", is_incomplete ? "incomplete" : judgement.verdict == Verdict::kVerified ? "verified" : "mismatch"},
            {"holds", is_incomplete ? Json() : Json(judgement.verdict == Verdict::kVerified)},
            {"entries", judgement.entries},
            {"violations", judgement.violations},
            {"checks", Json::array()},
            {"not_accepted", judgement.not_accepted}};
  for (const Point& point : judgement.points) {
    json["checks"].push_back({{"name", point.name}, {"holds", point.holds ? Json(*point.holds) : Json()}, {"detail", point.detail}});
  }
  return json.dump(1, ' ', true, Json::error_handler_t::replace) + "\n";
}

std::string as_text(const Judgement& judgement) {
  std::string text = std::string(word_of(judgement.verdict)) + ": " + std::to_string(judgement.entries) + " entries, " +
                     std::to_string(judgement.violations) + (judgement.violations == 1 ? " violation\n" : " violations\n");
  for (const Point& point : judgement.points) {
    const char* const mark = !point.holds ? "?    " : *point.holds ? "ok   " : "FAIL ";
    text += std::string("  ") + mark + point.name + ": " + printable(point.detail) + "\n";
  }
  const auto& refused = judgement.not_accepted;
  for (std::size_t i = 0; i < refused.size() && i < kShownFiles; ++i) text += "       " + printable(refused[i]) + "\n";
  if (refused.size() > kShownFiles) text += "       and " + std::to_string(refused.size() - kShownFiles) + " more (--json lists them)\n";
  return text;
}

}  // namespace

ExitCode run_verify_quote(const VerifyQuoteOptions& options) {
  Own own;
  if (auto read = read_own(options, own); !read) return complain(read.error());
  const auto evidence = read_evidence(options.directory);
  if (!evidence) return complain(evidence.error());
  const Judgement judgement = judge(*evidence, own.demands);
  const std::string text = options.json ? as_json(judgement) : as_text(judgement);
  std::fwrite(text.data(), 1, text.size(), stdout);
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) return complain(errno_error("cannot write"));
  if (!options.save_base.empty()) {
    if (!judgement.end) {
      std::fprintf(stderr, "imafs: no base is saved, because it is not verified\n");
    } else if (auto written = write_file_atomically(options.save_base, to_text(*judgement.end), 0600); !written) {
      return complain(written.error());
    }
  }
  return exit_code_of(judgement.verdict);
}

}  // namespace imafs
