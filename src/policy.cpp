#include "imafs/policy.h"

#include <algorithm>
#include <array>

namespace imafs {
namespace {

constexpr std::array<std::string_view, 15> kHookNames{
    "",           "FILE_CHECK",     "MMAP_CHECK",         "MMAP_CHECK_REQPROT",    "BPRM_CHECK",
    "CREDS_CHECK", "MODULE_CHECK",  "FIRMWARE_CHECK",     "KEXEC_KERNEL_CHECK",    "KEXEC_INITRAMFS_CHECK",
    "POLICY_CHECK", "KEXEC_CMDLINE", "KEY_CHECK",         "CRITICAL_DATA",         "SETXATTR_CHECK"};

constexpr std::array<std::string_view, 8> kActionNames{"measure", "dont_measure", "appraise", "dont_appraise",
                                                       "audit",   "dont_audit",   "hash",     "dont_hash"};

}  // namespace

std::string_view name_of(Hook hook) { return kHookNames[static_cast<std::size_t>(hook)]; }
std::string_view name_of(Action action) { return kActionNames[static_cast<std::size_t>(action)]; }

bool can_fire(Hook hook) {
  switch (hook) {
    case Hook::kModuleCheck:
    case Hook::kFirmwareCheck:
    case Hook::kKexecKernelCheck:
    case Hook::kKexecInitramfsCheck:
    case Hook::kKexecCmdline:
    case Hook::kKeyCheck:
    case Hook::kSetxattrCheck: return false;
    default: return true;
  }
}

bool IdCondition::holds(std::uint32_t id) const {
  switch (op) {
    case IdOperator::kGreater: return id > value;
    case IdOperator::kLess: return id < value;
    default: return id == value;
  }
}

bool Policy::has_action(Action action) const {
  return std::any_of(rules.begin(), rules.end(), [&](const Rule& rule) { return rule.action == action; });
}

bool Policy::has_path_rules() const {
  return std::any_of(rules.begin(), rules.end(), [](const Rule& rule) { return !rule.paths.empty(); });
}

}  // namespace imafs
