#include "imafs/policy_matcher.h"

#include <algorithm>
#include <utility>

namespace imafs {
namespace {

bool is_dont(Action action) { return static_cast<unsigned>(action) % 2 == 1; }

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

bool matches(const Rule& rule, const Event& event) {
  if (event.hook == Hook::kCriticalData || event.hook == Hook::kKeyCheck) return matches_data(rule, event);
  if (rule.hook != Hook::kNone && rule.hook != event.hook) return false;
  if (rule.mask) {
    const bool fits = rule.mask_contains ? (event.mask & *rule.mask) != 0 : event.mask == *rule.mask;
    if (!fits) return false;
  }
  if (rule.fowner && !rule.fowner->holds(event.fowner)) return false;
  if (rule.fgroup && !rule.fgroup->holds(event.fgroup)) return false;
  // No LSM labels reach a file system: like the kernel without an LSM, such a rule never matches.
  for (const auto& label : rule.lsm) {
    if (label) return false;
  }
  if (!matches_ids(rule, event) || !matches_file_system(rule, event)) return false;
  if (rule.paths.empty()) return true;
  const std::string_view path = event.source->path();
  return std::any_of(rule.paths.begin(), rule.paths.end(), [&](const std::string& glob) { return glob_matches(glob, path); });
}

}  // namespace

namespace {

// Lets `rule` decide its class, if that is open and the rule matches.
void consider(const Rule& rule, const Event& event, Decision& decision) {
  const Rule** slot = nullptr;
  switch (rule.action) {
    case Action::kMeasure:
    case Action::kDontMeasure: slot = &decision.measure; break;
    case Action::kAppraise:
    case Action::kDontAppraise: slot = &decision.appraise; break;
    case Action::kAudit:
    case Action::kDontAudit: slot = &decision.audit; break;
    default: slot = &decision.hash; break;
  }
  if (*slot || (slot == &decision.hash && decision.hash_taken_back) || !matches(rule, event)) return;
  *slot = &rule;
  // Appraisal writes the hash itself; a hash rule met before it is off. One that comes later is not.
  if (rule.action == Action::kAppraise) decision.hash_taken_back = std::exchange(decision.hash, nullptr) != nullptr;
}

constexpr std::uint32_t kEverybody = 0xffffffff;
constexpr std::size_t kBlock = 64;

std::pair<std::uint32_t, std::uint32_t> range_of(const std::optional<IdCondition>& condition) {
  if (!condition) return {0, kEverybody};
  switch (condition->op) {
    case IdOperator::kGreater: return {condition->value == kEverybody ? kEverybody : condition->value + 1, kEverybody};
    // "Below 0" is nobody, which a range cannot say: the full look decides.
    case IdOperator::kLess: return {0, condition->value == 0 ? 0 : condition->value - 1};
    default: return {condition->value, condition->value};
  }
}

// Four bytes of `text` from `at`, zeros behind its end.
std::uint32_t word_of(std::string_view text, std::size_t at) {
  std::uint32_t word = 0;
  for (std::size_t i = 0; i < 4 && at + i < text.size(); ++i) word |= std::uint32_t{static_cast<std::uint8_t>(text[at + i])} << (8 * i);
  return word;
}

}  // namespace

Decision match(const Policy& policy, const Event& event) {
  Decision decision;
  for (const Rule& rule : policy.rules) consider(rule, event, decision);
  return decision;
}

CompiledPolicy::CompiledPolicy(Policy policy) : policy_(std::move(policy)) {
  for (std::uint32_t i = 0; i < policy_.rules.size(); ++i) {
    const Rule& rule = policy_.rules[i];
    for (std::size_t hook = 1; hook < by_hook_.size(); ++hook) {
      if (rule.hook == Hook::kNone || rule.hook == static_cast<Hook>(hook)) add(by_hook_[hook], i);
    }
  }
}

void CompiledPolicy::add(Columns& columns, std::uint32_t index) {
  const Rule& rule = policy_.rules[index];
  columns.rule.push_back(index);
  const auto uid = range_of(rule.uid_is_euid ? std::nullopt : rule.uid);
  columns.uid_low.push_back(uid.first);
  columns.uid_high.push_back(uid.second);
  const auto owner = range_of(rule.fowner);
  columns.owner_low.push_back(owner.first);
  columns.owner_high.push_back(owner.second);
  std::uint32_t masks = 0;
  for (unsigned mask = 0; mask < 16; ++mask) {
    const bool fits = !rule.mask || (rule.mask_contains ? (mask & *rule.mask) != 0 : mask == *rule.mask);
    masks |= std::uint32_t{fits} << mask;
  }
  columns.masks.push_back(masks);
  // What all globs of the rule begin with, up to eight bytes.
  std::string_view common = rule.paths.empty() ? std::string_view() : std::string_view(rule.paths[0]);
  for (const std::string& glob : rule.paths) {
    const auto end = std::mismatch(common.begin(), common.end(), glob.begin(), glob.end()).first;
    common = common.substr(0, static_cast<std::size_t>(end - common.begin()));
  }
  common = common.substr(0, common.find_first_of("*?"));
  for (std::size_t half = 0; half < 2; ++half) {
    const std::size_t known = common.size() > 4 * half ? std::min<std::size_t>(4, common.size() - 4 * half) : 0;
    columns.path_bits[half].push_back(known == 4 ? 0xffffffff : (std::uint32_t{1} << (8 * known)) - 1);
    columns.path_value[half].push_back(word_of(common, 4 * half) & columns.path_bits[half].back());
  }
  columns.asks_for_path |= !rule.paths.empty();
}

Decision CompiledPolicy::match(const Event& event) const {
  Decision decision;
  const Columns& columns = by_hook_[static_cast<std::size_t>(event.hook)];
  const std::size_t count = columns.rule.size();
  const unsigned mask = event.mask & 0xf;
  std::uint32_t first = 0, second = 0;
  if (columns.asks_for_path && event.source) {
    const std::string_view path = event.source->path();
    first = word_of(path, 0);
    second = word_of(path, 4);
  }
  std::array<std::uint32_t, kBlock> fits;
  for (std::size_t start = 0; start < count; start += kBlock) {
    const std::size_t size = std::min(kBlock, count - start);
    std::uint32_t any = 0;
    for (std::size_t i = 0; i < size; ++i) {
      const std::size_t at = start + i;
      const std::uint32_t ids = (event.uid >= columns.uid_low[at]) & (event.uid <= columns.uid_high[at]) &
                                (event.fowner >= columns.owner_low[at]) & (event.fowner <= columns.owner_high[at]);
      fits[i] = columns.masks[at] >> mask & ids;
      any |= fits[i];
    }
    if (any != 0 && columns.asks_for_path) {
      any = 0;
      for (std::size_t i = 0; i < size; ++i) {
        const std::size_t at = start + i;
        fits[i] &= ((first & columns.path_bits[0][at]) == columns.path_value[0][at]) &
                   ((second & columns.path_bits[1][at]) == columns.path_value[1][at]);
        any |= fits[i];
      }
    }
    if (any == 0) continue;
    for (std::size_t i = 0; i < size; ++i) {
      if (fits[i] != 0) consider(policy_.rules[columns.rule[start + i]], event, decision);
    }
  }
  return decision;
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
