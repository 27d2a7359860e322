#include "imafs/policy_matcher.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "imafs/lsm_labels.h"
#include "policy_index.h"

namespace imafs {
namespace {

bool is_dont(Action action) { return static_cast<unsigned>(action) % 2 == 1; }
std::size_t class_of(Action action) { return static_cast<std::size_t>(action) / 2; }  // measure, appraise, audit, hash

bool lists(const std::vector<std::string>& items, std::string_view wanted) {
  return items.empty() || std::find(items.begin(), items.end(), wanted) != items.end();
}

// An event of data without a file: only the hook, uid and the list are looked at (as in the kernel,
// where gid= parses for these hooks and is not applied).
bool matches_data(const Rule& rule, const Event& event) {
  if (rule.hook != event.hook) return false;
  if (rule.uid && !rule.uid->holds(event.uid)) return false;
  return lists(event.hook == Hook::kKeyCheck ? rule.keyrings : rule.labels, event.label);
}

bool effective_holds(const IdCondition& condition, bool may_change, std::uint32_t effective, std::uint32_t saved,
                     std::uint32_t real) {
  if (condition.holds(effective)) return true;
  return may_change && (condition.holds(saved) || condition.holds(real));
}

bool matches_ids(const Rule& rule, const Event& event) {
  if (rule.uid && !rule.uid_is_euid && !rule.uid->holds(event.uid)) return false;
  if (rule.gid && !rule.gid_is_egid && !rule.gid->holds(event.gid)) return false;
  if (!(rule.uid && rule.uid_is_euid) && !(rule.gid && rule.gid_is_egid)) return true;
  const auto ids = event.source->credentials();
  // The requester is gone. Measuring too much is safe; leaving out is not.
  if (!ids) return !is_dont(rule.action);
  if (rule.uid && rule.uid_is_euid && !effective_holds(*rule.uid, ids->can_setuid, ids->euid, ids->suid, ids->uid)) return false;
  return !(rule.gid && rule.gid_is_egid) ||
         effective_holds(*rule.gid, ids->can_setgid, ids->egid, ids->sgid, ids->gid);
}

bool matches_file_system(const Rule& rule, const Event& event) {
  if (!rule.fsmagic && !rule.fsname && !rule.fs_subtype && !rule.fsuuid) return true;
  const auto& system = event.source->file_system();
  if (rule.fsmagic && *rule.fsmagic != system.magic) return false;
  if (rule.fsname && *rule.fsname != system.name) return false;
  if (rule.fs_subtype && (system.subtype.empty() || *rule.fs_subtype != system.subtype)) return false;
  return !rule.fsuuid || rule.fsuuid == system.uuid;
}

bool matches_labels(const Rule& rule, const Event& event) {
  constexpr std::size_t parts = 3;  // user, role, type: of the object, then of the subject
  for (std::size_t i = 0; i < rule.lsm.size(); ++i) {
    if (!rule.lsm[i]) continue;
    if (!rule.lsm_is_known) return false;
    const std::string label = i < parts ? event.source->object_label() : event.source->subject_label();
    // The requester is gone: as with its credentials.
    if (label.empty() && i >= parts && !is_dont(rule.action)) continue;
    if (part_of_label(label, i % parts) != *rule.lsm[i]) return false;
  }
  return true;
}

bool matches(const Rule& rule, const Event& event) {
  if (event.hook == Hook::kCriticalData || event.hook == Hook::kKeyCheck) return matches_data(rule, event);
  if (rule.hook != Hook::kNone && rule.hook != event.hook) return false;
  if (rule.mask) {
    const bool fits = rule.mask_contains ? (event.mask & *rule.mask) != 0 : event.mask == *rule.mask;
    if (!fits) return false;
  }
  if (rule.fowner && !rule.fowner->holds(event.fowner)) return false;
  if (rule.fgroup && !rule.fgroup->holds(event.fgroup)) return false;
  if (!matches_ids(rule, event) || !matches_file_system(rule, event) || !matches_labels(rule, event)) return false;
  if (rule.paths.empty()) return true;
  const EventSource::Names& names = event.source->names();
  if (!names.is_complete) return !is_dont(rule.action);
  const auto fits = [&](const std::string& path) {
    return std::any_of(rule.paths.begin(), rule.paths.end(), [&](const std::string& glob) { return glob_matches(glob, path); });
  };
  return is_dont(rule.action) ? std::all_of(names.paths.begin(), names.paths.end(), fits) : std::any_of(names.paths.begin(), names.paths.end(), fits);
}

// Lets `rule` decide its class, if that is open and the rule matches.
void consider(const Rule& rule, const Event& event, Decision& decision) {
  const std::array<const Rule**, 4> slots{&decision.measure, &decision.appraise, &decision.audit, &decision.hash};
  const Rule** const slot = slots[class_of(rule.action)];
  if (*slot || (slot == &decision.hash && decision.hash_taken_back) || !matches(rule, event)) return;
  *slot = &rule;
  // Appraisal writes the hash itself; a hash rule met before it is off. One that comes later is not.
  if (rule.action == Action::kAppraise) decision.hash_taken_back = std::exchange(decision.hash, nullptr) != nullptr;
}

}  // namespace

Decision match(const Policy& policy, const Event& event) {
  Decision decision;
  for (const Rule& rule : policy.rules) consider(rule, event, decision);
  return decision;
}

CompiledPolicy::CompiledPolicy(Policy policy)
    : policy_(std::move(policy)), index_(std::make_shared<const PolicyIndex>(policy_.rules)) {
  for (const Rule& rule : policy_.rules) has_class_[class_of(rule.action)] = true;
}

Decision CompiledPolicy::match(const Event& event) const {
  Decision decision;
  const RuleBits& candidates = index_->candidates(event);
  for (std::size_t word = 0; word < candidates.size(); ++word) {
    for (std::uint64_t left = candidates[word]; left != 0; left &= left - 1) {
      const std::size_t number = word * 64 + static_cast<std::size_t>(std::countr_zero(left));
      if (number >= policy_.rules.size()) return decision;
      consider(policy_.rules[number], event, decision);
      if (is_decided(decision)) return decision;
    }
  }
  return decision;
}

// Whether no rule can add anything: each class that has rules is closed.
bool CompiledPolicy::is_decided(const Decision& decision) const {
  return (decision.measure || !has_class_[0]) && (decision.appraise || !has_class_[1]) && (decision.audit || !has_class_[2]) &&
         (decision.hash || decision.hash_taken_back || !has_class_[3]);
}

bool glob_matches(std::string_view glob, std::string_view path) {
  // The classic two-pointer walk, with one place to go back to for '*' and one for '**'.
  std::size_t g = 0, p = 0;
  std::size_t star = std::string_view::npos, star_path = 0;
  std::size_t deep = std::string_view::npos, deep_path = 0;
  while (p < path.size()) {
    if (g + 1 < glob.size() && glob[g] == '*' && glob[g + 1] == '*') {
      g += 2;
      deep = g;
      deep_path = p;
      star = std::string_view::npos;
    } else if (g < glob.size() && glob[g] == '*') {
      star = ++g;
      star_path = p;
    } else if (g < glob.size() && (glob[g] == path[p] || (glob[g] == '?' && path[p] != '/'))) {
      ++g;
      ++p;
    } else if (star != std::string_view::npos && path[star_path] != '/') {
      p = ++star_path;
      g = star;
    } else if (deep != std::string_view::npos) {
      p = ++deep_path;
      g = deep;
      star = std::string_view::npos;
    } else {
      return false;
    }
  }
  while (g < glob.size() && glob[g] == '*') ++g;
  return g == glob.size();
}

}  // namespace imafs
