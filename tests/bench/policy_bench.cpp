// What a policy of 1,000 rules costs: to load, and to decide on an event that none of the first 999 is about. One
// policy for each condition, and one that mixes them. policy_limits.py holds the results to their limits.
#include <benchmark/benchmark.h>

#include "imafs/policy_matcher.h"
#include "imafs/policy_parser.h"

namespace imafs {
namespace {

constexpr int kRules = 1000;

class File final : public EventSource {
 public:
  std::optional<Credentials> credentials() override { return Credentials{}; }
  std::string_view path() override { return "/usr/bin/env"; }
  const FileSystem& file_system() override { return system_; }

 private:
  FileSystem system_{0xef53, "ext4", "", std::array<std::uint8_t, 16>{1}};
};

// Condition number `kind` with a value that the event has not.
std::string condition(int kind, int i) {
  const std::string n = std::to_string(i + 100);
  switch (kind) {
    case 0: return "uid=" + n;
    case 1: return "euid=" + n;
    case 2: return "gid=" + n;
    case 3: return "egid=" + n;
    case 4: return "fowner=" + n;
    case 5: return "fgroup=" + n;
    case 6: return "fsmagic=0x" + n;
    case 7: return "fsname=fs" + n;
    case 8: return "fs_subtype=sub" + n;
    case 9: return "fsuuid=11111111-2222-3333-4444-" + std::string(12 - n.size(), '0') + n;
    case 10: return "path=/home/user" + n + "/**";
    case 11: return "path=/usr/bin/" + n + "/**";  // alike in what is looked at first
    default: return "mask=MAY_WRITE";
  }
}
constexpr int kKinds = 13;
const char* const kNames[] = {"uid",    "euid",       "gid",    "egid", "fowner",     "fgroup", "fsmagic",
                              "fsname", "fs_subtype", "fsuuid", "path", "path_alike", "mask",   "mixed"};

std::string policy_text(int kind) {
  std::string text;
  for (int i = 0; i + 1 < kRules; ++i) {
    text += "dont_measure func=FILE_CHECK " + condition(kind == kKinds ? i % kKinds : kind, i) + "\n";
  }
  return text + "measure func=FILE_CHECK mask=MAY_READ\n";
}

void load(benchmark::State& state) {
  const std::string text = policy_text(kKinds);
  for (auto _ : state) {
    Policy policy;
    policy.rules = *parse_policy(text, {});
    benchmark::DoNotOptimize(CompiledPolicy(std::move(policy)));
  }
}

void decide(benchmark::State& state) {
  const int kind = static_cast<int>(state.range(0));
  Policy policy;
  policy.rules = *parse_policy(policy_text(kind), {});
  const CompiledPolicy compiled(std::move(policy));
  File file;
  Event event;
  event.source = &file;
  event.mask = kMayRead;
  for (auto _ : state) {
    const Decision decision = compiled.match(event);
    if (!decision.must_measure()) state.SkipWithError("the last rule decides");
    benchmark::DoNotOptimize(decision);
  }
  state.SetLabel(kNames[kind]);
}

BENCHMARK(load)->Unit(benchmark::kMicrosecond);
BENCHMARK(decide)->DenseRange(0, kKinds);

}  // namespace
}  // namespace imafs

BENCHMARK_MAIN();
