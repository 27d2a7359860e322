#include "tpm_key.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ecdsa.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/param_build.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <tss2/tss2_mu.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>

#include "imafs/quote.h"

namespace imafs {
namespace {

template <auto Free>
struct Freed {
  template <class T>
  void operator()(T* what) const { Free(what); }
};
using BioPtr = std::unique_ptr<BIO, Freed<::BIO_free_all>>;
using BnPtr = std::unique_ptr<BIGNUM, Freed<::BN_free>>;
using KeyPtr = std::unique_ptr<EVP_PKEY, Freed<::EVP_PKEY_free>>;
using KeyContextPtr = std::unique_ptr<EVP_PKEY_CTX, Freed<::EVP_PKEY_CTX_free>>;
using DigestContextPtr = std::unique_ptr<EVP_MD_CTX, Freed<::EVP_MD_CTX_free>>;
using BuilderPtr = std::unique_ptr<OSSL_PARAM_BLD, Freed<::OSSL_PARAM_BLD_free>>;
using ParamsPtr = std::unique_ptr<OSSL_PARAM, Freed<::OSSL_PARAM_free>>;
using EcdsaPtr = std::unique_ptr<ECDSA_SIG, Freed<::ECDSA_SIG_free>>;

constexpr std::size_t kMaxPem = 1 << 20;

KeyPtr key_of(const char* type, OSSL_PARAM_BLD* builder) {
  const ParamsPtr params(::OSSL_PARAM_BLD_to_param(builder));
  const KeyContextPtr context(::EVP_PKEY_CTX_new_from_name(nullptr, type, nullptr));
  EVP_PKEY* key = nullptr;
  if (!params || !context || ::EVP_PKEY_fromdata_init(context.get()) != 1 ||
      ::EVP_PKEY_fromdata(context.get(), &key, EVP_PKEY_PUBLIC_KEY, params.get()) != 1) {
    return nullptr;
  }
  return KeyPtr(key);
}

const char* group_of(TPM2_ECC_CURVE curve) {
  switch (curve) {
    case TPM2_ECC_NIST_P256: return "P-256";
    case TPM2_ECC_NIST_P384: return "P-384";
    case TPM2_ECC_NIST_P521: return "P-521";
    default: return nullptr;
  }
}

KeyPtr ecc_key(const TPMT_PUBLIC& area) {
  const char* const group = group_of(area.parameters.eccDetail.curveID);
  if (!group) return nullptr;
  const std::size_t size = area.parameters.eccDetail.curveID == TPM2_ECC_NIST_P256 ? 32 : area.parameters.eccDetail.curveID == TPM2_ECC_NIST_P384 ? 48 : 66;
  const TPMS_ECC_POINT& point = area.unique.ecc;
  if (point.x.size > size || point.y.size > size) return nullptr;
  Bytes uncompressed(1 + 2 * size);
  uncompressed[0] = 4;
  std::copy_n(point.x.buffer, point.x.size, uncompressed.begin() + static_cast<std::ptrdiff_t>(1 + size - point.x.size));
  std::copy_n(point.y.buffer, point.y.size, uncompressed.begin() + static_cast<std::ptrdiff_t>(1 + 2 * size - point.y.size));
  const BuilderPtr builder(::OSSL_PARAM_BLD_new());
  if (!builder || ::OSSL_PARAM_BLD_push_utf8_string(builder.get(), OSSL_PKEY_PARAM_GROUP_NAME, group, 0) != 1 ||
      ::OSSL_PARAM_BLD_push_octet_string(builder.get(), OSSL_PKEY_PARAM_PUB_KEY, uncompressed.data(), uncompressed.size()) != 1) {
    return nullptr;
  }
  return key_of("EC", builder.get());
}

KeyPtr rsa_key(const TPMT_PUBLIC& area) {
  const UINT32 exponent = area.parameters.rsaDetail.exponent == 0 ? 65537 : area.parameters.rsaDetail.exponent;
  const BnPtr n(::BN_bin2bn(area.unique.rsa.buffer, area.unique.rsa.size, nullptr)), e(::BN_new());
  const BuilderPtr builder(::OSSL_PARAM_BLD_new());
  if (!n || !e || !builder || ::BN_set_word(e.get(), exponent) != 1 ||
      ::OSSL_PARAM_BLD_push_BN(builder.get(), OSSL_PKEY_PARAM_RSA_N, n.get()) != 1 ||
      ::OSSL_PARAM_BLD_push_BN(builder.get(), OSSL_PKEY_PARAM_RSA_E, e.get()) != 1) {
    return nullptr;
  }
  return key_of("RSA", builder.get());
}

// An ECDSA signature as OpenSSL takes it.
Bytes der_of(const TPMS_SIGNATURE_ECC& signature) {
  const EcdsaPtr pair(::ECDSA_SIG_new());
  BnPtr r(::BN_bin2bn(signature.signatureR.buffer, signature.signatureR.size, nullptr));
  BnPtr s(::BN_bin2bn(signature.signatureS.buffer, signature.signatureS.size, nullptr));
  if (!pair || !r || !s || ::ECDSA_SIG_set0(pair.get(), r.release(), s.release()) != 1) return {};
  std::uint8_t* der = nullptr;
  const int size = ::i2d_ECDSA_SIG(pair.get(), &der);
  if (size <= 0) return {};
  Bytes bytes(der, der + size);
  ::OPENSSL_free(der);
  return bytes;
}

KeyPtr parsed_pem(const std::string& pem) {
  // Nothing but a public key: OpenSSL would take the first PEM block of another kind for a question about a password.
  if (pem.size() > kMaxPem) return nullptr;
  const BioPtr in(::BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  KeyPtr key(in ? ::PEM_read_bio_PUBKEY(in.get(), nullptr, [](char*, int, int, void*) { return -1; }, nullptr) : nullptr);
  if (!key) ::ERR_clear_error();
  return key;
}

}  // namespace

Result<std::string> pem_of(const TPM2B_PUBLIC& key) {
  const TPMT_PUBLIC& area = key.publicArea;
  const KeyPtr made = area.type == TPM2_ALG_ECC ? ecc_key(area) : area.type == TPM2_ALG_RSA ? rsa_key(area) : nullptr;
  if (!made) return fail(ENOTSUP, "the attestation key is neither RSA nor an ECC key on a NIST curve");
  const BioPtr out(::BIO_new(::BIO_s_mem()));
  if (!out || ::PEM_write_bio_PUBKEY(out.get(), made.get()) != 1) return fail(EIO, "the attestation key cannot be written as PEM");
  char* text = nullptr;
  const long size = ::BIO_get_mem_data(out.get(), &text);
  return std::string(text, static_cast<std::size_t>(size));
}

bool is_public_key(const std::string& pem) { return parsed_pem(pem) != nullptr; }

std::string fingerprint_of(const std::string& ak_pem) {
  const KeyPtr key = parsed_pem(ak_pem);
  std::uint8_t* der = nullptr;
  const int size = key ? ::i2d_PUBKEY(key.get(), &der) : 0;
  if (size <= 0) return "";
  const std::string text = to_hex(hash_of(HashAlgorithm::kSha256, ByteView(der, static_cast<std::size_t>(size))).bytes());
  ::OPENSSL_free(der);
  return text;
}

Result<Bytes> marshalled(const TPM2B_PUBLIC& key) {
  std::array<std::uint8_t, sizeof(TPM2B_PUBLIC)> bytes{};
  std::size_t size = 0;
  if (::Tss2_MU_TPM2B_PUBLIC_Marshal(&key, bytes.data(), bytes.size(), &size) != TSS2_RC_SUCCESS) return fail(EIO, "the attestation key cannot be written");
  return Bytes(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
}

Result<KeyFacts> read_public(ByteView tpm2b_public) {
  TPM2B_PUBLIC key {};
  std::size_t offset = 0;
  if (::Tss2_MU_TPM2B_PUBLIC_Unmarshal(tpm2b_public.data(), tpm2b_public.size(), &offset, &key) != TSS2_RC_SUCCESS || offset != tpm2b_public.size()) {
    return fail(EBADMSG, "it is no TPM2B_PUBLIC");
  }
  const auto name_hash = hash_algorithm_of_tpm(key.publicArea.nameAlg);
  if (!name_hash || !can_compute(*name_hash)) return fail(ENOTSUP, "the key's name uses a hash we do not know");
  auto pem = pem_of(key);
  if (!pem) return fail(pem.error());
  KeyFacts facts;
  facts.pem = std::move(*pem);
  constexpr std::size_t size_field = 2;
  const Digest digest = hash_of(*name_hash, tpm2b_public.subspan(size_field));
  facts.name = {static_cast<std::uint8_t>(key.publicArea.nameAlg >> 8), static_cast<std::uint8_t>(key.publicArea.nameAlg & 0xff)};
  append(facts.name, digest.bytes());
  constexpr TPMA_OBJECT needed =
      TPMA_OBJECT_RESTRICTED | TPMA_OBJECT_FIXEDTPM | TPMA_OBJECT_FIXEDPARENT | TPMA_OBJECT_SENSITIVEDATAORIGIN | TPMA_OBJECT_SIGN_ENCRYPT;
  facts.can_attest_alone = (key.publicArea.objectAttributes & (needed | TPMA_OBJECT_DECRYPT)) == needed;
  return facts;
}

Result<HashAlgorithm> check_signature(ByteView attest, ByteView signature, const std::string& ak_pem) {
  const KeyPtr key = parsed_pem(ak_pem);
  if (!key) return fail(EBADMSG, "the attestation key is no public key in PEM");
  TPMT_SIGNATURE parsed {};
  std::size_t offset = 0;
  if (::Tss2_MU_TPMT_SIGNATURE_Unmarshal(signature.data(), signature.size(), &offset, &parsed) != TSS2_RC_SUCCESS || offset != signature.size()) {
    return fail(EBADMSG, "the signature is cut short or malformed");
  }
  const auto hash = hash_algorithm_of_tpm(parsed.signature.any.hashAlg);
  const EVP_MD* const md = hash ? ::EVP_get_digestbyname(std::string(name_of(*hash)).c_str()) : nullptr;
  if (!md) return fail(EBADMSG, "the signature uses a hash we do not know");
  Bytes bytes;
  switch (parsed.sigAlg) {
    case TPM2_ALG_ECDSA: bytes = der_of(parsed.signature.ecdsa); break;
    case TPM2_ALG_RSASSA:
    case TPM2_ALG_RSAPSS:
      bytes.assign(parsed.signature.rsassa.sig.buffer, parsed.signature.rsassa.sig.buffer + parsed.signature.rsassa.sig.size);
      break;
    default: return fail(EBADMSG, "the signature is neither ECDSA, RSASSA nor RSAPSS");
  }
  const DigestContextPtr context(::EVP_MD_CTX_new());
  EVP_PKEY_CTX* key_context = nullptr;
  bool fits = context && ::EVP_DigestVerifyInit(context.get(), &key_context, md, nullptr, key.get()) == 1;
  if (fits && parsed.sigAlg == TPM2_ALG_RSAPSS) fits = ::EVP_PKEY_CTX_set_rsa_padding(key_context, RSA_PKCS1_PSS_PADDING) == 1;
  fits = fits && ::EVP_DigestVerify(context.get(), bytes.data(), bytes.size(), attest.data(), attest.size()) == 1;
  if (!fits) return fail(EBADMSG, "the signature is not that key's over that quote");
  return *hash;
}

}  // namespace imafs
