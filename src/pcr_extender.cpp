#include <dlfcn.h>
#include <poll.h>
#include <tss2/tss2_esys.h>
#include <tss2/tss2_rc.h>
#include <tss2/tss2_tctildr.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

#include "imafs/tpm_connection.h"

namespace imafs {
namespace {

constexpr std::uint32_t kPcrCount = 24;  // a PC client TPM's
constexpr auto kIdleLimit = std::chrono::milliseconds(10);
constexpr auto kHoldLimit = std::chrono::milliseconds(50);

using Clock = std::chrono::steady_clock;

struct EsysFree {
  void operator()(void* memory) const { ::Esys_Free(memory); }
};
template <class T>
using EsysPtr = std::unique_ptr<T, EsysFree>;

tl::unexpected<Error> tpm_error(TSS2_RC code, const std::string& doing) {
  return fail(EIO, doing + ": " + ::Tss2_RC_Decode(code));
}

// One connection: a TCTI and the ESAPI context on it.
class Connection {
 public:
  static Result<std::unique_ptr<Connection>> open(const std::string& tcti) {
    std::unique_ptr<Connection> connection(new Connection);
    TSS2_RC code = ::Tss2_TctiLdr_Initialize(tcti.c_str(), &connection->tcti_);
    if (code != TSS2_RC_SUCCESS) return tpm_error(code, "no TPM answers at '" + tcti + "'");
    code = ::Esys_Initialize(&connection->esys_, connection->tcti_, nullptr);
    if (code != TSS2_RC_SUCCESS) return tpm_error(code, "cannot speak to the TPM at '" + tcti + "'");
    return connection;
  }
  ~Connection() {
    if (esys_) ::Esys_Finalize(&esys_);
    if (tcti_) ::Tss2_TctiLdr_Finalize(&tcti_);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  ESYS_CONTEXT* esys() { return esys_; }

  // Whether an answer has begun to come within `limit`. The TCTI's own waiting cannot be relied on:
  // swtpm's ignores its time limit.
  bool answer_comes(std::chrono::milliseconds limit) {
    std::size_t count = 1;
    TSS2_TCTI_POLL_HANDLE handle {};
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wold-style-cast"  // inside the library's macro
    const TSS2_RC code = Tss2_Tcti_GetPollHandles(tcti_, &handle, &count);
#pragma GCC diagnostic pop
    if (code != TSS2_RC_SUCCESS || count != 1) return true;
    struct pollfd wait {handle.fd, POLLIN, 0};
    int ready = 0;
    do {
      ready = ::poll(&wait, 1, static_cast<int>(limit.count()));
    } while (ready < 0 && errno == EINTR);
    return ready > 0;
  }

 private:
  Connection() = default;
  TSS2_TCTI_CONTEXT* tcti_ = nullptr;
  ESYS_CONTEXT* esys_ = nullptr;
};

class TpmExtender final : public PcrExtender {
 public:
  TpmExtender(std::string tcti, std::chrono::milliseconds limit)
      : tcti_(std::move(tcti)),
        limit_(limit),
        gives_way_(tcti_.starts_with("swtpm") || tcti_.starts_with("mssim")),
        idle_closer_([this] { close_when_idle(); }) {
    // Loaded for good: connections come and go.
    if (tcti_.starts_with("swtpm")) ::dlopen("libtss2-tcti-swtpm.so.0", RTLD_LAZY | RTLD_NODELETE);
  }

  ~TpmExtender() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    idle_closer_.join();
  }

  Status start() {
    const std::lock_guard lock(mutex_);
    if (auto status = connect(); !status) return status;
    auto banks = ask_banks();
    if (!banks) return fail(banks.error());
    banks_ = std::move(*banks);
    identity_ = ask_identity();
    return {};
  }

  const std::vector<Bank>& banks() const override { return banks_; }
  std::string identity() const override { return identity_; }
  std::string description() const override { return "TPM at " + tcti_; }

  Status extend(std::uint32_t pcr, const BankValues& values) override {
    if (pcr >= kPcrCount) return fail(ERANGE, "the TPM has no PCR " + std::to_string(pcr));
    TPML_DIGEST_VALUES digests {};
    for (const Bank& bank : banks_) {
      TPMT_HA& digest = digests.digests[digests.count];
      digest.hashAlg = bank.tpm_algorithm;
      std::memcpy(&digest.digest, values[digests.count].data(), bank.size);
      ++digests.count;
    }
    const std::lock_guard lock(mutex_);
    if (auto status = connect(); !status) return status;
    return finish(
        "TPM2_PCR_Extend",
        ::Esys_PCR_Extend_Async(connection_->esys(), ESYS_TR_PCR0 + pcr, ESYS_TR_PASSWORD, ESYS_TR_NONE, ESYS_TR_NONE, &digests),
        [&] { return ::Esys_PCR_Extend_Finish(connection_->esys()); });
  }

  Result<BankValues> read(std::uint32_t pcr) override {
    if (pcr >= kPcrCount) return fail(ERANGE, "the TPM has no PCR " + std::to_string(pcr));
    const std::lock_guard lock(mutex_);
    if (auto status = connect(); !status) return fail(status.error());
    BankValues values(banks_.size());
    for (std::size_t i = 0; i < banks_.size(); ++i) {
      TPML_PCR_SELECTION selection {};
      selection.count = 1;
      selection.pcrSelections[0].hash = banks_[i].tpm_algorithm;
      selection.pcrSelections[0].sizeofSelect = 3;
      selection.pcrSelections[0].pcrSelect[pcr / 8] = static_cast<BYTE>(1U << (pcr % 8));
      TPML_DIGEST* raw = nullptr;
      auto status = finish(
          "TPM2_PCR_Read",
          ::Esys_PCR_Read_Async(connection_->esys(), ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, &selection),
          [&] { return ::Esys_PCR_Read_Finish(connection_->esys(), nullptr, nullptr, &raw); });
      if (!status) return fail(status.error());
      const EsysPtr<TPML_DIGEST> digests(raw);
      if (digests->count != 1) return fail(EIO, "TPM2_PCR_Read: PCR " + std::to_string(pcr) + " is not in the bank");
      values[i].assign(digests->digests[0].buffer, digests->digests[0].buffer + digests->digests[0].size);
    }
    return values;
  }

  Result<TpmClock> clock() override {
    const std::lock_guard lock(mutex_);
    if (auto status = connect(); !status) return fail(status.error());
    TPMS_TIME_INFO* raw = nullptr;
    auto status = finish("TPM2_ReadClock", ::Esys_ReadClock_Async(connection_->esys(), ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE),
                         [&] { return ::Esys_ReadClock_Finish(connection_->esys(), &raw); });
    if (!status) return fail(status.error());
    const EsysPtr<TPMS_TIME_INFO> time(raw);
    return TpmClock{time->clockInfo.resetCount, time->clockInfo.restartCount, time->clockInfo.clock};
  }

  Status reconnect() override {
    const std::lock_guard lock(mutex_);
    connection_.reset();
    lost_ = false;
    if (auto status = connect(); !status) return status;
    auto banks = ask_banks();
    if (!banks) return fail(banks.error());
    if (*banks != banks_) return fail(EIO, description() + " came back with other banks");
    return {};
  }

 private:
  // REQUIRES: mutex_ is held, from here on.

  Status connect() {
    last_use_ = Clock::now();
    if (lost_) return fail(EIO, "the connection to the " + description() + " is lost");
    if (connection_ && gives_way_ && Clock::now() - connected_at_ > kHoldLimit) connection_.reset();
    if (connection_) return {};
    auto opened = Connection::open(tcti_);
    if (!opened) return fail(opened.error());
    connection_ = std::move(*opened);
    connected_at_ = Clock::now();
    wake_.notify_all();
    return {};
  }

  template <class Finish>
  Status finish(const char* command, TSS2_RC sent, Finish&& receive) {
    TSS2_RC code = sent;
    if (code == TSS2_RC_SUCCESS) {
      if (!connection_->answer_comes(limit_)) {
        connection_.reset();
        lost_ = true;
        return fail(ETIMEDOUT, std::string(command) + ": no answer within " + std::to_string(limit_.count()) + " ms");
      }
      do {
        code = receive();
      } while (code == TSS2_ESYS_RC_TRY_AGAIN);
    }
    last_use_ = Clock::now();
    if (code == TSS2_RC_SUCCESS) return {};
    // A response code of the TPM leaves the connection as it was; anything else does not.
    if ((code & TSS2_RC_LAYER_MASK) != 0) {
      connection_.reset();
      lost_ = true;
    }
    return tpm_error(code, command);
  }

  Result<std::vector<Bank>> ask_banks() {
    TPMS_CAPABILITY_DATA* raw = nullptr;
    auto status = finish("TPM2_GetCapability",
                         ::Esys_GetCapability_Async(connection_->esys(), ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE,
                                                    TPM2_CAP_PCRS, 0, TPM2_PT_PCR_COUNT),
                         [&] { return ::Esys_GetCapability_Finish(connection_->esys(), nullptr, &raw); });
    if (!status) return fail(status.error());
    const EsysPtr<TPMS_CAPABILITY_DATA> capability(raw);
    std::vector<Bank> banks;
    const TPML_PCR_SELECTION& assigned = capability->data.assignedPCR;
    for (UINT32 i = 0; i < assigned.count; ++i) {
      const TPMS_PCR_SELECTION& one = assigned.pcrSelections[i];
      const bool allocated = std::any_of(one.pcrSelect, one.pcrSelect + one.sizeofSelect, [](BYTE bits) { return bits != 0; });
      if (!allocated) continue;
      if (const auto hash = hash_algorithm_of_tpm(one.hash)) {
        banks.push_back(Bank::of(*hash));
      } else {
        return fail(ENOTSUP, "the TPM has a bank of unknown algorithm " + std::to_string(one.hash));
      }
    }
    if (banks.empty()) return fail(ENODEV, "the TPM has no allocated PCR bank");
    return banks;
  }

  // The name of the default ECC primary key of the endorsement hierarchy: made from the TPM's own seed, it is the
  // same for the TPM's whole life and no other TPM's. Where the hierarchy is locked: the way to the TPM.
  std::string ask_identity() {
    TPM2B_SENSITIVE_CREATE sensitive {};
    TPM2B_PUBLIC form {};
    TPMT_PUBLIC& area = form.publicArea;
    area.type = TPM2_ALG_ECC;
    area.nameAlg = TPM2_ALG_SHA256;
    area.objectAttributes = TPMA_OBJECT_FIXEDTPM | TPMA_OBJECT_FIXEDPARENT | TPMA_OBJECT_SENSITIVEDATAORIGIN |
                            TPMA_OBJECT_USERWITHAUTH | TPMA_OBJECT_RESTRICTED | TPMA_OBJECT_DECRYPT;
    TPMS_ECC_PARMS& ecc = area.parameters.eccDetail;
    ecc.symmetric.algorithm = TPM2_ALG_AES;
    ecc.symmetric.keyBits.aes = 128;
    ecc.symmetric.mode.aes = TPM2_ALG_CFB;
    ecc.scheme.scheme = TPM2_ALG_NULL;
    ecc.curveID = TPM2_ECC_NIST_P256;
    ecc.kdf.scheme = TPM2_ALG_NULL;
    const TPM2B_DATA outside {};
    const TPML_PCR_SELECTION creation {};
    ESYS_TR key = ESYS_TR_NONE;
    TPM2B_PUBLIC* raw = nullptr;
    auto status = finish("TPM2_CreatePrimary",
                         ::Esys_CreatePrimary_Async(connection_->esys(), ESYS_TR_RH_ENDORSEMENT, ESYS_TR_PASSWORD, ESYS_TR_NONE,
                                                    ESYS_TR_NONE, &sensitive, &form, &outside, &creation),
                         [&] { return ::Esys_CreatePrimary_Finish(connection_->esys(), &key, &raw, nullptr, nullptr, nullptr); });
    if (!status) return tcti_;
    const EsysPtr<TPM2B_PUBLIC> made(raw);
    (void)finish("TPM2_FlushContext", ::Esys_FlushContext_Async(connection_->esys(), key),
                 [&] { return ::Esys_FlushContext_Finish(connection_->esys()); });
    const TPMS_ECC_POINT& point = made->publicArea.unique.ecc;
    Bytes text(point.x.buffer, point.x.buffer + point.x.size);
    text.insert(text.end(), point.y.buffer, point.y.buffer + point.y.size);
    return to_hex(hash_of(HashAlgorithm::kSha256, text).bytes());
  }

  void close_when_idle() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      if (!connection_ || !gives_way_) {
        wake_.wait(lock);
        continue;
      }
      const auto until = last_use_ + kIdleLimit;
      if (Clock::now() >= until) {
        connection_.reset();
        continue;
      }
      wake_.wait_until(lock, until);
    }
  }

  const std::string tcti_;
  const std::chrono::milliseconds limit_;
  const bool gives_way_;  // one connection at a time is all the TPM serves
  std::vector<Bank> banks_;
  std::string identity_;

  std::mutex mutex_;  // one command at a time; held across it
  std::condition_variable wake_;
  std::unique_ptr<Connection> connection_;  // guarded by mutex_, as all below
  bool lost_ = false;                       // until reconnect(): whether a command took effect is unknown
  Clock::time_point connected_at_;
  Clock::time_point last_use_;
  bool stopping_ = false;
  std::thread idle_closer_;  // last: it uses all of the above
};

}  // namespace

Result<std::unique_ptr<PcrExtender>> open_pcr_extender(const std::string& tcti, std::chrono::milliseconds time_limit) {
  // The library would print every fault; ours are in the operator's messages, once.
  ::setenv("TSS2_LOG", "all+none", 0);
  auto extender = std::make_unique<TpmExtender>(tcti, time_limit);
  if (auto status = extender->start(); !status) return fail(status.error());
  return extender;
}

}  // namespace imafs
