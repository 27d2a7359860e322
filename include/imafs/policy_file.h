// A policy file named by its path in a write to .ima/policy: read by the daemon from the machine's
// tree, and measured as the POLICY_CHECK event that this is.
//
// Thread-safe.
#pragma once

#include <string>

#include "imafs/measure_gate.h"
#include "imafs/result.h"

namespace imafs {

// The file's text; its entry stands before this returns, if a rule asks for one. EINVAL: not a
// regular file, or it changed meanwhile. EFBIG: more than 16 MiB.
Result<std::string> read_policy_file(MeasureGate& gate, const std::string& path,
                                     const Requester& requester);

}  // namespace imafs
