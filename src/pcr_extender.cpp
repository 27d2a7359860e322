#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include "imafs/tpm_connection.h"
#include "tpm_context.h"

namespace imafs {
namespace {

constexpr std::chrono::milliseconds kProbeLimit{2000};
constexpr std::uint32_t kPcrCount = 24;  // a PC client TPM's
constexpr std::size_t kMaxReadValues = 8;  // digests in one answer: TPML_DIGEST

// Runs TPM commands in a thread of its own, so that the caller can stop waiting: not every TCTI keeps a time limit
// or tells what to poll, and opening one can block too. One caller at a time.
class CommandThread {
 public:
  CommandThread() : shared_(std::make_shared<Shared>()), thread_([shared = shared_] { serve(*shared); }) {}
  // A thread that hangs is left behind with all it uses.
  ~CommandThread() {
    {
      const std::lock_guard lock(shared_->mutex);
      shared_->stopping = true;
    }
    shared_->changed.notify_all();
    if (hung_) {
      thread_.detach();
    } else {
      thread_.join();
    }
  }
  CommandThread(const CommandThread&) = delete;
  CommandThread& operator=(const CommandThread&) = delete;

  // Whether `command` ended within `limit`. If not, it may still run: it must own what it uses.
  bool run(std::function<void()> command, std::chrono::milliseconds limit) {
    std::unique_lock lock(shared_->mutex);
    shared_->command = std::move(command);
    shared_->changed.notify_all();
    hung_ = !shared_->changed.wait_for(lock, limit, [this] { return !shared_->command; });
    return !hung_;
  }

 private:
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    std::function<void()> command;  // guarded by mutex; empty: done
    bool stopping = false;          // guarded by mutex
  };

  static void serve(Shared& shared) {
    std::unique_lock lock(shared.mutex);
    for (;;) {
      shared.changed.wait(lock, [&] { return shared.stopping || shared.command; });
      if (!shared.command) return;
      const std::function<void()> command = shared.command;
      lock.unlock();
      command();
      lock.lock();
      shared.command = nullptr;
      shared.changed.notify_all();
    }
  }

  std::shared_ptr<Shared> shared_;
  bool hung_ = false;
  std::thread thread_;
};

class TpmExtender final : public PcrExtender {
 public:
  TpmExtender(std::string tcti, std::chrono::milliseconds limit, std::function<Status(bool has_failed)> revive)
      : tcti_(std::move(tcti)), limit_(limit), revive_(std::move(revive)) {}

  Status start() {
    const std::lock_guard lock(mutex_);
    auto banks = ask_banks();
    // One that outlived the last mount may be in failure mode.
    if (!banks && in_failure_mode_ && revive_) {
      disconnect();
      if (auto revived = revive_(std::exchange(in_failure_mode_, false)); !revived) return revived;
      banks = ask_banks();
    }
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
    auto done = run<bool>("TPM2_PCR_Extend", [digests, pcr](ESYS_CONTEXT* esys, bool&) {
      return ::Esys_PCR_Extend(esys, ESYS_TR_PCR0 + pcr, ESYS_TR_PASSWORD, ESYS_TR_NONE, ESYS_TR_NONE, &digests);
    });
    if (!done) return fail(done.error());
    return {};
  }

  Result<BankValues> read(std::uint32_t pcr) override {
    if (pcr >= kPcrCount) return fail(ERANGE, "the TPM has no PCR " + std::to_string(pcr));
    const std::lock_guard lock(mutex_);
    BankValues values;
    while (values.size() < banks_.size()) {
      const std::size_t first = values.size();
      TPML_PCR_SELECTION selection {};
      for (std::size_t i = first; i < banks_.size() && i - first < kMaxReadValues; ++i) {
        TPMS_PCR_SELECTION& one = selection.pcrSelections[selection.count++];
        one.hash = banks_[i].tpm_algorithm;
        one.sizeofSelect = 3;
        one.pcrSelect[pcr / 8] = static_cast<BYTE>(1U << (pcr % 8));
      }
      const auto digests = run<EsysPtr<TPML_DIGEST>>("TPM2_PCR_Read", [selection](ESYS_CONTEXT* esys, EsysPtr<TPML_DIGEST>& answer) {
        return ::Esys_PCR_Read(esys, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, &selection, nullptr, nullptr, Out(answer));
      });
      if (!digests) return fail(digests.error());
      const TPML_DIGEST& answer = **digests;
      if (answer.count != selection.count) return fail(EIO, "TPM2_PCR_Read: PCR " + std::to_string(pcr) + " is not in each bank");
      for (UINT32 i = 0; i < answer.count; ++i) {
        const TPM2B_DIGEST& digest = answer.digests[i];
        values.emplace_back(digest.buffer, digest.buffer + digest.size);
      }
    }
    return values;
  }

  Result<TpmClock> clock() override {
    const std::lock_guard lock(mutex_);
    const auto time = run<EsysPtr<TPMS_TIME_INFO>>("TPM2_ReadClock", [](ESYS_CONTEXT* esys, EsysPtr<TPMS_TIME_INFO>& answer) {
      return ::Esys_ReadClock(esys, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, Out(answer));
    });
    if (!time) return fail(time.error());
    const TPMS_CLOCK_INFO& info = (*time)->clockInfo;
    return TpmClock{info.resetCount, info.restartCount, info.clock};
  }

  Status reconnect() override {
    const std::lock_guard lock(mutex_);
    disconnect();
    lost_ = false;
    // One that has just not answered has its whole time limit behind it: whether it is back shows sooner.
    const bool probing = std::exchange(timed_out_, false);
    if (probing) command_limit_ = std::min(limit_, kProbeLimit);
    const auto back = ask_after_fault();
    command_limit_ = limit_;
    if (probing) disconnect();  // the connection keeps the limit that it was made with
    return back;
  }

 private:
  Status ask_after_fault() {
    if (revive_) {
      // What put it into failure mode (a full disk) may last: a start that fails is tried again with the next reconnect().
      if (auto revived = revive_(std::exchange(in_failure_mode_, false)); !revived) return revived;
    }
    auto banks = ask_banks();
    if (!banks) return fail(banks.error());
    if (*banks != banks_) return fail(EIO, description() + " came back with other banks");
    return {};
  }

  // What a command needs and makes; it can outlive our wait.
  template <class Answer>
  struct Job {
    std::shared_ptr<std::unique_ptr<TpmContext>> connection;
    Answer answer{};
    Status status;
    bool lost = false;
    bool timed_out = false;
    bool tpm_failed = false;
  };

  // REQUIRES: mutex_ is held, from here on.

  void disconnect() {
    // The thread first: it uses the connection to its end.
    thread_.reset();
    connection_.reset();
  }

  // `command` is a call of the ESAPI that fills an Answer; runs on the connection, which it makes if there is none.
  template <class Answer, class Command>
  Result<Answer> run(const char* name, Command command) {
    if (lost_) return fail(EIO, "the connection to the " + description() + " is lost");
    if (!connection_) connection_ = std::make_shared<std::unique_ptr<TpmContext>>();
    auto job = std::make_shared<Job<Answer>>();
    job->connection = connection_;
    auto work = [job, name, command = std::move(command), tcti = tcti_, limit = command_limit_] {
      std::unique_ptr<TpmContext>& connection = *job->connection;
      if (!connection) {
        auto opened = TpmContext::open(tcti, limit);
        if (!opened) {
          job->status = fail(opened.error());
          return;
        }
        connection = std::move(*opened);
      }
      const TSS2_RC code = command(connection->esys(), job->answer);
      if (code == TSS2_RC_SUCCESS) return;
      // A response code of the TPM leaves the connection as it was; anything else does not.
      job->lost = (code & TSS2_RC_LAYER_MASK) != 0;
      job->timed_out = connection->timed_out();
      job->tpm_failed = code == TPM2_RC_FAILURE;
      job->status = tpm_error(code, name);
    };
    bool ended = true;
    if (TpmContext::keeps_limit(tcti_)) {
      work();
      ended = !job->timed_out;
    } else {
      if (!thread_) thread_ = std::make_unique<CommandThread>();
      ended = thread_->run(std::move(work), command_limit_);
    }
    if (!ended || job->lost) {
      disconnect();
      lost_ = true;
    }
    timed_out_ = timed_out_ || !ended;
    in_failure_mode_ = in_failure_mode_ || (ended && job->tpm_failed);
    if (!ended) return fail(ETIMEDOUT, std::string(name) + ": no answer within " + std::to_string(command_limit_.count()) + " ms");
    if (!job->status) return fail(job->status.error());
    return std::move(job->answer);
  }

  Result<std::vector<Bank>> ask_banks() {
    const auto capability =
        run<EsysPtr<TPMS_CAPABILITY_DATA>>("TPM2_GetCapability", [](ESYS_CONTEXT* esys, EsysPtr<TPMS_CAPABILITY_DATA>& answer) {
          return ::Esys_GetCapability(esys, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, TPM2_CAP_PCRS, 0, TPM2_PT_PCR_COUNT,
                                      nullptr, Out(answer));
        });
    if (!capability) return fail(capability.error());
    std::vector<Bank> banks;
    const TPML_PCR_SELECTION& assigned = (*capability)->data.assignedPCR;
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
    const auto made = run<EsysPtr<TPM2B_PUBLIC>>("TPM2_CreatePrimary", [](ESYS_CONTEXT* esys, EsysPtr<TPM2B_PUBLIC>& answer) {
      ESYS_TR key = ESYS_TR_NONE;
      const TSS2_RC code = create_primary(esys, ESYS_TR_RH_ENDORSEMENT, TPMA_OBJECT_DECRYPT, key, answer);
      return code == TSS2_RC_SUCCESS ? ::Esys_FlushContext(esys, key) : code;
    });
    if (!made) return tcti_;
    const TPMS_ECC_POINT& point = (*made)->publicArea.unique.ecc;
    Bytes text(point.x.buffer, point.x.buffer + point.x.size);
    text.insert(text.end(), point.y.buffer, point.y.buffer + point.y.size);
    return to_hex(hash_of(HashAlgorithm::kSha256, text).bytes());
  }

  const std::string tcti_;
  const std::chrono::milliseconds limit_;
  const std::function<Status(bool has_failed)> revive_;
  std::chrono::milliseconds command_limit_ = limit_;  // guarded by mutex_; shorter while a TPM is probed
  bool timed_out_ = false;                            // guarded by mutex_: the last command, since the last reconnect()
  bool in_failure_mode_ = false;                      // guarded by mutex_: a command was answered so, since the last reconnect()
  std::vector<Bank> banks_;
  std::string identity_;

  std::mutex mutex_;  // one command at a time; held across it
  // Guarded by mutex_. The connection is made and used by the thread alone, if there is one.
  std::unique_ptr<CommandThread> thread_;  // null: the connection keeps time limits
  std::shared_ptr<std::unique_ptr<TpmContext>> connection_;
  bool lost_ = false;  // guarded by mutex_. Until reconnect(): whether a command took effect is unknown
};

}  // namespace

Result<std::unique_ptr<PcrExtender>> open_pcr_extender(const std::string& tcti, std::chrono::milliseconds time_limit,
                                                       std::function<Status(bool has_failed)> revive) {
  quiet_tpm_library();
  auto extender = std::make_unique<TpmExtender>(tcti, time_limit, std::move(revive));
  if (auto status = extender->start(); !status) return fail(status.error());
  return extender;
}

}  // namespace imafs
