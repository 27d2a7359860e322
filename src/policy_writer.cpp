// The kernel parses the first line of each write(2) and returns its length; tools loop over the
// rest.
//
// Offsets. The kernel's handler refuses every offset but 0 and never moves the file's position, so
// write after write arrives at 0. FUSE moves the position by what a write returned, so here the
// second write of an open arrives where the first one ended. IMA: an offset is therefore good if it
// is 0 or the end of an earlier write, anything else is EINVAL as in the kernel. With O_APPEND the
// FUSE kernel side puts in the size it remembers, which says nothing: any offset is good.
//
// Lines without a newline. To the kernel they are whole rules (`echo -n RULE`), whatever follows.
// IMA: three kinds of write without a newline are kept as the beginning of a line instead, because
// their writer cuts by size and not by line; the line is judged when its newline or the close
// comes:
//   * a single byte (`dd bs=1`; no rule is that short, the kernel answers EINVAL);
//   * a multiple of 512 bytes (`dd`, stdio);
//   * the end of a buffer that was such a multiple when it was first offered (`cat` of a long file:
//     its buffer ends within a line, and the kernel would take the piece for a rule).
#include "imafs/policy_writer.h"

#include <algorithm>
#include <array>
#include <utility>

namespace imafs {
namespace {

constexpr std::size_t kBlock = 512;
constexpr std::string_view kLineEnds("\n\0", 2);  // a NUL ends the kernel's C string

constexpr std::array<std::string_view, 8> kActions = {"measure",       "dont_measure", "appraise",
                                                      "dont_appraise", "audit",        "dont_audit",
                                                      "hash",          "dont_hash"};
constexpr std::array<std::string_view, 32> kKeys = {
    "func=",          "mask=",          "fsmagic=", "fsname=",   "fs_subtype=",  "fsuuid=",
    "uid=",           "uid>",           "uid<",     "euid=",     "euid>",        "euid<",
    "gid=",           "gid>",           "gid<",     "egid=",     "egid>",        "egid<",
    "fowner=",        "fowner>",        "fowner<",  "fgroup=",   "fgroup>",      "fgroup<",
    "keyrings=",      "label=",         "pcr=",     "template=", "digest_type=", "appraise_type=",
    "appraise_flag=", "appraise_algos="};
constexpr std::array<std::string_view, 7> kOtherKeys = {
    "obj_user=", "obj_role=", "obj_type=", "subj_user=", "subj_role=", "subj_type=", "path="};

bool is_known(std::string_view token) {
  const auto starts_token = [&](std::string_view key) {
    return token.starts_with(key) && token.size() > key.size();
  };
  return std::ranges::any_of(kKeys, starts_token) || std::ranges::any_of(kOtherKeys, starts_token);
}

AuditRecord status_record(std::string op, std::string cause) {
  AuditRecord record;
  record.type = AuditRecord::Type::kStatus;
  record.op = std::move(op);
  record.cause = std::move(cause);
  record.succeeded = false;
  return record;
}

}  // namespace

std::string rule_record_text(std::string_view line, const PolicyError* error) {
  std::string text;
  bool has_action = false;
  std::size_t at = 0;
  while ((at = line.find_first_not_of(" \t", at)) != std::string_view::npos) {
    const std::size_t end = std::min(line.find_first_of(" \t", at), line.size());
    const std::string_view token = line.substr(at, end - at);
    if (token.front() == '#') break;
    const bool is_action = std::ranges::find(kActions, token) != kActions.end();
    if (is_action) {
      text += "action=" + std::string(token) + ' ';
    } else if (token != "permit_directio") {  // which the kernel does not show
      text += (is_known(token) ? "" : "UNKNOWN=") + printable(token) + ' ';
    }
    // An error at the action is one of the whole rule, found when every token was read.
    const bool is_whole_rule = is_action && !std::exchange(has_action, true);
    if (error && !is_whole_rule && error->column > at && error->column <= end) break;
    at = end;
  }
  return text + (error ? "res=0" : "res=1");
}

PolicyWriter::PolicyWriter(Sources sources) : sources_(std::move(sources)) {}

Result<std::size_t> PolicyWriter::write(std::uint64_t offset, std::string_view text,
                                        Position position) {
  if (text.empty()) return 0;
  if (position == Position::kAsGiven && !continues_at(offset)) {
    return refuse(
        EINVAL, "a policy is written from its beginning, not at offset " + std::to_string(offset));
  }
  auto consumed = take_line(text);
  if (consumed) advance(offset, *consumed, text.size());
  return consumed;
}

std::vector<Rule> PolicyWriter::close() {
  if (!partial_.empty()) (void)add_line(std::exchange(partial_, {}));  // an error loses the update
  rest_of_block_ = 0;
  auto rules = std::exchange(rules_, {});
  if (lost_) rules.clear();
  return rules;
}

void PolicyWriter::lose(const std::string& reason) {
  lost_ = true;
  partial_.clear();
  if (sources_.refused) sources_.refused(reason);
}

tl::unexpected<Error> PolicyWriter::refuse(int code, const std::string& reason) {
  lose(reason);
  return fail(code, reason);
}

bool PolicyWriter::continues_at(std::uint64_t offset) const {
  return offset == 0 || offset == last_end_ || offset == farthest_end_;
}

void PolicyWriter::advance(std::uint64_t offset, std::size_t consumed, std::size_t asked) {
  last_end_ = offset + consumed;
  farthest_end_ = std::max(farthest_end_, last_end_);
  if (asked != rest_of_block_) block_ = asked;
  rest_of_block_ = asked - consumed;
}

bool PolicyWriter::may_go_on(std::string_view text) const {
  if (text.size() == 1 || text.size() % kBlock == 0) return true;
  return text.size() == rest_of_block_ && block_ % kBlock == 0;
}

Result<std::size_t> PolicyWriter::take_line(std::string_view text) {
  const std::size_t end = text.find_first_of(kLineEnds);
  const std::string_view piece = text.substr(0, end);
  if (partial_.size() + piece.size() > kMaxPolicyLine) {
    return refuse(
        EINVAL, "a line of the policy is longer than " + std::to_string(kMaxPolicyLine) + " bytes");
  }
  if (end == std::string_view::npos && may_go_on(text)) {
    partial_ += text;
    return text.size();
  }
  const bool is_path = partial_.empty() && piece.starts_with('/');
  const std::string line = std::exchange(partial_, {}) + std::string(piece);
  if (const auto added = add_line(line); !added) return fail(added.error());
  // The kernel takes the whole string for a path's, and never looks at lines behind its newline.
  if (is_path) return std::min(text.find('\0'), text.size());
  // IMA: for a line without a newline the kernel returns one more than was asked; FUSE would turn
  // that into EIO.
  return std::min(piece.size() + 1, text.size());
}

Status PolicyWriter::add_line(std::string_view line) {
  ++line_number_;
  if (line.starts_with('/')) return add_file(std::string(line));
  if (needs_signature()) {
    if (sources_.report) sources_.report(status_record("policy_update", "signed policy required"));
    return refuse(
        EACCES, "a rule 'appraise func=POLICY_CHECK' is active: rules cannot be written any more");
  }
  return add_rule(line, sources_.origin, line_number_);
}

Status PolicyWriter::add_rule(std::string_view line, const std::string& origin,
                              unsigned line_number) {
  ParseContext context;
  context.origin = origin;
  context.custom_template = sources_.custom_template;
  context.builtin_policy_active = sources_.active_policy()->is_builtin;
  context.labels_known = sources_.labels_known;
  auto parsed = parse_rule(line, context, line_number);
  if (parsed && !*parsed) return {};  // blank or a comment

  AuditRecord record;
  record.type = AuditRecord::Type::kPolicyRule;
  record.succeeded = parsed.has_value();
  record.text = rule_record_text(line, parsed ? nullptr : &parsed.error());
  if (sources_.report) sources_.report(std::move(record));
  if (!parsed) {
    if (sources_.report) sources_.report(status_record("update_policy", "invalid-policy"));
    return refuse(parsed.error().code, parsed.error().to_text());
  }
  if (rules_.size() >= kMaxUpdateRules) {
    return refuse(ENOSPC,
                  "more than " + std::to_string(kMaxUpdateRules) + " rules in one policy update");
  }
  rules_.push_back(std::move(**parsed));
  return {};
}

// The kernel opens the file itself: it must be a regular file that ends in a newline.
Status PolicyWriter::add_file(const std::string& path) {
  if (needs_signature()) {
    // The kernel would look for a signature. IMA: nothing is appraised here, and an unchecked file
    // must not pass for a signed one.
    return refuse(
        EACCES, "a rule 'appraise func=POLICY_CHECK' is active, and signatures are not checked: '" +
                    path + "' cannot be loaded");
  }
  const auto content = sources_.read_policy_file(path);
  if (!content) {
    return refuse(content.error().code == EISDIR ? EINVAL : content.error().code,
                  content.error().what);
  }
  if (!content->ends_with('\n')) {
    return refuse(EINVAL, "policy file '" + path +
                              (content->empty() ? "' is empty" : "' does not end in a newline"));
  }
  if (content->find('\0') != std::string::npos)
    return refuse(EINVAL, "policy file '" + path + "' holds a NUL byte");
  std::string_view rest = *content;
  for (unsigned number = 1; !rest.empty(); ++number) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(line.size() + 1);
    if (line.size() > kMaxPolicyLine) {
      return refuse(EINVAL, path + ":" + std::to_string(number) + ": line longer than " +
                                std::to_string(kMaxPolicyLine) + " bytes");
    }
    if (auto added = add_rule(line, path, number); !added) return added;
  }
  return {};
}

bool PolicyWriter::needs_signature() {
  auto policy = sources_.active_policy();
  if (policy != judged_) {
    judged_ = std::move(policy);
    judged_needs_signature_ = std::ranges::any_of(judged_->rules, [](const Rule& rule) {
      return rule.action == Action::kAppraise && rule.hook == Hook::kPolicyCheck;
    });
  }
  return judged_needs_signature_;
}

}  // namespace imafs
