#include "imafs/status_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "imafs/bytes.h"
#include "imafs/digest.h"
#include "imafs/policy_parser.h"

namespace imafs {
namespace {

using Json = nlohmann::ordered_json;

bool is_acted_on(Action action) {
  return action == Action::kMeasure || action == Action::kDontMeasure;
}

std::size_t count_unacted_rules(const Policy& policy) {
  return static_cast<std::size_t>(std::ranges::count_if(
      policy.rules, [](const Rule& rule) { return !is_acted_on(rule.action); }));
}

// Hooks that the rules name and no file system sees, in the order of the rules.
std::vector<std::string> idle_hooks(const Policy& policy) {
  std::vector<std::string> names;
  for (const Rule& rule : policy.rules) {
    if (can_fire(rule.hook)) continue;
    std::string name(name_of(rule.hook));
    if (std::ranges::find(names, name) == names.end()) names.push_back(std::move(name));
  }
  return names;
}

std::string sha256_hex(std::string_view text) {
  return to_hex(hash_of(HashAlgorithm::kSha256, as_bytes(text)).bytes());
}

Json policy_json(const StatusReport& report) {
  Json json = Json::object();
  if (report.policy) {
    const Policy& policy = *report.policy;
    json["rules"] = policy.rules.size();
    json["sha256"] = sha256_hex(to_text(policy));  // of the text that .ima/policy gives
    json["builtin"] = policy.is_builtin;
    json["hooks_that_never_fire"] = idle_hooks(policy);
    Json unacted = Json::object();
    for (const Rule& rule : policy.rules) {
      if (is_acted_on(rule.action)) continue;
      auto& count = unacted[std::string(name_of(rule.action))];
      count = count.is_null() ? 1 : count.get<std::uint64_t>() + 1;
    }
    json["rules_not_acted_on"] = std::move(unacted);
  }
  json["updates_completed"] = report.policy_updates_completed;
  json["updates_failed"] = report.policy_updates_failed;
  return json;
}

const Bytes* value_in(const std::map<std::uint32_t, BankValues>& values, std::uint32_t pcr,
                      std::size_t bank) {
  const auto found = values.find(pcr);
  return found != values.end() && bank < found->second.size() ? &found->second[bank] : nullptr;
}

// {"10": {"sha256": {"replayed": "..", "read": "..", "equal": true}}}
Json pcrs_json(const StatusReport::Tpm& tpm) {
  std::set<std::uint32_t> indices;
  for (const auto& [pcr, values] : tpm.replayed) indices.insert(pcr);
  for (const auto& [pcr, values] : tpm.read) indices.insert(pcr);
  Json json = Json::object();
  for (const std::uint32_t pcr : indices) {
    Json banks = Json::object();
    for (std::size_t bank = 0; bank < tpm.banks.size(); ++bank) {
      const Bytes* replayed = value_in(tpm.replayed, pcr, bank);
      const Bytes* read = value_in(tpm.read, pcr, bank);
      // What cannot be computed cannot be replayed either.
      if (!tpm.banks[bank].hash) replayed = nullptr;
      Json value = Json::object();
      value["replayed"] = replayed ? Json(to_hex(*replayed)) : Json();
      value["read"] = read ? Json(to_hex(*read)) : Json();
      value["equal"] = replayed && read ? Json(*replayed == *read) : Json();
      banks[name_of(tpm.banks[bank])] = std::move(value);
    }
    json[std::to_string(pcr)] = std::move(banks);
  }
  return json;
}

Json tpm_json(const StatusReport::Tpm& tpm) {
  Json json = Json::object();
  json["kind"] = tpm.kind;
  json["description"] = tpm.description;
  json["why"] = tpm.why;
  json["ok"] = tpm.health.ok;
  json["message"] = tpm.health.message;
  json["foreign_extend"] = tpm.health.foreign_extend;
  json["missing_extends"] = tpm.health.missing_extends;
  json["first_missing"] = tpm.health.first_missing ? Json(*tpm.health.first_missing) : Json();
  json["banks"] = Json::array();
  for (const Bank& bank : tpm.banks) json["banks"].push_back(name_of(bank));
  json["owed_violations"] = tpm.health.owed_violations;
  json["read_error"] = tpm.read_error;
  json["pcrs"] = pcrs_json(tpm);
  return json;
}

std::string label_value(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '\\' || c == '"') escaped += '\\';
    if (c == '\n') {
      escaped += "\\n";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

// One metric family with samples of the form `{labels} value`.
class Family {
 public:
  Family(std::string& out, std::string_view name, std::string_view help) : out_(out), name_(name) {
    const bool is_counter = name.ends_with("_total");
    out_ += "# HELP " + name_ + ' ' + std::string(help) + '\n';
    out_ += "# TYPE " + name_ + (is_counter ? " counter\n" : " gauge\n");
  }
  void sample(std::int64_t value, const std::string& labels = {}) {
    out_ += name_ + (labels.empty() ? "" : '{' + labels + '}') + ' ' + std::to_string(value) + '\n';
  }
  void sample(std::uint64_t value, const std::string& labels = {}) {
    sample(static_cast<std::int64_t>(value), labels);
  }

 private:
  std::string& out_;
  const std::string name_;
};

}  // namespace

std::vector<StatusReport::Degradation> all_degradations(const StatusReport& report) {
  auto all = report.degraded;
  const TpmHealth& health = report.tpm.health;
  if (!health.ok) all.push_back({"tpm-fault", health.message});
  if (health.foreign_extend) {
    all.push_back(
        {"foreign-extend", "something else extended a PCR of this log: it no longer replays"});
  }
  if (health.missing_extends > 0) {
    std::string why =
        std::to_string(health.missing_extends) + " entries are in the log and not in the PCR";
    if (health.first_missing)
      why += ", the first of them is entry " + std::to_string(*health.first_missing);
    all.push_back({"missing-extends", std::move(why)});
  }
  if (health.owed_violations > 0) {
    all.push_back({"violations-owed", std::to_string(health.owed_violations) + " violations are not in the PCR yet; until they are, no new entry is"});
  }
  if (report.room.in_use) {
    all.push_back({"log-room", "the disk is full: " + std::to_string(report.room.bytes) + " bytes are left for the log"});
  }
  if (!report.policy) return all;
  if (const auto hooks = idle_hooks(*report.policy); !hooks.empty()) {
    std::string why = "no file system sees";
    for (const auto& hook : hooks) why += ' ' + hook;
    all.push_back({"rules-never-fire", why});
  }
  if (const std::size_t rules = count_unacted_rules(*report.policy); rules > 0) {
    all.push_back({"rules-not-acted-on",
                   std::to_string(rules) + " appraise, audit or hash rules are only kept"});
  }
  return all;
}

std::string to_json(const StatusReport& report) {
  Json json = Json::object();
  json["version"] = report.version;
  json["mount_point"] = report.mount_point;
  json["backing"] = report.backing;
  json["started_at"] = report.started_at;
  json["options"] = Json::object();
  for (const auto& [name, value] : report.options) json["options"][name] = value;
  json["policy"] = policy_json(report);
  json["last_policy_error"] =
      report.last_policy_error.empty() ? Json() : Json(report.last_policy_error);
  json["tpm"] = tpm_json(report.tpm);
  json["entries"] = report.entries;
  json["violations"] = report.violations;
  json["log_start"] = report.log_start;
  json["degraded"] = Json::array();
  for (const auto& [what, why] : all_degradations(report)) {
    json["degraded"].push_back(Json{{"what", what}, {"why", why}});
  }
  json["counters"] = Json::object();
  for (const auto& counter : report.counters) json["counters"][counter.name] = counter.value;
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + '\n';
}

std::string to_prometheus(const StatusReport& report) {
  std::string out;
  const auto single = [&](std::string_view name, std::string_view help, std::uint64_t value) {
    Family(out, name, help).sample(value);
  };
  Family(out, "imafs_build_info", "The version of imafs; always 1.")
      .sample(std::uint64_t{1}, "version=\"" + label_value(report.version) + '"');
  Family(out, "imafs_start_time_seconds", "When the mount was made, seconds since the epoch.")
      .sample(report.started_at);
  single("imafs_log_entries", "Entries of the measurement log.", report.entries);
  single("imafs_violations_total", "Violations, also those whose entry could not be stored.",
         report.violations);
  if (report.policy) single("imafs_policy_rules", "Rules in force.", report.policy->rules.size());
  Family updates(out, "imafs_policy_updates_total", "Updates of the policy.");
  updates.sample(report.policy_updates_completed, "result=\"completed\"");
  updates.sample(report.policy_updates_failed, "result=\"failed\"");

  const TpmHealth& health = report.tpm.health;
  Family(out, "imafs_tpm_info", "The TPM in use; always 1.")
      .sample(std::uint64_t{1}, "kind=\"" + label_value(report.tpm.kind) + "\",description=\"" +
                                    label_value(report.tpm.description) + '"');
  single("imafs_tpm_ok", "Whether the last command to the TPM succeeded.", health.ok ? 1 : 0);
  single("imafs_foreign_extend", "Whether something else extended a PCR of the log.",
         health.foreign_extend ? 1 : 0);
  single("imafs_missing_extends", "Entries in the log that did not reach the PCR.",
         health.missing_extends);

  single("imafs_owed_violations", "Violations that are not in the PCR yet.", health.owed_violations);
  single("imafs_log_room_bytes", "Bytes allocated for entries to come.", report.room.bytes);
  const auto degraded = all_degradations(report);
  single("imafs_degraded", "How many promises are not kept in full; status says which.",
         degraded.size());
  if (!degraded.empty()) {
    Family reasons(out, "imafs_degraded_info", "What is degraded; always 1.");
    for (const auto& [what, why] : degraded)
      reasons.sample(std::uint64_t{1}, "what=\"" + label_value(what) + '"');
  }
  for (const auto& counter : report.counters) single(counter.name, counter.help, counter.value);
  return out;
}

}  // namespace imafs
