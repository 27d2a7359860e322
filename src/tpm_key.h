// Public keys and signatures of a TPM in OpenSSL's terms. Thread-safe.
#pragma once

#include <tss2/tss2_tpm2_types.h>

#include <string>

#include "imafs/bytes.h"
#include "imafs/result.h"

namespace imafs {

// PEM, SubjectPublicKeyInfo. ENOTSUP: neither RSA nor an ECC key on a NIST curve.
Result<std::string> pem_of(const TPM2B_PUBLIC& key);
// As the TPM sends it.
Result<Bytes> marshalled(const TPM2B_PUBLIC& key);

}  // namespace imafs
