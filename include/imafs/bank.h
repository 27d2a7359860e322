// A bank: one hash algorithm's set of PCRs in a TPM, and the digest that an entry has in it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "imafs/digest.h"

namespace imafs {

struct Bank {
  std::uint16_t tpm_algorithm = 0;    // TPM_ALG_ID
  std::size_t size = 0;               // bytes of a PCR of this bank
  std::optional<HashAlgorithm> hash;  // nothing: imafs cannot compute it, entries get sha1 padded with zeros

  static Bank of(HashAlgorithm algorithm);  // REQUIRES: tpm_algorithm_of(algorithm)
  bool operator==(const Bank&) const = default;
};

// The suffix of the bank's file names: "sha256", or "tpm_alg_<hex>" where the kernel has no name for it.
std::string name_of(const Bank& bank);

// One PCR's value, or one template digest, in every bank of a list of banks: same order, same sizes.
using BankValues = std::vector<Bytes>;

}  // namespace imafs
