#include "imafs/quote.h"

#include <endian.h>
#include <tss2/tss2_mu.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

#include "imafs/tpm_connection.h"
#include "tpm_context.h"
#include "tpm_key.h"

namespace imafs {
namespace {

// A key of ours in the TPM, flushed when we are done with it.
class Key {
 public:
  Key(ESYS_CONTEXT* esys, ESYS_TR handle, bool transient) : esys_(esys), handle_(handle), transient_(transient) {}
  ~Key() {
    if (transient_) {
      ::Esys_FlushContext(esys_, handle_);
    } else {
      ::Esys_TR_Close(esys_, &handle_);
    }
  }
  Key(const Key&) = delete;
  Key& operator=(const Key&) = delete;
  ESYS_TR handle() const { return handle_; }

 private:
  ESYS_CONTEXT* esys_;
  ESYS_TR handle_;
  const bool transient_;
};

Result<std::unique_ptr<Key>> attestation_key(ESYS_CONTEXT* esys, std::uint32_t persistent, Bytes& tpm2b_public) {
  EsysPtr<TPM2B_PUBLIC> made;
  ESYS_TR handle = ESYS_TR_NONE;
  TSS2_RC code = TSS2_RC_SUCCESS;
  if (persistent != 0) {
    code = ::Esys_TR_FromTPMPublic(esys, persistent, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, &handle);
  } else {
    code = create_primary(esys, ESYS_TR_RH_OWNER, TPMA_OBJECT_SIGN_ENCRYPT, handle, made);
  }
  if (code != TSS2_RC_SUCCESS) return tpm_error(code, persistent != 0 ? "no attestation key at that handle" : "TPM2_CreatePrimary");
  auto key = std::make_unique<Key>(esys, handle, persistent == 0);
  if (persistent != 0) code = ::Esys_ReadPublic(esys, handle, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, Out(made), nullptr, nullptr);
  if (code != TSS2_RC_SUCCESS) return tpm_error(code, "no attestation key at that handle");
  auto bytes = marshalled(*made);
  if (!bytes) return fail(bytes.error());
  const auto facts = read_public(*bytes);
  if (!facts) return fail(facts.error());
  if (!facts->can_attest_alone) {
    return fail(EPERM, "the key at that handle is no attestation key: it has to be restricted, fixed to its TPM, made there, and for signing only");
  }
  tpm2b_public = std::move(*bytes);
  return key;
}

TPML_PCR_SELECTION selection_of(HashAlgorithm bank, const std::vector<std::uint32_t>& pcrs) {
  TPML_PCR_SELECTION selection {};
  selection.count = 1;
  selection.pcrSelections[0].hash = *tpm_algorithm_of(bank);
  selection.pcrSelections[0].sizeofSelect = 3;
  for (const std::uint32_t pcr : pcrs) {
    BYTE& bits = selection.pcrSelections[0].pcrSelect[pcr / 8];
    bits = static_cast<BYTE>(bits | 1U << (pcr % 8));
  }
  return selection;
}

Result<Bytes> read_pcr(ESYS_CONTEXT* esys, HashAlgorithm bank, std::uint32_t pcr) {
  const TPML_PCR_SELECTION selection = selection_of(bank, {pcr});
  EsysPtr<TPML_DIGEST> values;
  const TSS2_RC code = ::Esys_PCR_Read(esys, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, &selection, nullptr, nullptr, Out(values));
  if (code != TSS2_RC_SUCCESS) return tpm_error(code, "TPM2_PCR_Read");
  if (values->count != 1) return fail(EIO, "the TPM has no bank " + std::string(name_of(bank)));
  return Bytes(values->digests[0].buffer, values->digests[0].buffer + values->digests[0].size);
}

}  // namespace

Result<SignedQuote> take_quote(const std::string& tcti, std::uint32_t ak_handle, ByteView nonce, HashAlgorithm bank,
                               const std::vector<std::uint32_t>& pcrs) {
  TPM2B_DATA qualifying {};
  if (nonce.size() > sizeof qualifying.buffer) return fail(EINVAL, "a nonce has at most " + std::to_string(sizeof qualifying.buffer) + " bytes");
  qualifying.size = static_cast<UINT16>(nonce.size());
  std::copy(nonce.begin(), nonce.end(), qualifying.buffer);
  quiet_tpm_library();
  auto context = TpmContext::open(tcti, kTpmTimeLimit);
  if (!context) return fail(context.error());
  ESYS_CONTEXT* const esys = (*context)->esys();

  SignedQuote quote;
  for (const std::uint32_t pcr : pcrs) {
    auto value = read_pcr(esys, bank, pcr);
    if (!value) return fail(value.error());
    quote.pcrs[pcr] = std::move(*value);
  }
  const auto key = attestation_key(esys, ak_handle, quote.ak_public);
  if (!key) return fail(key.error());
  quote.ak_pem = read_public(quote.ak_public)->pem;
  TPMT_SIG_SCHEME scheme {};
  scheme.scheme = TPM2_ALG_NULL;  // the key's own
  const TPML_PCR_SELECTION selection = selection_of(bank, pcrs);
  EsysPtr<TPM2B_ATTEST> attest;
  EsysPtr<TPMT_SIGNATURE> signature;
  TSS2_RC code = ::Esys_Quote(esys, (*key)->handle(), ESYS_TR_PASSWORD, ESYS_TR_NONE, ESYS_TR_NONE, &qualifying, &scheme, &selection,
                              Out(attest), Out(signature));
  if (code != TSS2_RC_SUCCESS) return tpm_error(code, "TPM2_Quote");
  quote.attest.assign(attest->attestationData, attest->attestationData + attest->size);
  std::array<std::uint8_t, sizeof(TPMT_SIGNATURE)> bytes{};
  std::size_t size = 0;
  code = ::Tss2_MU_TPMT_SIGNATURE_Marshal(signature.get(), bytes.data(), bytes.size(), &size);
  if (code != TSS2_RC_SUCCESS) return tpm_error(code, "the TPM's signature");
  quote.signature.assign(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
  return quote;
}

Result<Bytes> attestation_key_of(const std::string& tcti, std::uint32_t ak_handle) {
  quiet_tpm_library();
  auto context = TpmContext::open(tcti, kTpmTimeLimit);
  if (!context) return fail(context.error());
  Bytes tpm2b_public;
  const auto key = attestation_key((*context)->esys(), ak_handle, tpm2b_public);
  if (!key) return fail(key.error());
  return tpm2b_public;
}

// The structures as they lie in memory, little-endian: a selection, then as many lists of eight digests as it takes.
Bytes tpm2_tools_pcrs(HashAlgorithm bank, const std::map<std::uint32_t, Bytes>& values) {
  std::vector<std::uint32_t> pcrs;
  for (const auto& [pcr, value] : values) pcrs.push_back(pcr);
  TPML_PCR_SELECTION selection = selection_of(bank, pcrs);
  selection.count = ::htole32(selection.count);
  selection.pcrSelections[0].hash = ::htole16(selection.pcrSelections[0].hash);
  std::vector<TPML_DIGEST> lists;
  for (const auto& [pcr, value] : values) {
    constexpr std::size_t a_list = std::extent_v<decltype(TPML_DIGEST::digests)>;
    if (lists.empty() || lists.back().count == a_list) lists.emplace_back();
    TPM2B_DIGEST& digest = lists.back().digests[lists.back().count++];
    const std::size_t size = std::min(value.size(), sizeof digest.buffer);
    digest.size = ::htole16(static_cast<UINT16>(size));
    std::memcpy(digest.buffer, value.data(), size);
  }
  for (TPML_DIGEST& list : lists) list.count = ::htole32(list.count);
  const auto raw = [](const auto& structure) { return ByteView(reinterpret_cast<const std::uint8_t*>(&structure), sizeof structure); };
  const ByteView head = raw(selection);
  Bytes out(head.begin(), head.end());
  append_le32(out, static_cast<std::uint32_t>(lists.size()));
  for (const TPML_DIGEST& list : lists) append(out, raw(list));
  return out;
}

Result<QuoteContents> read_quote(ByteView attest) {
  TPMS_ATTEST parsed {};
  std::size_t offset = 0;
  if (::Tss2_MU_TPMS_ATTEST_Unmarshal(attest.data(), attest.size(), &offset, &parsed) != TSS2_RC_SUCCESS || offset != attest.size()) {
    return fail(EBADMSG, "the quote is cut short or malformed");
  }
  if (parsed.magic != TPM2_GENERATED_VALUE) return fail(EBADMSG, "the quote was not made by a TPM");
  if (parsed.type != TPM2_ST_ATTEST_QUOTE) return fail(EBADMSG, "what the TPM signed is no quote");
  const TPML_PCR_SELECTION& selection = parsed.attested.quote.pcrSelect;
  const auto bank = selection.count == 1 ? hash_algorithm_of_tpm(selection.pcrSelections[0].hash) : std::nullopt;
  if (!bank) return fail(EBADMSG, "the quote is not of exactly one bank");
  QuoteContents quote;
  quote.bank = *bank;
  quote.nonce.assign(parsed.extraData.buffer, parsed.extraData.buffer + parsed.extraData.size);
  for (std::uint32_t pcr = 0; pcr < 8U * selection.pcrSelections[0].sizeofSelect; ++pcr) {
    if ((selection.pcrSelections[0].pcrSelect[pcr / 8] >> (pcr % 8) & 1) != 0) quote.pcrs.push_back(pcr);
  }
  const TPM2B_DIGEST& digest = parsed.attested.quote.pcrDigest;
  quote.pcr_digest.assign(digest.buffer, digest.buffer + digest.size);
  // It is made by the signing scheme's hash; sha1 is the only one whose size says which.
  for (const HashAlgorithm algorithm : {HashAlgorithm::kSha1, HashAlgorithm::kSha256, HashAlgorithm::kSha384, HashAlgorithm::kSha512}) {
    if (digest_size(algorithm) == quote.pcr_digest.size()) quote.digest_algorithm = algorithm;
  }
  quote.reset_count = parsed.clockInfo.resetCount;
  quote.restart_count = parsed.clockInfo.restartCount;
  quote.clock_ms = parsed.clockInfo.clock;
  return quote;
}

}  // namespace imafs
