// What is in .ima/: the kinds of nodes, their modes and names. Not thread-safe.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "imafs/bank.h"
#include "imafs/measurement_log.h"

namespace imafs {

inline constexpr mode_t kDirectory = S_IFDIR | 0500;
inline constexpr mode_t kWritableDirectory = S_IFDIR | 0700;
inline constexpr mode_t kReadable = S_IFREG | 0400;
inline constexpr mode_t kWritable = S_IFREG | 0600;
inline constexpr mode_t kWriteOnly = S_IFREG | 0200;

enum class ControlKind {
  kRoot,
  kView,
  kCount,
  kViolations,
  kPolicy,
  kPolicyReplace,
  kTrim,
  kStatus,
  kMetrics,
  kCriticalRoot,  // critical_data/ and critical_data_hash/
  kLabel,
  kData,
};

struct ControlNode {
  ControlKind kind = ControlKind::kRoot;
  mode_t mode = kDirectory;
  std::string name;
  std::size_t parent = 0;
  LogView view;         // kView
  bool hashed = false;  // below critical_data_hash/

  bool is_directory() const { return S_ISDIR(mode); }
};

// Nodes are only ever added. A node's id is kControlRoot + its index.
struct ControlNodes {
  std::deque<ControlNode> nodes;
  std::map<std::pair<std::size_t, std::string>, std::size_t, std::less<>> children;

  std::size_t add(ControlNode node) {
    const std::size_t index = nodes.size();
    if (index > 0) children.emplace(std::pair(node.parent, node.name), index);
    nodes.push_back(std::move(node));
    return index;
  }
  std::optional<std::size_t> child(std::size_t parent, std::string_view name) const {
    const auto found = children.find(std::pair(parent, std::string(name)));
    if (found == children.end()) return std::nullopt;
    return found->second;
  }
};

// The root and what is in every mount's; a pair of log files for each of `banks`.
void plant(ControlNodes& tree, const std::vector<Bank>& banks);

}  // namespace imafs
