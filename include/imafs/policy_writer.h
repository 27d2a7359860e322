// One update of the policy, as open(2), write(2) and close(2) of the kernel's `policy` file make
// it: a line at a time, an error loses the whole update, the rules are handed over at the close.
// Knows nothing of files and handles; whoever holds it loads what close() gives.
//
// Not thread-safe: one update has one writer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "imafs/audit.h"
#include "imafs/policy.h"
#include "imafs/policy_parser.h"
#include "imafs/result.h"

namespace imafs {

// IMA: the kernel cuts a longer line and takes what is left as a rule; here it is EINVAL.
inline constexpr std::size_t kMaxPolicyLine = 4095;
// Rules of one update; beyond it ENOSPC, so that a runaway writer cannot eat the memory.
inline constexpr std::size_t kMaxUpdateRules = 65536;

class PolicyWriter {
 public:
  struct Sources {
    std::function<std::shared_ptr<const Policy>()> active_policy;  // never null
    std::function<Result<std::string>(const std::string& path)> read_policy_file;
    // Records without pid, uid and comm: the receiver knows them.
    std::function<void(AuditRecord)> report;
    // Why the update was refused, for a person; may be several lines.
    std::function<void(const std::string& reason)> refused;
    const Template* custom_template = nullptr;
    bool labels_known = false;  // as in ParseContext
    std::string origin = ".ima/policy";
  };
  explicit PolicyWriter(Sources sources);

  enum class Position { kAsGiven, kAppending };  // kAppending: O_APPEND, the offset means nothing
  // Takes one line off the front of `text`: bytes consumed, never more than there are. EINVAL: a
  // bad rule, a line too long, or a wrong offset. ENOENT and its like: of a policy file. EACCES:
  // only signed policies may be loaded. Any error loses the whole update; later lines are still
  // judged.
  Result<std::size_t> write(std::uint64_t offset, std::string_view text,
                            Position position = Position::kAsGiven);

  // The end of what was written so far. Takes the rules: none if there were none or the update is
  // lost.
  std::vector<Rule> close();

  bool is_lost() const { return lost_; }
  // Loses the update for a reason found elsewhere.
  void lose(const std::string& reason);

 private:
  bool continues_at(std::uint64_t offset) const;
  bool may_go_on(std::string_view text) const;
  void advance(std::uint64_t offset, std::size_t consumed, std::size_t asked);
  Result<std::size_t> take_line(std::string_view text);
  Status add_line(std::string_view line);
  Status add_rule(std::string_view line, const std::string& origin, unsigned line_number);
  Status add_file(const std::string& path);
  bool needs_signature();
  tl::unexpected<Error> refuse(int code, const std::string& reason);

  const Sources sources_;
  std::vector<Rule> rules_;
  bool lost_ = false;
  unsigned line_number_ = 0;
  std::string partial_;  // the beginning of a line whose end is still to come

  // The answer of needs_signature() for the policy it was last asked of.
  std::shared_ptr<const Policy> judged_;
  bool judged_needs_signature_ = false;

  // Where the next write may stand: the end of the last one, or of the farthest one.
  std::uint64_t last_end_ = 0;
  std::uint64_t farthest_end_ = 0;
  // The writer's buffer: how large it was when first offered, and what of it is still to come.
  std::size_t block_ = 0;
  std::size_t rest_of_block_ = 0;
};

// The text of the kernel's record 1807 for a line: its tokens as met, up to the one that is refused
// (1-based column), "res=1" or "res=0" at its end.
std::string rule_record_text(std::string_view line, const PolicyError* error);

}  // namespace imafs
