// Which rules a mount has when nobody names any.
#pragma once

#include <string>

#include "imafs/result.h"

namespace imafs {

// An administrator's own default policy, for every mount of the machine. One place, wherever the program lies.
inline constexpr const char* kDefaultPolicyFile = "/etc/imafs/default.policy";

// The policy in force without --policy, as --policy would name it: kDefaultPolicyFile if there is one, else
// "builtin:default". A file that is there but cannot be looked at, or is no regular file, is an error: the rules that
// somebody wrote are never replaced silently. What it says is for the caller to read and to judge. Thread-safe.
Result<std::string> default_policy_source();

}  // namespace imafs
