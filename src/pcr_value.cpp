#include "imafs/pcr_value.h"

#include "imafs/pcr_extender.h"

namespace imafs {

Bytes pcr_reset_value(const Bank& bank, std::uint32_t pcr) {
  return Bytes(bank.size, pcr >= 17 && pcr <= 22 ? 0xff : 0x00);
}

BankValues pcr_reset_values(const std::vector<Bank>& banks, std::uint32_t pcr) {
  BankValues values;
  for (const Bank& bank : banks) values.push_back(pcr_reset_value(bank, pcr));
  return values;
}

void extend_pcr(const std::vector<Bank>& banks, BankValues& value, const BankValues& extended) {
  Bytes joined;
  for (std::size_t i = 0; i < banks.size(); ++i) {
    if (!banks[i].hash) continue;
    joined = value[i];
    append(joined, extended[i]);
    const Digest digest = hash_of(*banks[i].hash, joined);
    value[i].assign(digest.bytes().begin(), digest.bytes().end());
  }
}

bool same_values(const std::vector<Bank>& banks, const BankValues& one, const BankValues& other) {
  if (one.size() != banks.size() || other.size() != banks.size()) return false;
  for (std::size_t i = 0; i < banks.size(); ++i) {
    if (banks[i].hash && one[i] != other[i]) return false;
  }
  return true;
}

Result<Digest> boot_aggregate(PcrExtender* tpm, HashAlgorithm file_hash) {
  if (!tpm) return Digest::zero(file_hash);
  const std::vector<Bank>& banks = tpm->banks();
  std::optional<std::size_t> chosen;
  for (const HashAlgorithm wanted : {HashAlgorithm::kSha1, HashAlgorithm::kSha256, file_hash}) {
    for (std::size_t i = 0; i < banks.size(); ++i) {
      if (banks[i].hash == wanted) chosen = i;
    }
  }
  if (!chosen) return Digest::zero(file_hash);
  const HashAlgorithm algorithm = *banks[*chosen].hash;
  const std::uint32_t end = algorithm == HashAlgorithm::kSha1 ? 8 : 10;
  Hasher hasher(algorithm);
  for (std::uint32_t pcr = 0; pcr < end; ++pcr) {
    const auto values = tpm->read(pcr);
    if (!values) return fail(values.error());
    hasher.update((*values)[*chosen]);
  }
  return hasher.finish();
}

}  // namespace imafs
