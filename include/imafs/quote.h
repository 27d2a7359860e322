// TPM2_Quote: a TPM's signature over PCRs and a nonce; taking one, and checking one where there is no TPM.
//
// Structures are the TPM 2.0 library's (part 2): `attest` is a TPMS_ATTEST, `signature` a TPMT_SIGNATURE, as
// tpm2_quote writes and tpm2_checkquote reads them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "imafs/bank.h"
#include "imafs/bytes.h"
#include "imafs/result.h"

namespace imafs {

struct SignedQuote {
  Bytes attest;
  Bytes signature;
  std::string ak_pem;  // the public part of the key that signed, SubjectPublicKeyInfo
  // As read right before: those that do not move while files are measured can be relied on.
  std::map<std::uint32_t, Bytes> pcrs;
};

// Quotes `pcrs` of `bank` with the key at `ak_handle`, or, if that is 0, with imafs's attestation key: the TPM's own
// default ECC P-256 restricted signing primary key of the owner hierarchy, which is the same each time and is flushed
// afterwards. EIO: the TPM says no. `nonce`: at most 64 bytes.
Result<SignedQuote> take_quote(const std::string& tcti, std::uint32_t ak_handle, ByteView nonce, HashAlgorithm bank,
                               const std::vector<std::uint32_t>& pcrs);

// PCR values as tpm2-tools keeps them in a file, for `tpm2_checkquote -f` (its "serialized" form).
Bytes tpm2_tools_pcrs(HashAlgorithm bank, const std::map<std::uint32_t, Bytes>& values);

struct QuoteContents {
  Bytes nonce;
  HashAlgorithm bank = HashAlgorithm::kSha256;
  std::vector<std::uint32_t> pcrs;       // in order
  HashAlgorithm digest_algorithm = HashAlgorithm::kSha256;
  Bytes pcr_digest;                      // over the values of `pcrs`, in order
  std::uint32_t reset_count = 0, restart_count = 0;
  std::uint64_t clock_ms = 0;
};

// What a TPMS_ATTEST says. EBADMSG: it is cut short, not from a TPM, no quote, or of more than one bank.
Result<QuoteContents> read_quote(ByteView attest);
// Whether `signature` over `attest` is the key's: EBADMSG if not, or if key or signature are malformed.
// Whether it is what check_signature() takes as `ak_pem`.
bool is_public_key(const std::string& pem);
Status check_signature(ByteView attest, ByteView signature, const std::string& ak_pem);

}  // namespace imafs
