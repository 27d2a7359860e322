// PCRs in memory that fail on command: for tests only. The state outlives the extender, as a TPM outlives
// the daemon that speaks to it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "imafs/pcr_extender.h"
#include "imafs/pcr_value.h"

namespace imafs {

struct SoftwareTpm {
  std::vector<Bank> banks{Bank::of(HashAlgorithm::kSha1), Bank::of(HashAlgorithm::kSha256)};
  std::map<std::uint32_t, BankValues> pcrs;
  std::uint32_t resets = 1;
  std::uint64_t extends = 0;  // that took effect
  std::uint64_t reads = 0;
  std::string name = "software TPM";

  BankValues& pcr(std::uint32_t index) { return pcrs.try_emplace(index, pcr_reset_values(banks, index)).first->second; }
  // A restart without state.
  void reset() {
    pcrs.clear();
    ++resets;
  }
};

enum class Fault {
  kNone,
  kBeforeEffect,  // the command is refused, nothing happened
  kAfterEffect,   // it happened, the answer is lost
  kGone,          // no command gets through, nor a reconnect
  kLastWord,      // it happened, and from then on as kGone
};

class FaultyPcrExtender final : public PcrExtender {
 public:
  explicit FaultyPcrExtender(std::shared_ptr<SoftwareTpm> tpm) : tpm_(std::move(tpm)) {}

  // The next `count` extends meet `fault`; kGone lasts until it is taken away.
  void fail_next(Fault fault, unsigned count = 1) {
    fault_ = fault;
    count_ = count;
  }

  // The n-th call from now on of any of these, or of one, fails once; 0: none does. An extend before or after its effect.
  enum class Call { kAny, kExtend, kRead, kClock, kReconnect };
  void fail_call(Call call, unsigned n, Fault how = Fault::kBeforeEffect) {
    call_ = call;
    left_ = n;
    how_ = how;
  }
  bool has_failed_call() const { return left_ == 0; }

  const std::vector<Bank>& banks() const override { return tpm_->banks; }
  std::string identity() const override { return tpm_->name; }
  std::string description() const override { return tpm_->name; }

  Status extend(std::uint32_t pcr, const BankValues& values) override {
    const std::lock_guard lock(mutex_);
    if (lost_) return fail(EIO, "the connection is lost");
    const Fault fault = is_its_turn(Call::kExtend) ? how_ : take_fault();
    if (fault == Fault::kBeforeEffect || fault == Fault::kGone) {
      lost_ = true;
      return fail(EIO, "refused");
    }
    extend_pcr(tpm_->banks, tpm_->pcr(pcr), values);
    ++tpm_->extends;
    if (fault == Fault::kLastWord) fault_ = Fault::kGone;
    if (fault == Fault::kNone) return {};
    lost_ = true;
    return fail(ETIMEDOUT, "no answer");
  }

  Result<BankValues> read(std::uint32_t pcr) override {
    const std::lock_guard lock(mutex_);
    ++tpm_->reads;
    lost_ |= is_its_turn(Call::kRead);
    if (fault_ == Fault::kGone || lost_) return fail(EIO, "the TPM is gone");
    return tpm_->pcr(pcr);
  }
  Result<TpmClock> clock() override {
    const std::lock_guard lock(mutex_);
    lost_ |= is_its_turn(Call::kClock);
    if (fault_ == Fault::kGone || lost_) return fail(EIO, "the TPM is gone");
    return TpmClock{tpm_->resets, 0, 0};
  }
  Status reconnect() override {
    const std::lock_guard lock(mutex_);
    if (fault_ == Fault::kGone || is_its_turn(Call::kReconnect)) return fail(EIO, "the TPM is gone");
    lost_ = false;
    return {};
  }

 private:
  bool is_its_turn(Call call) {
    if (left_ == 0 || (call_ != Call::kAny && call_ != call)) return false;
    return --left_ == 0;
  }
  Fault take_fault() {
    if (fault_ == Fault::kGone) return fault_;
    if (count_ == 0) return Fault::kNone;
    --count_;
    return fault_;
  }

  const std::shared_ptr<SoftwareTpm> tpm_;
  std::mutex mutex_;
  Fault fault_ = Fault::kNone;
  unsigned count_ = 0;
  Call call_ = Call::kAny;
  unsigned left_ = 0;
  Fault how_ = Fault::kBeforeEffect;
  bool lost_ = false;
};

}  // namespace imafs
