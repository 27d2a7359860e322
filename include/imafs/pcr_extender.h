// The one seam that is abstract: whatever holds the PCRs.
//
// The real one speaks to a TPM through tpm2-tss (open_pcr_extender in tpm_connection.h); tests have
// one that fails at a chosen command.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "imafs/bank.h"
#include "imafs/result.h"

namespace imafs {

// TPM2_ReadClock's counters. A changed reset_count means that the PCRs started anew.
struct TpmClock {
  std::uint32_t reset_count = 0;
  std::uint32_t restart_count = 0;
  std::uint64_t clock_ms = 0;
  bool operator==(const TpmClock&) const = default;
};

// Thread-safe. Leaves no object in the TPM between two calls and keeps nobody out (on a unix socket: 20 ms at most).
class PcrExtender {
 public:
  virtual ~PcrExtender() = default;

  // The allocated banks; constant for the life of the extender.
  virtual const std::vector<Bank>& banks() const = 0;

  // One TPM2_PCR_Extend with one value for each bank, in banks() order.
  // On an error the command may or may not have taken effect (an answer can be lost): the caller
  // reads the PCR to learn it. ERANGE: the TPM has no such PCR. EIO: any other fault.
  virtual Status extend(std::uint32_t pcr, const BankValues& values) = 0;

  // One value for each bank, in banks() order. Never changes the TPM.
  virtual Result<BankValues> read(std::uint32_t pcr) = 0;

  virtual Result<TpmClock> clock() = 0;

  // Closes the connection and makes a new one, after a fault. The banks must still be the same.
  virtual Status reconnect() = 0;

  // The same TPM gives the same text for its whole life, through whatever path it is reached:
  // the lock against two logs in one PCR is named by it.
  virtual std::string identity() const = 0;
  // For people: "swtpm at /run/x.sock".
  virtual std::string description() const = 0;
};

}  // namespace imafs
