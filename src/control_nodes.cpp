#include "control_nodes.h"

#include <algorithm>

#include "imafs/digest.h"

namespace imafs {

void plant(ControlNodes& tree, const std::vector<Bank>& banks) {
  tree.add(ControlNode{});
  const auto file = [&](ControlKind kind, std::string name, mode_t mode) {
    ControlNode node;
    node.kind = kind;
    node.name = std::move(name);
    node.mode = mode;
    tree.add(std::move(node));
  };
  const auto view = [&](LogView::Form form, std::size_t bank, std::string name) {
    ControlNode node;
    node.kind = ControlKind::kView;
    node.name = std::move(name);
    node.mode = kReadable;
    node.view = {form, bank};
    tree.add(std::move(node));
  };
  const auto critical = [&](std::string name, bool hashed) {
    ControlNode node;
    node.kind = ControlKind::kCriticalRoot;
    node.name = std::move(name);
    node.mode = kWritableDirectory;
    node.hashed = hashed;
    tree.add(std::move(node));
  };

  const auto is_sha1 = [](const Bank& bank) { return bank.hash == HashAlgorithm::kSha1; };
  const auto sha1 = static_cast<std::size_t>(std::ranges::find_if(banks, is_sha1) - banks.begin());
  view(LogView::Form::kAscii, sha1, "measurements");
  view(LogView::Form::kAscii, sha1, "ascii_runtime_measurements");
  view(LogView::Form::kBinary, sha1, "binary_runtime_measurements");
  for (std::size_t bank = 0; bank < banks.size(); ++bank) {
    view(LogView::Form::kAscii, bank, "ascii_runtime_measurements_" + name_of(banks[bank]));
    view(LogView::Form::kBinary, bank, "binary_runtime_measurements_" + name_of(banks[bank]));
  }
  file(ControlKind::kCount, "runtime_measurements_count", kReadable);
  file(ControlKind::kViolations, "violations", kReadable);
  file(ControlKind::kPolicy, "policy", kWritable);
  file(ControlKind::kPolicyReplace, "policy_replace", kWritable);
  file(ControlKind::kTrim, "trim_log", kWriteOnly);
  critical("critical_data", false);
  critical("critical_data_hash", true);
  file(ControlKind::kStatus, "status", kReadable);
  file(ControlKind::kMetrics, "metrics", kReadable);
}

}  // namespace imafs
