#include "policy_index.h"

#include <algorithm>
#include <cstring>

namespace imafs {
namespace {

constexpr std::size_t kStep = 64;  // rules

void set(RuleBits& bits, std::uint32_t rule) {
  bits[rule / 64] |= std::uint64_t{1} << (rule % 64);
}

void add_all(const RuleBits& from, RuleBits& to) {
  for (std::size_t i = 0; i < from.size(); ++i) to[i] |= from[i];
}

// FNV-1a, a byte at a time: the keys of all beginnings of a path come out of one pass.
constexpr std::uint64_t kHashStart = 0xcbf29ce484222325;
std::uint64_t hash_on(std::uint64_t hash, char byte) {
  return (hash ^ static_cast<std::uint8_t>(byte)) * 0x100000001b3;
}

// Keys may collide: whatever is found here is looked at in full.
std::uint64_t key_of(std::string_view text) {
  std::uint64_t hash = kHashStart;
  for (const char byte : text) hash = hash_on(hash, byte);
  return hash;
}

std::uint64_t key_of(const std::array<std::uint8_t, 16>& uuid) {
  std::array<std::uint64_t, 2> halves{};
  std::memcpy(halves.data(), uuid.data(), uuid.size());
  return halves[0] ^ halves[1] * 0x9e3779b97f4a7c15;
}

std::string_view literal_beginning(std::string_view glob) {
  return glob.substr(0, glob.find_first_of("*?"));
}

}  // namespace

void ConditionIndex::Ordered::finish(std::size_t words) {
  RuleBits bits(words);
  for (std::size_t i = 0; i < rules.size(); ++i) {
    set(bits, rules[i].second);
    if ((i + 1) % kStep == 0) first.push_back(bits);
  }
}

void ConditionIndex::Ordered::add(std::size_t count, RuleBits& out) const {
  const std::size_t steps = count / kStep;
  if (steps > 0) add_all(first[steps - 1], out);
  for (std::size_t i = steps * kStep; i < count; ++i) set(out, rules[i].second);
}

void ConditionIndex::finish(std::size_t words) {
  used_ = !equal_.empty() || !above_.rules.empty() || !below_.rules.empty();
  if (used_) {
    others_.resize(words);
    for (const std::uint32_t rule : others_list_) set(others_, rule);
  }
  others_list_ = {};
  for (auto& [value, rules] : equal_) {
    if (rules.list.size() <= words) continue;
    rules.bits.resize(words);
    for (const std::uint32_t rule : rules.list) set(rules.bits, rule);
    rules.list = {};
  }
  std::sort(above_.rules.begin(), above_.rules.end());
  std::sort(below_.rules.rbegin(), below_.rules.rend());
  above_.finish(words);
  below_.finish(words);
}

void ConditionIndex::add(std::uint64_t value, RuleBits& out) const {
  if (const auto found = equal_.find(value); found != equal_.end()) {
    add_all(found->second.bits, out);
    for (const std::uint32_t rule : found->second.list) set(out, rule);
  }
  const auto fitting = [&](const Ordered& ordered, auto fits) {
    return static_cast<std::size_t>(std::partition_point(ordered.rules.begin(), ordered.rules.end(), fits) -
                                    ordered.rules.begin());
  };
  above_.add(fitting(above_, [&](const auto& rule) { return rule.first < value; }), out);
  below_.add(fitting(below_, [&](const auto& rule) { return rule.first > value; }), out);
}

PolicyIndex::PolicyIndex(const std::vector<Rule>& rules) : words_((rules.size() + 63) / 64) {
  for (std::uint32_t i = 0; i < rules.size(); ++i) add(rules[i], i);
  for (ConditionIndex& kind : kinds_) kind.finish(words_);
  std::sort(path_lengths_.begin(), path_lengths_.end());
  path_lengths_.erase(std::unique(path_lengths_.begin(), path_lengths_.end()), path_lengths_.end());
}

void PolicyIndex::add(const Rule& rule, std::uint32_t number) {
  const auto equal = [&](Kind kind, const auto& condition, auto key) {
    condition ? kinds_[kind].asks_for(key(*condition), number) : kinds_[kind].asks_nothing(number);
  };
  const auto text = [](const std::string& value) { return key_of(std::string_view(value)); };
  if (rule.hook == Hook::kNone) {
    kinds_[kHook].asks_nothing(number);
  } else {
    kinds_[kHook].asks_for(static_cast<std::uint64_t>(rule.hook), number);
  }
  if (!rule.mask) kinds_[kMask].asks_nothing(number);
  for (unsigned mask = 0; rule.mask && mask < 16; ++mask) {
    if (rule.mask_contains ? (mask & *rule.mask) != 0 : mask == *rule.mask) kinds_[kMask].asks_for(mask, number);
  }
  add_id(kUid, rule.uid_is_euid ? std::nullopt : rule.uid, number);
  add_id(kEuid, rule.uid_is_euid ? rule.uid : std::nullopt, number);
  add_id(kGid, rule.gid_is_egid ? std::nullopt : rule.gid, number);
  add_id(kEgid, rule.gid_is_egid ? rule.gid : std::nullopt, number);
  add_id(kOwner, rule.fowner, number);
  add_id(kGroup, rule.fgroup, number);
  equal(kMagic, rule.fsmagic, [](std::uint64_t magic) { return magic; });
  equal(kName, rule.fsname, text);
  equal(kSubtype, rule.fs_subtype, text);
  equal(kUuid, rule.fsuuid, [](const auto& uuid) { return key_of(uuid); });
  if (rule.paths.empty()) kinds_[kPath].asks_nothing(number);
  for (const std::string& glob : rule.paths) {
    const std::string_view beginning = literal_beginning(glob);
    kinds_[kPath].asks_for(key_of(beginning), number);
    path_lengths_.push_back(beginning.size());
  }
}

void PolicyIndex::add_id(Kind kind, const std::optional<IdCondition>& condition, std::uint32_t number) {
  ConditionIndex& index = kinds_[kind];
  if (!condition) return index.asks_nothing(number);
  switch (condition->op) {
    case IdOperator::kEqual: return index.asks_for(condition->value, number);
    case IdOperator::kGreater: return index.asks_for_more_than(condition->value, number);
    case IdOperator::kLess: return index.asks_for_less_than(condition->value, number);
  }
}

bool PolicyIndex::asks(Kind kind, const RuleBits& bits) const {
  const ConditionIndex& index = kinds_[kind];
  if (!index.is_used()) return false;
  for (std::size_t i = 0; i < words_; ++i) {
    if ((bits[i] & ~index.others()[i]) != 0) return true;
  }
  return false;
}

void PolicyIndex::narrow(Kind kind, std::initializer_list<std::uint64_t> values, RuleBits& bits) const {
  const ConditionIndex& index = kinds_[kind];
  if (!index.is_used()) return;
  thread_local RuleBits fits;
  fits = index.others();
  for (const std::uint64_t value : values) index.add(value, fits);
  for (std::size_t i = 0; i < words_; ++i) bits[i] &= fits[i];
}

void PolicyIndex::narrow_by_names(const EventSource::Names& names, RuleBits& bits) const {
  if (!names.is_complete) return;
  const ConditionIndex& index = kinds_[kPath];
  thread_local RuleBits fits;
  fits = index.others();
  for (const std::string& path : names.paths) {
    std::uint64_t hash = kHashStart;
    std::size_t hashed = 0;
    for (const std::size_t length : path_lengths_) {
      if (length > path.size()) break;
      while (hashed < length) hash = hash_on(hash, path[hashed++]);
      index.add(hash, fits);
    }
  }
  for (std::size_t i = 0; i < words_; ++i) bits[i] &= fits[i];
}

const RuleBits& PolicyIndex::candidates(const Event& event) const {
  thread_local RuleBits bits;
  bits.assign(words_, ~std::uint64_t{0});
  narrow(kHook, {static_cast<std::uint64_t>(event.hook)}, bits);
  narrow(kUid, {event.uid}, bits);
  // Data without a file: nothing else is looked at.
  if (event.hook == Hook::kCriticalData || event.hook == Hook::kKeyCheck) return bits;
  narrow(kMask, {event.mask & 0xf}, bits);
  narrow(kGid, {event.gid}, bits);
  narrow(kOwner, {event.fowner}, bits);
  narrow(kGroup, {event.fgroup}, bits);
  if (asks(kMagic, bits) || asks(kName, bits) || asks(kSubtype, bits) || asks(kUuid, bits)) {
    const auto& system = event.source->file_system();
    narrow(kMagic, {system.magic}, bits);
    narrow(kName, {key_of(std::string_view(system.name))}, bits);
    narrow(kSubtype, {key_of(std::string_view(system.subtype))}, bits);
    system.uuid ? narrow(kUuid, {key_of(*system.uuid)}, bits) : narrow(kUuid, {}, bits);
  }
  if (asks(kEuid, bits) || asks(kEgid, bits)) {
    // Without credentials (the requester is gone) the full look decides.
    if (const auto ids = event.source->credentials()) {
      narrow(kEuid, {ids->euid, ids->can_setuid ? ids->suid : ids->euid, ids->can_setuid ? ids->uid : ids->euid}, bits);
      narrow(kEgid, {ids->egid, ids->can_setgid ? ids->sgid : ids->egid, ids->can_setgid ? ids->gid : ids->egid}, bits);
    }
  }
  if (asks(kPath, bits)) narrow_by_names(event.source->names(), bits);
  return bits;
}

}  // namespace imafs
