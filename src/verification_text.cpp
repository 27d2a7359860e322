#include "imafs/verification_text.h"

#include <nlohmann/json.hpp>

namespace imafs {
namespace {

const char* name_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::kVerified: return "verified";
    case Verdict::kMismatch: return "mismatch";
    default: return "incomplete";
  }
}

}  // namespace

std::string to_text(const Verification& result) {
  const char* const head = result.verdict == Verdict::kVerified   ? "verified: "
                           : result.verdict == Verdict::kMismatch ? "MISMATCH: "
                                                                  : "incomplete: ";
  std::string text = head + printable(result.message) + " (" + std::to_string(result.entries) + " entries, " +
                     std::to_string(result.violations) + " violations)\n";
  for (const std::string& point : result.unchecked) text += "  not checked: " + printable(point) + "\n";
  for (const BankReplay& bank : result.banks) {
    for (const auto& [pcr, value] : bank.replayed) {
      const auto& expected = bank.expected.at(pcr);
      text += "  " + imafs::name_of(bank.bank) + ":" + std::to_string(pcr) + " " + to_hex(value);
      if (expected) text += *expected == value ? " = PCR" : " but the PCR is " + to_hex(*expected);
      text += "\n";
    }
  }
  return text;
}

nlohmann::ordered_json to_json(const Verification& result) {
  using Json = nlohmann::ordered_json;
  Json json{{"verdict", name_of(result.verdict)},
            {"holds", result.verdict == Verdict::kNotChecked ? Json() : Json(result.verdict == Verdict::kVerified)},
            {"message", result.message},
            {"entries", result.entries},
            {"violations", result.violations},
            {"banks", Json::array()}};
  if (!result.unchecked.empty()) json["unchecked"] = result.unchecked;
  if (result.first_bad_entry) json["first_bad_entry"] = *result.first_bad_entry;
  for (const BankReplay& bank : result.banks) {
    Json pcrs = Json::object();
    for (const auto& [pcr, value] : bank.replayed) {
      pcrs[std::to_string(pcr)] = {{"replayed", to_hex(value)}};
      if (const auto& expected = bank.expected.at(pcr)) pcrs[std::to_string(pcr)]["expected"] = to_hex(*expected);
    }
    json["banks"].push_back({{"name", imafs::name_of(bank.bank)}, {"matches", bank.matches}, {"pcrs", std::move(pcrs)}});
  }
  return json;
}

ExitCode exit_code_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::kVerified: return ExitCode::kOk;
    case Verdict::kMismatch: return ExitCode::kMismatch;
    default: return ExitCode::kUsage;
  }
}

}  // namespace imafs
