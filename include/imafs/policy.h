// A policy: the rules that say which events are measured. Passive data; immutable once loaded,
// shared by snapshot. Grammar and meaning are the kernel's (docs/POLICY.md), plus path=.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "imafs/digest.h"
#include "imafs/log_entry.h"

namespace imafs {

enum class Hook : std::uint8_t {
  kNone,  // a rule without func=
  kFileCheck, kMmapCheck, kMmapCheckReqprot, kBprmCheck, kCredsCheck,
  kModuleCheck, kFirmwareCheck, kKexecKernelCheck, kKexecInitramfsCheck, kPolicyCheck,
  kKexecCmdline, kKeyCheck, kCriticalData, kSetxattrCheck,
};
std::string_view name_of(Hook hook);  // "FILE_CHECK"
// Whether an event of this hook can reach imafs. Rules for the others load, print and never fire.
bool can_fire(Hook hook);

// Bits of an event's mask.
inline constexpr unsigned kMayExec = 1;
inline constexpr unsigned kMayWrite = 2;
inline constexpr unsigned kMayRead = 4;
inline constexpr unsigned kMayAppend = 8;

enum class Action : std::uint8_t {
  kMeasure, kDontMeasure, kAppraise, kDontAppraise, kAudit, kDontAudit, kHash, kDontHash,
};
std::string_view name_of(Action action);

enum class IdOperator : char { kEqual = '=', kGreater = '>', kLess = '<' };
// The conditions on LSM labels, in the order of Rule::lsm.
inline constexpr std::array<std::string_view, 6> kLsmKeys{"obj_user",  "obj_role",  "obj_type",
                                                          "subj_user", "subj_role", "subj_type"};

struct IdCondition {
  IdOperator op = IdOperator::kEqual;
  std::uint32_t value = 0;
  bool holds(std::uint32_t id) const;
};

struct Rule {
  Action action = Action::kMeasure;
  Hook hook = Hook::kNone;
  std::optional<unsigned> mask;  // with mask_contains: any bit test, else equality
  bool mask_contains = false;
  std::optional<std::uint64_t> fsmagic;
  std::optional<std::string> fsname;
  std::optional<std::string> fs_subtype;
  std::optional<std::array<std::uint8_t, 16>> fsuuid;
  std::optional<IdCondition> uid, gid, fowner, fgroup;
  bool uid_is_euid = false;  // euid= instead of uid=
  bool gid_is_egid = false;
  std::vector<std::string> keyrings, labels;
  // LSM conditions, in the order of kLsmKeys.
  std::array<std::optional<std::string>, 6> lsm;
  bool lsm_is_known = false;  // the labels are an LSM's that runs here; else the rule never matches
  std::vector<std::string> paths;  // IMA: path=GLOB, imafs's own condition; repeats mean "any of"

  std::optional<std::uint32_t> pcr;
  const Template* form = nullptr;  // template=; a built-in, or the mount's custom one (lives as long as the policy's owner)
  bool digest_is_verity = false;
  enum class Signature : std::uint8_t { kNone, kImasig, kImasigOrModsig, kSigV3 } signature = Signature::kNone;
  std::uint32_t appraise_algos = 0;  // bit n: HashAlgorithm n
  bool permit_directio = false;

  // Where the rule was written, for messages and `explain`.
  std::string origin;  // "/etc/imafs/default.policy", "builtin:default", ".ima/policy"
  unsigned line = 0;   // 1-based; 0: not from a file
};

struct Policy {
  std::vector<Rule> rules;
  bool is_builtin = true;  // the first custom load replaces the rules, later ones append

  bool has_action(Action action) const;
  bool has_path_rules() const;
};

}  // namespace imafs
