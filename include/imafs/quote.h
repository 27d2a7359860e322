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
  Bytes ak_public;     // the same as the TPM has it, with its attributes: TPM2B_PUBLIC
  // As read right before: those that do not move while files are measured can be relied on.
  std::map<std::uint32_t, Bytes> pcrs;
};

// Quotes `pcrs` of `bank` with the key at `ak_handle`, or, if that is 0, with imafs's attestation key: the TPM's own
// default ECC P-256 restricted signing primary key of the owner hierarchy, which is the same each time and is flushed
// afterwards. EIO: the TPM says no. EPERM: the key at `ak_handle` is no attestation key (see KeyFacts). `nonce`: at most 64 bytes.
Result<SignedQuote> take_quote(const std::string& tcti, std::uint32_t ak_handle, ByteView nonce, HashAlgorithm bank,
                               const std::vector<std::uint32_t>& pcrs);

// The public part of the key that take_quote() would use, TPM2B_PUBLIC; errors as there.
Result<Bytes> attestation_key_of(const std::string& tcti, std::uint32_t ak_handle);

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

// Whether `pem` is what check_signature() takes as a key.
bool is_public_key(const std::string& pem);
// Checks `signature` over `attest` by that key, and returns the hash it was made with. EBADMSG: it is not that key's, or key or
// signature are malformed.
Result<HashAlgorithm> check_signature(ByteView attest, ByteView signature, const std::string& ak_pem);
// SHA-256 of the SubjectPublicKeyInfo, in hexadecimal; empty: no public key.
std::string fingerprint_of(const std::string& ak_pem);

// What a TPM2B_PUBLIC says of a key.
struct KeyFacts {
  std::string pem;
  Bytes name;           // the key's Name: two bytes of nameAlg, then the hash over everything here but `pem`
  bool can_attest_alone = false;  // restricted, fixedTPM, fixedParent, sensitiveDataOrigin, for signing only: what it signed as a
                                  // quote was made by the TPM that has it, and by nothing else
};
// EBADMSG: no TPM2B_PUBLIC. ENOTSUP: of a kind that cannot sign quotes we can check.
Result<KeyFacts> read_public(ByteView tpm2b_public);

}  // namespace imafs
