// One ESAPI connection, and what the ESAPI hands out. For the sources that speak to a TPM.
#pragma once

#include <tss2/tss2_esys.h>
#include <tss2/tss2_rc.h>
#include <tss2/tss2_tctildr.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>

#include "imafs/result.h"
#include "unix_tcti.h"

namespace imafs {

struct EsysFree {
  void operator()(void* memory) const { ::Esys_Free(memory); }
};
template <class T>
using EsysPtr = std::unique_ptr<T, EsysFree>;

inline tl::unexpected<Error> tpm_error(TSS2_RC code, const std::string& doing) {
  return fail(EIO, doing + ": " + ::Tss2_RC_Decode(code));
}

// The library would print every fault; ours are in the operator's messages, once. Before there are threads.
inline void quiet_tpm_library() { ::setenv("TSS2_LOG", "all+none", 0); }

class TpmContext {
 public:
  // `limit`: how long a command may take, if the way to the TPM can tell: keeps_limit().
  static Result<std::unique_ptr<TpmContext>> open(const std::string& tcti, std::chrono::milliseconds limit) {
    std::unique_ptr<TpmContext> context(new TpmContext);
    TSS2_RC code = TSS2_RC_SUCCESS;
    if (const auto path = UnixTcti::path_in(tcti)) {
      context->unix_ = std::make_unique<UnixTcti>(*path, limit);
      if (!context->unix_->can_connect()) code = TSS2_TCTI_RC_IO_ERROR;
    } else {
      code = ::Tss2_TctiLdr_Initialize(tcti.c_str(), &context->tcti_);
    }
    if (code != TSS2_RC_SUCCESS) return tpm_error(code, "no TPM answers at '" + tcti + "'");
    code = ::Esys_Initialize(&context->esys_, context->unix_ ? context->unix_->context() : context->tcti_, nullptr);
    if (code != TSS2_RC_SUCCESS) return tpm_error(code, "cannot speak to the TPM at '" + tcti + "'");
    return context;
  }
  ~TpmContext() {
    if (esys_) ::Esys_Finalize(&esys_);
    if (tcti_) ::Tss2_TctiLdr_Finalize(&tcti_);
  }
  TpmContext(const TpmContext&) = delete;
  TpmContext& operator=(const TpmContext&) = delete;

  static bool keeps_limit(const std::string& tcti) { return UnixTcti::path_in(tcti).has_value(); }
  bool timed_out() const { return unix_ && unix_->timed_out(); }
  ESYS_CONTEXT* esys() { return esys_; }

 private:
  TpmContext() = default;
  std::unique_ptr<UnixTcti> unix_;     // one of the two
  TSS2_TCTI_CONTEXT* tcti_ = nullptr;
  ESYS_CONTEXT* esys_ = nullptr;
};

// A place for the pointer that an ESAPI call gives back: Esys_X(..., Out(answer)).
template <class T>
class Out {
 public:
  explicit Out(EsysPtr<T>& owner) : owner_(owner) {}
  ~Out() { owner_.reset(raw_); }
  Out(const Out&) = delete;
  Out& operator=(const Out&) = delete;
  operator T**() { return &raw_; }

 private:
  EsysPtr<T>& owner_;
  T* raw_ = nullptr;
};

// The default ECC P-256 restricted primary key of a hierarchy, made from the TPM's own seed: the same each time. `use`:
// TPMA_OBJECT_DECRYPT, a storage key; TPMA_OBJECT_SIGN_ENCRYPT, one that signs with ECDSA and SHA-256.
inline TSS2_RC create_primary(ESYS_CONTEXT* esys, ESYS_TR hierarchy, TPMA_OBJECT use, ESYS_TR& key, EsysPtr<TPM2B_PUBLIC>& answer) {
  TPM2B_PUBLIC form {};
  TPMT_PUBLIC& area = form.publicArea;
  area.type = TPM2_ALG_ECC;
  area.nameAlg = TPM2_ALG_SHA256;
  area.objectAttributes = TPMA_OBJECT_FIXEDTPM | TPMA_OBJECT_FIXEDPARENT | TPMA_OBJECT_SENSITIVEDATAORIGIN |
                          TPMA_OBJECT_USERWITHAUTH | TPMA_OBJECT_RESTRICTED | use;
  TPMS_ECC_PARMS& ecc = area.parameters.eccDetail;
  ecc.curveID = TPM2_ECC_NIST_P256;
  ecc.kdf.scheme = TPM2_ALG_NULL;
  ecc.symmetric.algorithm = TPM2_ALG_NULL;
  ecc.scheme.scheme = TPM2_ALG_NULL;
  if (use == TPMA_OBJECT_DECRYPT) {
    ecc.symmetric.algorithm = TPM2_ALG_AES;
    ecc.symmetric.keyBits.aes = 128;
    ecc.symmetric.mode.aes = TPM2_ALG_CFB;
  } else {
    // It has no secret that could be guessed. Without this a TPM that was not shut down in order (a swtpm that was killed) counts
    // a failed try, and locks the key after a few.
    area.objectAttributes |= TPMA_OBJECT_NODA;
    ecc.scheme.scheme = TPM2_ALG_ECDSA;
    ecc.scheme.details.ecdsa.hashAlg = TPM2_ALG_SHA256;
  }
  const TPM2B_SENSITIVE_CREATE sensitive {};
  const TPM2B_DATA outside {};
  const TPML_PCR_SELECTION creation {};
  return ::Esys_CreatePrimary(esys, hierarchy, ESYS_TR_PASSWORD, ESYS_TR_NONE, ESYS_TR_NONE, &sensitive, &form, &outside, &creation,
                              &key, Out(answer), nullptr, nullptr, nullptr);
}

}  // namespace imafs
