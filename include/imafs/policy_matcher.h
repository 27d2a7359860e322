// Decides what a policy asks for an event. Pure; thread-safe; allocation-free; 1 us for 1,000 rules.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "imafs/policy.h"

namespace imafs {

// Facts of an event that cost something to learn: asked only if a rule needs them, once an event.
class EventSource {
 public:
  virtual ~EventSource() = default;
  struct Credentials {
    std::uint32_t uid = 0, euid = 0, suid = 0, gid = 0, egid = 0, sgid = 0;
    bool can_setuid = false;  // CAP_SETUID, CAP_SETGID effective
    bool can_setgid = false;
  };
  // Of the requester; nothing if it is gone (a rule that needs it then matches: measuring too much is safe,
  // for dont_ rules it does not match).
  virtual std::optional<Credentials> credentials() = 0;
  virtual std::string_view path() = 0;  // inside the mount, absolute: the name it was opened by, as far as that is known
  // All names it may have been opened by. A rule that measures matches if one of them does, a dont_ rule only if all do; where
  // names may be missing the one always matches and the other never: measuring too much is safe.
  struct Names {
    std::vector<std::string> paths;
    bool is_complete = true;
  };
  virtual const Names& names() {
    names_.paths.assign(1, std::string(path()));
    return names_;
  }
  struct FileSystem {
    std::uint64_t magic = 0;
    std::string name;     // "ext4"
    std::string subtype;  // empty: none
    std::optional<std::array<std::uint8_t, 16>> uuid;
  };
  virtual const FileSystem& file_system() = 0;
  // Of the file and of the requester; empty: none.
  virtual std::string object_label() { return ""; }
  virtual std::string subject_label() { return ""; }

 private:
  Names names_;
};

struct Event {
  Hook hook = Hook::kFileCheck;
  unsigned mask = 0;
  std::uint32_t uid = 0, gid = 0;        // of the requester: real ids, as far as a file system knows
  std::uint32_t fowner = 0, fgroup = 0;  // of the file
  std::string_view label;                // kCriticalData, kKeyCheck (keyring)
  EventSource* source = nullptr;         // null for critical data
};

struct Decision {
  const Rule* measure = nullptr;   // the deciding rule of each class, also a dont_ one; null: none
  const Rule* appraise = nullptr;
  const Rule* audit = nullptr;
  const Rule* hash = nullptr;
  bool hash_taken_back = false;    // by an appraise rule: the class is closed

  bool must_measure() const { return measure && measure->action == Action::kMeasure; }
};

Decision match(const Policy& policy, const Event& event);

class PolicyIndex;

// The same answers, sooner: for a policy that stands for a while.
class CompiledPolicy {
 public:
  explicit CompiledPolicy(Policy policy);

  const Policy& policy() const { return policy_; }
  Decision match(const Event& event) const;

 private:
  bool is_decided(const Decision& decision) const;

  Policy policy_;
  std::shared_ptr<const PolicyIndex> index_;
  std::array<bool, 4> has_class_{};
};

// path= globs: '*' and '?' stop at '/', '**' does not.
bool glob_matches(std::string_view glob, std::string_view path);

}  // namespace imafs
