// Which rules of a policy an event can match, without looking at each: for every kind of condition a set of bits for
// each value that some rule asks for, and one AND a kind. What is left is few, and looked at in full by the matcher.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <unordered_map>
#include <utility>
#include <vector>

#include "imafs/policy_matcher.h"

namespace imafs {

using RuleBits = std::vector<std::uint64_t>;  // bit n: rule n

// One kind of condition: the rules that do not have it, and those that have it, by what they ask for.
class ConditionIndex {
 public:
  void asks_nothing(std::uint32_t rule) { others_list_.push_back(rule); }
  void asks_for(std::uint64_t value, std::uint32_t rule) { equal_[value].list.push_back(rule); }
  void asks_for_more_than(std::uint64_t value, std::uint32_t rule) { above_.rules.emplace_back(value, rule); }
  void asks_for_less_than(std::uint64_t value, std::uint32_t rule) { below_.rules.emplace_back(value, rule); }
  // After the last rule.
  void finish(std::size_t words);

  bool is_used() const { return used_; }
  const RuleBits& others() const { return others_; }
  // Adds those that `value` would do for.
  void add(std::uint64_t value, RuleBits& out) const;

 private:
  // A few rules as a list, many as bits.
  struct Rules {
    std::vector<std::uint32_t> list;
    RuleBits bits;
  };
  // Rules in the order of their values; those that fit a value are the first ones, as bits for each full step of them.
  struct Ordered {
    std::vector<std::pair<std::uint64_t, std::uint32_t>> rules;
    std::vector<RuleBits> first;
    void finish(std::size_t words);
    void add(std::size_t count, RuleBits& out) const;
  };

  bool used_ = false;
  std::vector<std::uint32_t> others_list_;
  RuleBits others_;
  std::unordered_map<std::uint64_t, Rules> equal_;
  Ordered above_, below_;  // ascending; descending
};

class PolicyIndex {
 public:
  explicit PolicyIndex(const std::vector<Rule>& rules);

  // The rules that `event` may match; it matches no other. Valid until this thread asks again.
  const RuleBits& candidates(const Event& event) const;

 private:
  enum Kind : std::uint8_t {
    kHook,
    kMask,
    kUid,
    kEuid,
    kGid,
    kEgid,
    kOwner,
    kGroup,
    kMagic,
    kName,
    kSubtype,
    kUuid,
    kPath,
    kKinds
  };

  void add(const Rule& rule, std::uint32_t number);
  void add_id(Kind kind, const std::optional<IdCondition>& condition, std::uint32_t number);
  // Whether a rule that is left has a condition of this kind, so that the event's value has to be known.
  bool asks(Kind kind, const RuleBits& bits) const;
  void narrow(Kind kind, std::initializer_list<std::uint64_t> values, RuleBits& bits) const;
  void narrow_by_names(const EventSource::Names& names, RuleBits& bits) const;

  std::size_t words_;
  std::array<ConditionIndex, kKinds> kinds_;
  std::vector<std::size_t> path_lengths_;  // of the literal beginnings of globs, ascending
};

}  // namespace imafs
