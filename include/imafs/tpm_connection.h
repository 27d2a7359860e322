// The PCRs of a real TPM or a swtpm, through tpm2-tss.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "imafs/pcr_extender.h"
#include "imafs/result.h"

namespace imafs {

inline constexpr std::chrono::milliseconds kTpmTimeLimit{10'000};

// `tcti` as tpm2-tss writes it: "device:/dev/tpmrm0", "swtpm:path=/run/x.sock", "swtpm:host=...,port=...".
// A command that takes longer than `time_limit` is ETIMEDOUT, and the connection then lost until
// reconnect(). A swtpm serves one connection at a time, so ours is given up when idle and at least
// every 50 ms: other tools get their turn.
Result<std::unique_ptr<PcrExtender>> open_pcr_extender(const std::string& tcti,
                                                       std::chrono::milliseconds time_limit = kTpmTimeLimit);

}  // namespace imafs
