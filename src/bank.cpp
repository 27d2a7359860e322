#include "imafs/bank.h"

#include <array>
#include <cstdio>

#include "imafs/check.h"

namespace imafs {

Bank Bank::of(HashAlgorithm algorithm) {
  const auto tpm = tpm_algorithm_of(algorithm);
  IMAFS_CHECK(tpm);
  Bank bank{*tpm, digest_size(algorithm), std::nullopt};
  if (can_compute(algorithm)) bank.hash = algorithm;
  return bank;
}

std::string name_of(const Bank& bank) {
  if (bank.hash) return std::string(name_of(*bank.hash));
  std::array<char, 24> text{};
  std::snprintf(text.data(), text.size(), "tpm_alg_%x", bank.tpm_algorithm);
  return text.data();
}

}  // namespace imafs
