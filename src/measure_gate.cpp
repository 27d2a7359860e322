#include "imafs/measure_gate.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <utility>

#include "imafs/file_hasher.h"
#include "imafs/file_version.h"
#include "imafs/pcr_value.h"
#include "imafs/policy_parser.h"
#include "imafs/posix_file.h"
#include "imafs/unique_fd.h"

namespace imafs {
namespace {

constexpr std::size_t kMaxPathSize = 4095;
constexpr std::size_t kCutComponentSize = 254;

constexpr std::string_view kPolicyLabel = "imafs";

// TPM_RC_VALUE of the first handle: what a TPM says to the extend of a PCR that it has not.
constexpr const char* kNoSuchPcr = "TPM_error(388)";

std::string_view last_component_of(std::string_view path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

// What the kernel logs where it does not log the whole path. IMA: a file called boot_aggregate would pass for what a log begins
// with, so its name has the digest of the whole path before it. No path is logged like that: what follows "//" is a path with
// bytes as %XX, and "%s" is none of these.
std::string component_name(std::string_view component, const std::string& whole) {
  std::string name = loggable_name(component);
  if (name != "boot_aggregate") return name;
  return "//%sha256:" + to_hex(hash_of(HashAlgorithm::kSha256, as_bytes(whole)).bytes()) + "/" + name;
}

// The kernel's rule: the whole path up to PATH_MAX, else the last component, cut.
std::string entry_name(const std::string& prefix, const std::string& path) {
  const std::string whole = prefix + path;
  if (whole.size() <= kMaxPathSize) return loggable_name(whole);
  return component_name(last_component_of(path).substr(0, kCutComponentSize), whole);
}

AuditRecord record_of(std::string op, std::string cause, const Requester& requester) {
  AuditRecord record;
  record.pid = requester.pid;
  record.uid = requester.uid;
  record.op = std::move(op);
  record.cause = std::move(cause);
  record.comm = comm_of(requester.pid);
  return record;
}

// /proc/TID/comm of the threads that asked last, kept open: opening one costs six times as much as reading it, and each new
// entry wants one. comm is harmless to read; exe, maps and their like would wait for locks that execve holds while it waits
// for us.
class CommFiles {
 public:
  // Empty: there is no such thread.
  std::string read(std::uint32_t tid) {
    const std::lock_guard lock(mutex_);
    Kept& kept = kept_[tid % kept_.size()];
    std::string text = kept.tid == tid ? read(kept.fd) : "";
    if (!text.empty()) return text;
    // Another thread's, or that of one that has ended, whose number is in use again.
    kept = {tid, UniqueFd(::open(("/proc/" + std::to_string(tid) + "/comm").c_str(), O_RDONLY | O_CLOEXEC))};
    return read(kept.fd);
  }

 private:
  struct Kept {
    std::uint32_t tid = 0;
    UniqueFd fd;
  };

  static std::string read(const UniqueFd& fd) {
    std::array<char, 64> text{};
    const ssize_t size = fd ? ::pread(fd.get(), text.data(), text.size(), 0) : 0;
    return std::string(text.data(), static_cast<std::size_t>(std::max<ssize_t>(size, 0)));
  }

  std::mutex mutex_;
  std::array<Kept, 8> kept_;  // guarded by mutex_
};

// `size`: of what was hashed, in bytes.
AskOrigin origin_of(const Requester& requester, std::uint64_t size = 0) {
  return [&requester, size] { return EntryOrigin{now_ns(), requester.pid, requester.uid, comm_of(requester.pid), size, {}}; };
}

// An entry cannot always say the path of its file: kept beside it, for attestations.
AskOrigin origin_of_file(const Requester& requester, std::uint64_t size, const LogEntry& entry, const std::string& path) {
  return [&requester, size, &entry, &path] {
    EntryOrigin origin = origin_of(requester, size)();
    const auto name = std::find_if(entry.fields.begin(), entry.fields.end(), [](FieldId field) { return field == FieldId::kN || field == FieldId::kNNg; });
    const std::string_view value = name == entry.fields.end() ? "" : as_text(entry.values[static_cast<std::size_t>(name - entry.fields.begin())]);
    if (path.find(' ') != std::string::npos || value.substr(0, value.find('\0')) != path) origin.path = path;
    return origin;
  };
}

}  // namespace

std::string device_name(std::uint64_t device) {
  const std::string numbers = std::to_string(major(device)) + ":" + std::to_string(minor(device));
  std::array<char, 512> target{};
  const ssize_t size = ::readlink(("/sys/dev/block/" + numbers).c_str(), target.data(), target.size());
  if (size <= 0) return numbers;
  return std::string(last_component_of({target.data(), static_cast<std::size_t>(size)}));
}

std::string comm_of(std::uint32_t tid) {
  if (tid == 0) return "imafs";
  static CommFiles files;
  const std::string text = files.read(tid);
  return text.empty() ? "?" : text.substr(0, text.find('\n'));
}

MeasureGate::MeasureGate(GateOptions options, MeasurementLog& log, AuditSink audit, Policy initial)
    : options_(std::move(options)),
      log_(log),
      audit_(std::move(audit)),
      loaded_(prepare(std::move(initial), options_.enabled)) {}

std::shared_ptr<const MeasureGate::Loaded> MeasureGate::prepare(Policy policy, bool enabled) {
  auto loaded = std::make_shared<Loaded>(CompiledPolicy(std::move(policy)));
  Interests& interests = loaded->interests;
  for (const Rule& rule : loaded->rules.policy().rules) {
    interests.measures |= enabled && rule.action == Action::kMeasure;
    interests.owner |= rule.fowner || rule.fgroup;
    interests.ids |= rule.uid || rule.gid;
    interests.content |= rule.hook == Hook::kMmapCheck || rule.hook == Hook::kMmapCheckReqprot ||
                         rule.hook == Hook::kCredsCheck || rule.hook == Hook::kNone;
  }
  return loaded;
}

std::shared_ptr<const MeasureGate::Loaded> MeasureGate::loaded() const { return loaded_.load(); }

std::shared_ptr<const Policy> MeasureGate::policy() const {
  auto now = loaded();
  return {now, &now->rules.policy()};
}

MeasureGate::Interests MeasureGate::interests() const { return loaded()->interests; }

Status MeasureGate::load_policy(std::vector<Rule> rules, PolicyLoad how, const Requester& requester) {
  const std::lock_guard one_at_a_time(policy_load_mutex_);
  const auto before = loaded();
  Policy after;
  after.is_builtin = false;
  if (how == PolicyLoad::kUpdate && !before->rules.policy().is_builtin) after.rules = before->rules.policy().rules;
  std::move(rules.begin(), rules.end(), std::back_inserter(after.rules));

  // IMA: the kernel does not measure its policy unless it is loaded by path. Here a change is in the
  // log before it takes effect, if the rules before or after it ask for that.
  const std::string text = to_text(after);
  const Buffer buffer{kPolicyLabel, "policy", as_bytes(text)};
  auto entry = critical_data_entry(before->rules.policy(), buffer, requester);
  if (!entry) entry = critical_data_entry(after, buffer, requester);
  auto next = prepare(std::move(after), options_.enabled);  // whatever may fail, before the log says that it took effect
  if (entry) {
    if (auto appended = log_.append(*entry, origin_of(requester)); !appended) return fail(appended.error());
  }
  loaded_.store(std::move(next));
  return {};
}

MeasureOrder MeasureGate::order_of(Hook hook, const Rule& rule) const {
  MeasureOrder order;
  order.hook = hook;
  order.pcr = rule.pcr.value_or(options_.pcr);
  order.form = rule.form ? rule.form : options_.form;
  order.wants_verity = rule.digest_is_verity;
  order.permits_directio = rule.permit_directio;
  return order;
}

std::vector<MeasureOrder> MeasureGate::must_measure(const OpenFacts& facts, const Requester& requester,
                                                    EventSource& source) const {
  const auto now = loaded();
  std::vector<MeasureOrder> orders;
  if (!now->interests.measures) return orders;
  Event event;
  event.uid = requester.uid;
  event.gid = requester.gid;
  event.fowner = facts.fowner;
  event.fgroup = facts.fgroup;
  event.source = &source;
  if (now->interests.ids) {
    // The request carries the file system ids; the rules mean the real ones.
    if (const auto credentials = source.credentials()) {
      event.uid = credentials->uid;
      event.gid = credentials->gid;
    }
  }
  const auto ask = [&](Hook hook, unsigned mask) {
    event.hook = hook;
    event.mask = mask;
    const Decision decision = now->rules.match(event);
    if (decision.must_measure()) orders.push_back(order_of(hook, *decision.measure));
  };
  ask(Hook::kFileCheck, facts.mask);
  if (facts.is_exec) {
    ask(Hook::kBprmCheck, kMayExec);
    // Raised once for what runs in the end: not for a script, nor for what no loader takes.
    if (facts.is_elf) ask(Hook::kCredsCheck, kMayExec);
  }
  // IMA: mmap sends no request. An ELF object that is opened for reading counts as mapped.
  if (facts.is_elf && (facts.is_exec || (facts.mask & kMayRead) != 0)) {
    ask(Hook::kMmapCheck, kMayExec);
    ask(Hook::kMmapCheckReqprot, kMayExec);
  }
  return orders;
}

Result<Collected> MeasureGate::collect_measurement(int fd, const MeasureOrder& order, const HashPause& pause) const {
  Collected collected;
  if (order.wants_verity) {
    auto digest = verity_digest(fd);
    if (!digest) return fail(digest.error());
    collected.digest = *digest;
    collected.is_verity = true;
    return with_legacy(fd, order, std::move(collected), pause);
  }
  HashAlgorithm algorithm = options_.file_hash;
  if (!order.form->is_legacy()) algorithm = algorithm_of_xattr(xattr_of(fd, "security.ima"), algorithm);
  // IMA: the kernel leaves a file unmeasured whose label names a hash that it lacks.
  if (!can_compute(algorithm)) algorithm = options_.file_hash;
  auto digest = hash_file(fd, algorithm, pause);
  if (!digest) return fail(digest.error());
  collected.digest = *digest;
  return with_legacy(fd, order, std::move(collected), pause);
}

// Field d takes sha1 and md5 only. Read here, where the caller finds out whether the file changes between the two.
Result<Collected> MeasureGate::with_legacy(int fd, const MeasureOrder& order, Collected collected, const HashPause& pause) const {
  const HashAlgorithm algorithm = collected.digest.algorithm();
  if (!order.form->has(FieldId::kD) || algorithm == HashAlgorithm::kSha1 || algorithm == HashAlgorithm::kMd5) return collected;
  auto legacy = hash_file(fd, legacy_algorithm(), pause);
  if (!legacy) return fail(legacy.error());
  collected.legacy = *legacy;
  return collected;
}

HashAlgorithm MeasureGate::legacy_algorithm() const {
  return options_.file_hash == HashAlgorithm::kMd5 ? HashAlgorithm::kMd5 : HashAlgorithm::kSha1;
}

EntryFacts MeasureGate::facts_of(const Template& form, const NamedFile& file) const {
  EntryFacts facts;
  facts.name = entry_name(options_.path_prefix, file.path);
  facts.last_component = component_name(last_component_of(file.path), options_.path_prefix + file.path);
  const auto wants = [&](std::initializer_list<FieldId> fields) {
    return std::any_of(fields.begin(), fields.end(), [&](FieldId field) { return form.has(field); });
  };
  if (file.fd < 0) return facts;
  if (wants({FieldId::kSig})) {
    facts.signature = xattr_of(file.fd, "security.ima");
    if (facts.signature.empty() || (facts.signature[0] != 0x03 && facts.signature[0] != 0x06)) {
      facts.signature = xattr_of(file.fd, "security.evm");
      if (facts.signature.empty() || facts.signature[0] != 0x05) facts.signature.clear();
    }
  }
  if (!wants({FieldId::kEvmSig, FieldId::kIuid, FieldId::kIgid, FieldId::kImode, FieldId::kXattrNames,
              FieldId::kXattrLengths, FieldId::kXattrValues})) {
    return facts;
  }
  EntryFacts::File about;
  if (const auto attr = stat_of(file.fd)) {
    about.uid = attr->st_uid;
    about.gid = attr->st_gid;
    about.mode = static_cast<std::uint16_t>(attr->st_mode);
  }
  about.evm_signature = xattr_of(file.fd, "security.evm");
  if (!about.evm_signature.empty() && about.evm_signature[0] != 0x05) about.evm_signature.clear();
  for (const std::string& name : protected_xattrs()) {
    if (auto value = find_xattr(file.fd, name.c_str())) about.xattrs.emplace_back(name, std::move(*value));
  }
  facts.file = std::move(about);
  return facts;
}

Status MeasureGate::store_measurement(const MeasureOrder& order, const Collected& collected, const NamedFile& file,
                                      const Requester& requester) {
  EntryFacts facts = facts_of(*order.form, file);
  facts.file_digest = collected.digest;
  facts.is_verity_digest = collected.is_verity;
  const HashAlgorithm algorithm = collected.digest.algorithm();
  if (order.form->has(FieldId::kD) && algorithm != HashAlgorithm::kSha1 && algorithm != HashAlgorithm::kMd5) {
    facts.legacy_digest = collected.legacy.value_or(Digest::zero(legacy_algorithm()));
  }
  const LogEntry entry = make_entry(*order.form, order.pcr, facts);
  const std::string path = options_.path_prefix + file.path;
  const auto appended = log_.append(entry, origin_of_file(requester, collected.size, entry, path));
  const bool reaches_no_pcr = appended && *appended == Appended::kLogged && order.pcr >= kTpmPcrs && log_.has_tpm();
  if (appended && !reaches_no_pcr) return {};
  AuditRecord record = record_of("add_template_measure", appended ? kNoSuchPcr : appended.error().what, requester);
  record.name = options_.path_prefix + file.path;
  record.device = device_name(file.device);
  record.inode = file.inode;
  record.succeeded = appended.has_value();
  report(record);
  if (!appended) return fail(appended.error());
  return {};
}

Status MeasureGate::store_violation(Violation violation, const NamedFile& file, const Requester& requester) {
  AuditRecord record =
      record_of("invalid_pcr", violation == Violation::kToMToU ? "ToMToU" : "open_writers", requester);
  record.name = options_.path_prefix + file.path;
  record.device = device_name(file.device);
  record.inode = file.inode;
  report(record);
  const LogEntry entry = make_violation(*options_.form, options_.pcr, options_.file_hash, facts_of(*options_.form, file));
  const auto appended = log_.append(entry, origin_of_file(requester, 0, entry, *record.name));
  if (!appended) return fail(appended.error());
  return {};
}

LogEntry MeasureGate::boot_aggregate_entry(const Digest& aggregate, std::optional<Digest> legacy) const {
  EntryFacts facts;
  facts.file_digest = aggregate;
  facts.legacy_digest = std::move(legacy);
  facts.name = "boot_aggregate";
  return make_entry(*options_.form, options_.pcr, facts);
}

std::optional<LogEntry> MeasureGate::own_data_entry(std::string_view label, std::string_view name, std::string_view data) const {
  return critical_data_entry(loaded()->rules.policy(), {label, name, as_bytes(data)}, Requester{});
}

Result<bool> MeasureGate::measure_critical_data(std::string_view label, std::string_view name, ByteView data,
                                                bool hashed, const Requester& requester) {
  const auto entry = critical_data_entry(loaded()->rules.policy(), {label, name, data, hashed}, requester);
  if (!entry) return false;
  const auto appended = log_.append(*entry, origin_of(requester));
  if (appended) return true;
  AuditRecord record = record_of("measuring_critical_data", "store_entry", requester);
  record.name = std::string(name);
  record.succeeded = false;
  record.errno_value = -appended.error().code;
  report(record);
  return fail(appended.error());
}

std::optional<LogEntry> MeasureGate::critical_data_entry(const Policy& policy, const Buffer& buffer,
                                                         const Requester& requester) const {
  if (!options_.enabled || buffer.label.empty() || buffer.name.empty() || buffer.data.empty()) return std::nullopt;
  Event event;
  event.hook = Hook::kCriticalData;
  event.uid = requester.uid;
  event.gid = requester.gid;
  event.label = buffer.label;
  const Decision decision = match(policy, event);
  if (!decision.must_measure()) return std::nullopt;
  const Rule& rule = *decision.measure;

  const Template* const form = rule.form ? rule.form : find_builtin_template("ima-buf");
  EntryFacts facts;
  facts.name = loggable_name(buffer.name);
  Digest digest = hash_of(options_.file_hash, buffer.data);
  if (buffer.hashed) {
    facts.buffer.assign(digest.bytes().begin(), digest.bytes().end());
    digest = hash_of(options_.file_hash, facts.buffer);
  } else {
    facts.buffer.assign(buffer.data.begin(), buffer.data.end());
  }
  facts.file_digest = digest;
  const std::uint32_t pcr = rule.pcr.value_or(0) == 0 ? options_.pcr : *rule.pcr;
  return make_entry(*form, pcr, facts);
}

}  // namespace imafs
