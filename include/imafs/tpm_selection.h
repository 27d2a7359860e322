// What --tpm SPEC means on this machine.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "imafs/pcr_extender.h"
#include "imafs/result.h"
#include "imafs/swtpm_process.h"

namespace imafs {

struct SelectedTpm {
  enum class Kind { kNone, kPrivateSwtpm, kGiven } kind = Kind::kNone;
  std::unique_ptr<SwtpmProcess> process;  // kPrivateSwtpm
  std::unique_ptr<PcrExtender> extender;  // null: kNone
  std::string tcti;                       // how others reach the same TPM; empty: kNone
  std::string reason;                     // one sentence: which, and why
};

// `spec`: auto, none, swtpm, device[:PATH], or a TCTI string. `auto` takes the machine's TPM if
// `pcr` is zero in all its banks or `is_ours` says that our journal fits; two logs must never feed
// one PCR. `directory`: for the private swtpm, which
// `run` starts.
// ENOENT: swtpm is not installed. Otherwise the sentence names the TPM that cannot be reached.
Result<SelectedTpm> select_tpm(const std::string& spec, std::uint32_t pcr, const std::string& directory,
                               const std::function<bool(PcrExtender&)>& is_ours, const RunProgram& run);

}  // namespace imafs
