// The policies in the program: the default one, which is conf/default.policy, and the kernel's own by the words of its
// ima_policy= parameter. Source: the rule tables of ima_policy.c (7.1), as restated in docs/POLICY.md.
#include <algorithm>
#include <array>
#include <iterator>

#include "imafs/check.h"
#include "imafs/policy_parser.h"

extern "C" {
extern const char imafs_default_policy[], imafs_default_policy_end[];
}

namespace imafs {
namespace {

constexpr const char* kDontMeasure =
    "dont_measure fsmagic=0x9fa0\n"                         // proc
    "dont_measure fsmagic=0x62656572\n"                     // sysfs
    "dont_measure fsmagic=0x64626720\n"                     // debugfs
    "dont_measure func=FILE_CHECK fsmagic=0x1021994\n"      // tmpfs
    "dont_measure fsmagic=0x1cd1\n"                         // devpts
    "dont_measure fsmagic=0x42494e4d\n"                     // binfmt_misc
    "dont_measure fsmagic=0x73636673\n"                     // securityfs
    "dont_measure fsmagic=0xf97cff8c\n"                     // selinuxfs
    "dont_measure fsmagic=0x43415d53\n"                     // smackfs
    "dont_measure fsmagic=0x27e0eb\n"                       // cgroup
    "dont_measure fsmagic=0x63677270\n"                     // cgroup2
    "dont_measure fsmagic=0x6e736673\n"                     // nsfs
    "dont_measure fsmagic=0xde5e81e4\n";                    // efivarfs

constexpr const char* kOriginalTcb =
    "measure func=MMAP_CHECK mask=MAY_EXEC\n"
    "measure func=BPRM_CHECK mask=MAY_EXEC\n"
    "measure func=FILE_CHECK mask=MAY_READ uid=0\n"
    "measure func=MODULE_CHECK\n"
    "measure func=FIRMWARE_CHECK\n";

constexpr const char* kTcb =
    "measure func=MMAP_CHECK mask=MAY_EXEC\n"
    "measure func=BPRM_CHECK mask=MAY_EXEC\n"
    "measure func=FILE_CHECK mask=^MAY_READ euid=0\n"
    "measure func=FILE_CHECK mask=^MAY_READ uid=0\n"
    "measure func=MODULE_CHECK\n"
    "measure func=FIRMWARE_CHECK\n"
    "measure func=POLICY_CHECK\n";

constexpr const char* kSecureBoot =
    "appraise func=MODULE_CHECK appraise_type=imasig|modsig\n"
    "appraise func=FIRMWARE_CHECK appraise_type=imasig\n"
    "appraise func=KEXEC_KERNEL_CHECK appraise_type=imasig\n"
    "appraise func=POLICY_CHECK appraise_type=imasig\n";

constexpr const char* kAppraiseTcb =
    "dont_appraise fsmagic=0x9fa0\n"
    "dont_appraise fsmagic=0x62656572\n"
    "dont_appraise fsmagic=0x64626720\n"
    "dont_appraise fsmagic=0x1021994\n"
    "dont_appraise fsmagic=0x858458f6\n"  // ramfs
    "dont_appraise fsmagic=0x1cd1\n"
    "dont_appraise fsmagic=0x42494e4d\n"
    "dont_appraise fsmagic=0x73636673\n"
    "dont_appraise fsmagic=0xf97cff8c\n"
    "dont_appraise fsmagic=0x43415d53\n"
    "dont_appraise fsmagic=0x6e736673\n"
    "dont_appraise fsmagic=0xde5e81e4\n"
    "dont_appraise fsmagic=0x27e0eb\n"
    "dont_appraise fsmagic=0x63677270\n"
    "appraise func=POLICY_CHECK appraise_type=imasig\n"
    "appraise fowner=0\n";

constexpr const char* kCriticalData = "measure func=CRITICAL_DATA\n";

constexpr std::array<std::string_view, 9> kWords{"default",      "none",             "tcb",         "ima_tcb",      "critical_data",
                                                 "appraise_tcb", "ima_appraise_tcb", "secure_boot", "fail_securely"};

std::string_view default_text() {
  return {imafs_default_policy, static_cast<std::size_t>(imafs_default_policy_end - imafs_default_policy)};
}

void add(Policy& policy, std::string_view rules, const std::string& origin) {
  ParseContext context;
  context.origin = origin;
  auto parsed = parse_policy(rules, context);
  IMAFS_CHECK(parsed);
  policy.rules.insert(policy.rules.end(), std::make_move_iterator(parsed->begin()), std::make_move_iterator(parsed->end()));
}

// The kernel's rules stand in no file: a line number would say nothing.
void add_kernel_rules(Policy& policy, std::string_view rules, const std::string& origin) {
  const std::size_t first = policy.rules.size();
  add(policy, rules, origin);
  for (std::size_t i = first; i < policy.rules.size(); ++i) policy.rules[i].line = 0;
}

}  // namespace

Result<Policy> builtin_policy(std::string_view words) {
  Policy policy;
  std::vector<std::string_view> chosen;
  while (!words.empty()) {
    const std::size_t end = std::min(words.find_first_of("+| "), words.size());
    const std::string_view word = words.substr(0, end);
    words.remove_prefix(std::min(end + 1, words.size()));
    if (word.empty()) continue;
    if (std::find(kWords.begin(), kWords.end(), word) == kWords.end()) {
      return fail(EINVAL, "no built-in policy is named '" + std::string(word) +
                              "'; there are default, none, tcb, ima_tcb, critical_data, appraise_tcb, secure_boot, fail_securely");
    }
    chosen.push_back(word);
  }
  const auto has = [&](std::string_view word) { return std::find(chosen.begin(), chosen.end(), word) != chosen.end(); };
  if (has("default")) {
    add(policy, default_text(), "builtin:default");
    policy.is_builtin = false;  // a later load adds to it, as it does where a file overrides it
  }
  // Of the two measuring sets the first named wins.
  const auto tcb = std::find_if(chosen.begin(), chosen.end(), [](std::string_view word) { return word == "tcb" || word == "ima_tcb"; });
  if (tcb != chosen.end()) {
    const std::string origin = "builtin:" + std::string(*tcb);
    add_kernel_rules(policy, kDontMeasure, origin);
    add_kernel_rules(policy, *tcb == "tcb" ? kTcb : kOriginalTcb, origin);
  }
  if (has("secure_boot")) add_kernel_rules(policy, kSecureBoot, "builtin:secure_boot");
  if (has("appraise_tcb") || has("ima_appraise_tcb")) add_kernel_rules(policy, kAppraiseTcb, "builtin:appraise_tcb");
  if (has("critical_data")) add_kernel_rules(policy, kCriticalData, "builtin:critical_data");
  return policy;
}

}  // namespace imafs
