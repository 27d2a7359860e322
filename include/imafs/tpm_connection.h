// The PCRs of a real TPM or a swtpm, through tpm2-tss.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "imafs/pcr_extender.h"
#include "imafs/result.h"

namespace imafs {

inline constexpr std::chrono::milliseconds kTpmTimeLimit{10'000};

// `tcti` as tpm2-tss writes it: "device:/dev/tpmrm0", "swtpm:path=/run/x.sock", "swtpm:host=...,port=...".
// A command that takes longer than `time_limit` is ETIMEDOUT, and the connection then lost until
// reconnect(), which first calls `revive` if there is one: a TPM that is ours to start is started again, also
// one that answers that it has failed.
// A swtpm serves one connection at a time; its TCTI makes one for each command, so others get their turn.
Result<std::unique_ptr<PcrExtender>> open_pcr_extender(const std::string& tcti,
                                                       std::chrono::milliseconds time_limit = kTpmTimeLimit,
                                                       std::function<Status(bool has_failed)> revive = {});

}  // namespace imafs
