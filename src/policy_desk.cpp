// When does an update take effect? The kernel loads it when the last descriptor is closed, and a
// tool sees the new policy once its close(2) returned. FUSE tells of the last descriptor only by
// RELEASE, which is asynchronous: close(2) does not wait for it. FLUSH is synchronous, but comes
// for *every* descriptor: `echo RULE > policy` in a shell opens, duplicates, closes the first
// descriptor (FLUSH), writes, closes the second one (FLUSH, then RELEASE). So: a FLUSH with nothing
// written does nothing; a FLUSH after writes loads what was written. IMA: whoever writes on after
// that, through a descriptor that was duplicated (`(cat A; cat B) > policy`), writes a further
// update within the same open: its rules are appended, also where the first part replaced. Once a
// line was refused, nothing that follows in this open is loaded, as in the kernel, but what an
// earlier close loaded stays.
#include "imafs/policy_desk.h"

#include <chrono>
#include <utility>

#include "imafs/lsm_labels.h"
#include "imafs/policy_writer.h"

namespace imafs {
namespace {

// A RELEASE may still be on its way when the next open(2) comes. It was queued before that, so this
// is for a busy machine only.
constexpr auto kReleaseInFlight = std::chrono::milliseconds(100);

}  // namespace

class PolicyUpdateFile final : public ControlFile {
 public:
  PolicyUpdateFile(PolicyDesk& desk, PolicyLoad how, bool appending, const Requester& opener)
      : desk_(desk),
        opener_(opener),
        comm_(comm_of(opener.pid)),
        position_(appending ? PolicyWriter::Position::kAppending
                            : PolicyWriter::Position::kAsGiven),
        how_(how),
        writer_(writer_sources()) {}

  Result<std::size_t> write(std::uint64_t offset, std::string_view text) override {
    const std::lock_guard lock(mutex_);
    desk_.set_slot(PolicyDesk::Slot::kTaken);
    is_written_ = true;
    return writer_.write(offset, text, position_);
  }

  Status flush(const Requester& requester) override {
    const std::lock_guard lock(mutex_);
    comm_ = comm_of(requester.pid);
    auto loaded = load(requester);
    desk_.set_slot(PolicyDesk::Slot::kClosing);
    return loaded;
  }

  void release(const Requester&) override {
    const std::lock_guard lock(mutex_);
    (void)load(opener_);
    // An update without a rule fails silently, as in the kernel.
    if (!is_reported_) {
      if (is_written_) desk_.note_refusal("the policy update held no rule");
      desk_.note_update(false, opener_, comm_);
    }
    desk_.set_slot(PolicyDesk::Slot::kFree);
  }

 private:
  PolicyWriter::Sources writer_sources() {
    PolicyWriter::Sources sources;
    sources.active_policy = [this] { return desk_.sources_.gate.policy(); };
    sources.read_policy_file = [this](const std::string& path) {
      return desk_.sources_.read_policy_file(path, opener_);
    };
    sources.report = [this](AuditRecord record) { report(std::move(record)); };
    sources.refused = [this](const std::string& reason) { refused(reason); };
    sources.custom_template = desk_.sources_.custom_template;
    sources.labels_known = labels_are_known();
    sources.origin = how_ == PolicyLoad::kReplace ? ".ima/policy_replace" : ".ima/policy";
    return sources;
  }

  // The kernel's records do not say why. This one does, in a line; status has the whole text.
  void refused(const std::string& reason) {
    desk_.note_refusal(reason);
    AuditRecord record;
    record.type = AuditRecord::Type::kPolicyRule;
    record.succeeded = false;
    record.text = "policy update refused: " + printable(reason.substr(0, reason.find('\n')));
    report(std::move(record));
  }

  void report(AuditRecord record) {
    record.pid = opener_.pid;
    record.uid = opener_.uid;
    record.comm = comm_of(opener_.pid);
    desk_.sources_.gate.report(std::move(record));
  }

  Status load(const Requester& requester) {
    auto rules = writer_.close();
    if (writer_.is_lost()) {
      if (!std::exchange(is_lost_reported_, true)) {
        desk_.note_update(false, requester, comm_);
        is_reported_ = true;
      }
      return {};  // the kernel's close(2) never fails: the write(2) did
    }
    if (rules.empty()) return {};
    is_reported_ = true;
    const auto loaded = desk_.sources_.gate.load_policy(std::move(rules), how_, requester);
    if (!loaded) {
      // IMA: the update could not be measured, so it must not take effect, and the last call that
      // can say so is close(2).
      writer_.lose("the policy update could not be measured: " + loaded.error().what);
      is_lost_reported_ = true;
      desk_.note_update(false, requester, comm_);
      return loaded;
    }
    how_ = PolicyLoad::kUpdate;
    desk_.note_update(true, requester, comm_);
    return {};
  }

  PolicyDesk& desk_;
  const Requester opener_;
  std::string comm_;  // of whoever opened or closed it last; a RELEASE comes when that may be gone
  const PolicyWriter::Position position_;
  std::mutex mutex_;  // writes and closes of one open are judged one after the other
  PolicyLoad how_;
  PolicyWriter writer_;
  bool is_written_ = false;
  bool is_reported_ = false;       // this open's outcome
  bool is_lost_reported_ = false;  // that it was lost
};

Result<std::unique_ptr<ControlFile>> PolicyDesk::open_writer(PolicyLoad how, bool appending,
                                                             const Requester& opener) {
  {
    std::unique_lock lock(slot_mutex_);
    const auto is_free = [this] { return slot_ == Slot::kFree; };
    if (slot_ == Slot::kClosing) slot_freed_.wait_for(lock, kReleaseInFlight, is_free);
    if (!is_free()) return fail(EBUSY, "another writer has the policy open");
    slot_ = Slot::kTaken;
  }
  return std::make_unique<PolicyUpdateFile>(*this, how, appending, opener);
}

void PolicyDesk::set_slot(Slot slot) {
  {
    const std::lock_guard lock(slot_mutex_);
    slot_ = slot;
  }
  if (slot == Slot::kFree) slot_freed_.notify_all();
}

void PolicyDesk::note_refusal(const std::string& reason) {
  outcome_.with([&](Outcome& outcome) { outcome.error = reason; });
}

void PolicyDesk::note_update(bool completed, const Requester& requester, const std::string& comm) {
  outcome_.with([&](Outcome& outcome) {
    if (completed) {
      ++outcome.counts.completed;
      outcome.error.clear();
    } else {
      ++outcome.counts.failed;
    }
  });
  AuditRecord record;
  record.type = AuditRecord::Type::kStatus;
  record.pid = requester.pid;
  record.uid = requester.uid;
  record.op = "policy_update";
  record.cause = completed ? "completed" : "failed";
  record.comm = comm;
  record.succeeded = completed;
  sources_.gate.report(std::move(record));
}

std::string PolicyDesk::last_error() const {
  return outcome_.with([](const Outcome& outcome) { return outcome.error; });
}

PolicyDesk::Counts PolicyDesk::counts() const {
  return outcome_.with([](const Outcome& outcome) { return outcome.counts; });
}

}  // namespace imafs
