// PCR arithmetic: what a TPM does with an extend, computed here to replay a log.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "imafs/bank.h"

namespace imafs {

// A PCR of a bank after a reset: zeros (PCR 17 to 22: 0xff).
Bytes pcr_reset_value(const Bank& bank, std::uint32_t pcr);
BankValues pcr_reset_values(const std::vector<Bank>& banks, std::uint32_t pcr);

// H(value || extended) in each bank whose algorithm can be computed; other banks keep their value
// and are not to be compared.
void extend_pcr(const std::vector<Bank>& banks, BankValues& value, const BankValues& extended);

// Whether two values of a PCR are equal in each bank whose algorithm can be computed.
bool same_values(const std::vector<Bank>& banks, const BankValues& one, const BankValues& other);

// boot_aggregate as the kernel computes it: the bank of `file_hash` if there is one, else sha256,
// else sha1; hash over PCR 0-7, and 8-9 unless the bank is sha1. `read` yields PCR values, one for
// each bank. No such bank: zeros in the length of file_hash.
class PcrExtender;
Result<Digest> boot_aggregate(PcrExtender* tpm, HashAlgorithm file_hash);

}  // namespace imafs
