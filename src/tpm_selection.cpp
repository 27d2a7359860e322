#include "imafs/tpm_selection.h"

#include <unistd.h>

#include <algorithm>

#include "imafs/pcr_value.h"
#include "imafs/tpm_connection.h"

namespace imafs {
namespace {

constexpr const char* kDevice = "/dev/tpmrm0";

Result<SelectedTpm> open_given(const std::string& tcti, std::string reason) {
  auto extender = open_pcr_extender(tcti);
  if (!extender) return fail(extender.error());
  SelectedTpm selected;
  selected.kind = SelectedTpm::Kind::kGiven;
  selected.extender = std::move(*extender);
  selected.tcti = tcti;
  selected.reason = std::move(reason);
  return selected;
}

Result<SelectedTpm> open_private(const std::string& directory, const RunProgram& run, std::string reason) {
  auto process = SwtpmProcess::find_or_start(directory, run);
  if (!process) return fail(process.error());
  auto extender = open_pcr_extender((*process)->tcti(), kTpmTimeLimit, [swtpm = process->get()](bool has_failed) { return swtpm->revive(has_failed); });
  if (!extender) {
    if (!(*process)->was_running()) (*process)->stop();
    return fail(extender.error());
  }
  SelectedTpm selected;
  selected.kind = SelectedTpm::Kind::kPrivateSwtpm;
  selected.tcti = (*process)->tcti();
  selected.process = std::move(*process);
  selected.extender = std::move(*extender);
  selected.reason = std::move(reason);
  return selected;
}

Result<SelectedTpm> open_auto(std::uint32_t pcr, const std::string& directory,
                              const std::function<bool(PcrExtender&)>& is_ours, const RunProgram& run) {
  if (::access(kDevice, R_OK | W_OK) != 0) return open_private(directory, run, "a private swtpm: this machine has no TPM we may use");
  auto device = open_given(std::string("device:") + kDevice, "");
  if (!device) return open_private(directory, run, "a private swtpm: " + device.error().what);
  PcrExtender& tpm = *device->extender;
  const auto value = tpm.read(pcr);
  if (value && *value == pcr_reset_values(tpm.banks(), pcr)) {
    device->reason = "the machine's TPM: its PCR " + std::to_string(pcr) + " is free";
    return device;
  }
  if (value && is_ours(tpm)) {
    device->reason = "the machine's TPM: its PCR " + std::to_string(pcr) + " holds our log";
    return device;
  }
  return open_private(directory, run, "a private swtpm: PCR " + std::to_string(pcr) + " of the machine's TPM is in use by another log");
}

}  // namespace

Result<SelectedTpm> select_tpm(const std::string& spec, std::uint32_t pcr, const std::string& directory,
                               const std::function<bool(PcrExtender&)>& is_ours, const RunProgram& run) {
  if (spec == "none") {
    SelectedTpm none;
    none.reason = "no TPM: the log alone";
    return none;
  }
  if (spec == "auto") return open_auto(pcr, directory, is_ours, run);
  if (spec == "swtpm") return open_private(directory, run, "a private swtpm, as asked for");
  if (spec == "device") return open_given(std::string("device:") + kDevice, "the machine's TPM, as asked for");
  return open_given(spec, "the TPM at " + spec + ", as asked for");
}

}  // namespace imafs
