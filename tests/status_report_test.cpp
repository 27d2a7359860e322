#include "imafs/status_report.h"

#include <catch2/catch_test_macros.hpp>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

namespace imafs {
namespace {

Rule rule_of(Action action, Hook hook) {
  Rule rule;
  rule.action = action;
  rule.hook = hook;
  return rule;
}

StatusReport sample() {
  StatusReport report;
  report.version = "0.1";
  report.mount_point = "/mnt/\xff\"quoted\"";
  report.options = {{"hash", "sha256"}, {"pcr", "10"}};
  auto policy = std::make_shared<Policy>();
  policy->rules = {rule_of(Action::kMeasure, Hook::kFileCheck),
                   rule_of(Action::kMeasure, Hook::kModuleCheck),
                   rule_of(Action::kAppraise, Hook::kNone), rule_of(Action::kAudit, Hook::kNone),
                   rule_of(Action::kAudit, Hook::kFileCheck)};
  policy->is_builtin = false;
  report.policy = policy;
  report.tpm.kind = "swtpm";
  report.tpm.description = "swtpm at \"/run/x.sock\"";
  report.tpm.banks = {Bank::of(HashAlgorithm::kSha1)};
  report.tpm.replayed[10] = {Bytes(20, 0xaa)};
  report.tpm.read[10] = {Bytes(20, 0xab)};
  report.entries = 12;
  report.violations = 3;
  report.degraded = {{"no-leases", "the file system has none"}};
  return report;
}

std::set<std::string> degraded_in(const nlohmann::json& json) {
  std::set<std::string> what;
  for (const auto& entry : json["degraded"]) what.insert(entry["what"]);
  return what;
}

TEST_CASE("status is one JSON object, also where a name is no UTF-8") {
  const std::string text = to_json(sample());
  CHECK(text.back() == '\n');
  const auto json = nlohmann::json::parse(text);
  CHECK(json["version"] == "0.1");
  CHECK(json["options"]["hash"] == "sha256");
  CHECK(json["entries"] == 12);
  CHECK(json["violations"] == 3);
  CHECK(json["last_policy_error"].is_null());
}

TEST_CASE("status names the rules that cannot act") {
  const auto json = nlohmann::json::parse(to_json(sample()));
  CHECK(json["policy"]["rules"] == 5);
  CHECK(json["policy"]["hooks_that_never_fire"] == nlohmann::json::array({"MODULE_CHECK"}));
  CHECK(json["policy"]["rules_not_acted_on"] == nlohmann::json{{"appraise", 1}, {"audit", 2}});
  CHECK(degraded_in(json) ==
        std::set<std::string>{"no-leases", "rules-never-fire", "rules-not-acted-on"});
}

TEST_CASE("status shows each PCR as replayed and as read, and whether they are equal") {
  auto report = sample();
  const auto differing = nlohmann::json::parse(to_json(report))["tpm"]["pcrs"]["10"]["sha1"];
  CHECK(differing["replayed"] == "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
  CHECK(differing["read"] == "abababababababababababababababababababab");
  CHECK(differing["equal"] == false);
  report.tpm.read = report.tpm.replayed;
  CHECK(nlohmann::json::parse(to_json(report))["tpm"]["pcrs"]["10"]["sha1"]["equal"] == true);
  report.tpm.read.clear();
  const auto unread = nlohmann::json::parse(to_json(report))["tpm"]["pcrs"]["10"]["sha1"];
  CHECK(unread["read"].is_null());
  CHECK(unread["equal"].is_null());
}

TEST_CASE("a bank that cannot be computed is shown as read, and not compared") {
  auto report = sample();
  report.tpm.banks = {Bank{0x99, 4, std::nullopt}};
  report.tpm.replayed[10] = {Bytes(4, 0)};
  report.tpm.read[10] = {Bytes(4, 1)};
  const auto bank = nlohmann::json::parse(to_json(report))["tpm"]["pcrs"]["10"]["tpm_alg_99"];
  CHECK(bank["read"] == "01010101");
  CHECK(bank["equal"].is_null());
}

TEST_CASE("trouble with the TPM is a degradation") {
  auto report = sample();
  report.policy = nullptr;
  report.degraded.clear();
  CHECK(all_degradations(report).empty());
  report.tpm.health.ok = false;
  report.tpm.health.foreign_extend = true;
  report.tpm.health.missing_extends = 2;
  report.tpm.health.first_missing = 7;
  CHECK(degraded_in(nlohmann::json::parse(to_json(report))) ==
        std::set<std::string>{"tpm-fault", "foreign-extend", "missing-extends"});
}

TEST_CASE("every line of the metrics is a comment or a sample with a number") {
  auto report = sample();
  report.counters = {{"imafs_opens_total", "Opens of regular files.", 99}};
  std::istringstream lines(to_prometheus(report));
  std::set<std::string> families;
  for (std::string line; std::getline(lines, line);) {
    INFO(line);
    if (line.starts_with("# TYPE ")) {
      const std::string name = line.substr(7, line.rfind(' ') - 7);
      CHECK(families.insert(name).second);
      CHECK(line.ends_with(name.ends_with("_total") ? " counter" : " gauge"));
      continue;
    }
    if (line.starts_with("# HELP ")) continue;
    const std::string name = line.substr(0, line.find_first_of("{ "));
    CHECK(families.contains(name));
    const std::string value = line.substr(line.rfind(' ') + 1);
    CHECK(value.find_first_not_of("0123456789-") == std::string::npos);
  }
  const std::string text = to_prometheus(report);
  CHECK(text.find("\nimafs_log_entries 12\n") != std::string::npos);
  CHECK(text.find("\nimafs_opens_total 99\n") != std::string::npos);
  CHECK(text.find("description=\"swtpm at \\\"/run/x.sock\\\"\"") != std::string::npos);
}

}  // namespace
}  // namespace imafs
