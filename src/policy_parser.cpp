#include "imafs/policy_parser.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>

namespace imafs {
namespace {

constexpr std::size_t kMaxLine = 4095;  // bytes: one page without its NUL
constexpr std::size_t kUuidText = 36;
constexpr std::uint32_t kMaxPcr = 63;
constexpr std::string_view kBlank = " \t";

constexpr std::string_view kKeysHint =
    "keys: func mask fsmagic fsname fs_subtype fsuuid uid euid gid egid fowner fgroup obj_user obj_role obj_type "
    "subj_user subj_role subj_type keyrings label path pcr template digest_type appraise_type appraise_flag "
    "appraise_algos permit_directio";
constexpr std::string_view kActionsHint =
    "actions: measure dont_measure appraise dont_appraise audit dont_audit hash dont_hash";

struct Problem {
  std::size_t column = 0;  // 0-based
  std::string message;
  std::string hint;
  int code = EINVAL;
};

std::optional<Hook> hook_named(std::string_view name) {
  if (name == "PATH_CHECK") return Hook::kFileCheck;
  if (name == "FILE_MMAP") return Hook::kMmapCheck;
  for (unsigned i = 1; i <= static_cast<unsigned>(Hook::kSetxattrCheck); ++i) {
    if (name_of(static_cast<Hook>(i)) == name) return static_cast<Hook>(i);
  }
  return std::nullopt;
}

std::string hooks_hint() {
  std::string hint = "hooks:";
  for (unsigned i = 1; i <= static_cast<unsigned>(Hook::kSetxattrCheck); ++i) {
    hint += " " + std::string(name_of(static_cast<Hook>(i)));
  }
  return hint;
}

std::optional<unsigned> mask_named(std::string_view name) {
  if (name == "MAY_EXEC") return kMayExec;
  if (name == "MAY_WRITE") return kMayWrite;
  if (name == "MAY_READ") return kMayRead;
  if (name == "MAY_APPEND") return kMayAppend;
  return std::nullopt;
}

// As the kernel's kstrto*(): one '+' is allowed, nothing may follow; digits beyond 64 bits are told first.
std::optional<std::uint64_t> number(std::string_view text, int base, bool* too_large = nullptr) {
  if (text.starts_with('+')) text.remove_prefix(1);
  if (base == 16 && (text.starts_with("0x") || text.starts_with("0X"))) text.remove_prefix(2);
  std::uint64_t value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (too_large) *too_large = parsed.ec == std::errc::result_out_of_range;
  if (text.empty() || parsed.ec != std::errc() || parsed.ptr != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<std::array<std::uint8_t, 16>> uuid(std::string_view text) {
  if (text.size() < kUuidText) return std::nullopt;
  std::string digits;
  for (std::size_t i = 0; i < kUuidText; ++i) {
    const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    if (dash != (text[i] == '-')) return std::nullopt;
    if (!dash) digits += text[i];
  }
  const auto bytes = from_hex(digits);
  if (!bytes) return std::nullopt;
  std::array<std::uint8_t, 16> value{};
  std::copy(bytes->begin(), bytes->end(), value.begin());
  return value;
}

std::optional<std::vector<std::string>> items(std::string_view text) {
  std::vector<std::string> list;
  for (;;) {
    const std::size_t bar = text.find('|');
    if (bar == 0 || text.empty()) return std::nullopt;
    list.emplace_back(text.substr(0, bar));
    if (bar == std::string_view::npos) return list;
    text.remove_prefix(bar + 1);
  }
}

// One rule while its tokens come in.
class RuleBuilder {
 public:
  explicit RuleBuilder(const ParseContext& context) : context_(context) {}

  bool take(std::string_view token, std::size_t column) {
    column_ = column;
    if (take_action(token)) return ok();
    if (token == "permit_directio") {
      rule_.permit_directio = true;
      return true;
    }
    const std::size_t at = token.find_first_of("=<>");
    if (at == std::string_view::npos || at + 1 == token.size()) return refuse("unknown word '" + std::string(token) + "'", kKeysHint);
    key_ = token.substr(0, at);
    value_ = token.substr(at + 1);
    column_ = column + at + 1;
    if (token[at] != '=' && !is_id(key_)) return refuse("'" + std::string(key_) + "' takes only '='", "");
    if (is_id(key_)) return take_id(static_cast<IdOperator>(token[at]));
    return take_condition(column) || (problem_ ? false : refuse_at(column, "unknown key '" + std::string(key_) + "'", kKeysHint));
  }

  bool finish(std::size_t end) {
    column_ = 0;
    if (!has_action_) return refuse_at(end, "no action", kActionsHint);
    return check_options() && check_hook();
  }

  Rule& rule() { return rule_; }
  const std::optional<Problem>& problem() const { return problem_; }

 private:
  bool ok() const { return !problem_; }
  bool refuse_at(std::size_t column, std::string message, std::string_view hint) {
    if (!problem_) problem_ = Problem{column, std::move(message), std::string(hint)};
    return false;
  }
  bool refuse(std::string message, std::string_view hint) { return refuse_at(column_, std::move(message), hint); }
  bool twice() { return refuse("'" + std::string(key_) + "' is given twice", ""); }
  bool bad_value(std::string_view hint) {
    return refuse("'" + std::string(value_) + "' is no value of '" + std::string(key_) + "'", hint);
  }
  bool bad_number(bool too_large, std::string_view hint) {
    bad_value(hint);
    if (too_large) problem_->code = ERANGE;
    return false;
  }
  static bool is_id(std::string_view key) {
    return key == "uid" || key == "euid" || key == "gid" || key == "egid" || key == "fowner" || key == "fgroup";
  }

  bool take_action(std::string_view token) {
    for (unsigned i = 0; i <= static_cast<unsigned>(Action::kDontHash); ++i) {
      if (name_of(static_cast<Action>(i)) != token) continue;
      if (has_action_) refuse("a second action", "one rule has one action");
      rule_.action = static_cast<Action>(i);
      has_action_ = true;
      return true;
    }
    return false;
  }

  bool take_id(IdOperator op) {
    const bool is_user = key_ == "uid" || key_ == "euid";
    std::optional<IdCondition>& slot = is_user                                 ? rule_.uid
                                       : key_ == "gid" || key_ == "egid" ? rule_.gid
                                       : key_ == "fowner"                ? rule_.fowner
                                                                         : rule_.fgroup;
    if (slot) return twice();
    bool too_large = false;
    const auto value = number(value_, 10, &too_large);
    if (too_large) return bad_number(true, "a decimal number below 4294967295");
    if (!value || *value >= std::numeric_limits<std::uint32_t>::max()) return bad_value("a decimal number below 4294967295");
    slot = IdCondition{op, static_cast<std::uint32_t>(*value)};
    if (is_user) rule_.uid_is_euid = key_ == "euid";
    if (key_ == "gid" || key_ == "egid") rule_.gid_is_egid = key_ == "egid";
    return true;
  }

  // False with no problem set: the key is none of these.
  bool take_condition(std::size_t) {
    if (key_ == "func") return take_func();
    if (key_ == "mask") return take_mask();
    if (key_ == "fsmagic") {
      if (rule_.fsmagic.value_or(0) != 0) return twice();
      bool too_large = false;
      const auto value = number(value_, 16, &too_large);
      if (!value) return bad_number(too_large, "a hexadecimal number");
      rule_.fsmagic = *value;
      return true;
    }
    if (key_ == "fsname") {
      rule_.fsname = value_;
      return true;
    }
    if (key_ == "fs_subtype") {
      if (rule_.fs_subtype) return twice();
      rule_.fs_subtype = value_;
      return true;
    }
    if (key_ == "fsuuid") {
      if (rule_.fsuuid && rule_.fsuuid != std::array<std::uint8_t, 16>{}) return twice();  // all zeros is none to the kernel
      rule_.fsuuid = uuid(value_);
      return rule_.fsuuid ? true : bad_value("xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx");
    }
    if (key_ == "keyrings" || key_ == "label") {
      auto& slot = key_ == "label" ? rule_.labels : rule_.keyrings;
      if (!slot.empty()) return twice();
      auto list = items(value_);
      if (!list) return bad_value("names joined by '|'");
      slot = std::move(*list);
      return true;
    }
    if (key_ == "path") return take_path();
    return take_lsm() || (problem_ ? false : take_option());
  }

  bool take_func() {
    if (rule_.hook != Hook::kNone) return twice();
    const auto hook = hook_named(value_);
    if (!hook) return bad_value(hooks_hint());
    rule_.hook = *hook;
    return true;
  }

  bool take_mask() {
    if (rule_.mask) return twice();
    const bool contains = value_.starts_with('^');
    const auto mask = mask_named(contains ? value_.substr(1) : value_);
    if (!mask) return bad_value("MAY_READ MAY_WRITE MAY_APPEND MAY_EXEC, '^' before it for 'contains'");
    rule_.mask = *mask;
    rule_.mask_contains = contains;
    return true;
  }

  bool take_path() {
    if (!value_.starts_with('/')) return bad_value("an absolute path inside the mount; '*' and '?' stop at '/', '**' does not");
    rule_.paths.emplace_back(value_);
    return true;
  }

  bool take_lsm() {
    const auto found = std::find(kLsmKeys.begin(), kLsmKeys.end(), key_);
    if (found == kLsmKeys.end()) return false;
    auto& slot = rule_.lsm[static_cast<std::size_t>(found - kLsmKeys.begin())];
    if (context_.labels_known && slot) return twice();
    if (context_.builtin_policy_active && !context_.labels_known) {
      return refuse("no LSM knows the label '" + std::string(value_) + "'", "");
    }
    rule_.lsm_is_known = context_.labels_known;
    slot = value_;
    return true;
  }

  bool take_option() {
    if (key_ == "pcr") {
      const auto value = number(value_ == "-0" ? "0" : value_, 10);  // signed in the kernel
      if (!value || *value > kMaxPcr) return bad_value("0 to 63");
      rule_.pcr = static_cast<std::uint32_t>(*value);
      return true;
    }
    if (key_ == "template") return take_template();
    if (key_ == "digest_type") {
      if (value_ != "verity") return bad_value("verity");
      rule_.digest_is_verity = true;
      return true;
    }
    if (key_ == "appraise_type") return take_appraise_type();
    if (key_ == "appraise_flag") return true;  // the check it asked for is implied by every appraise_type
    if (key_ == "appraise_algos") return take_algorithms();
    return false;
  }

  bool take_template() {
    if (!has_action_ || rule_.action != Action::kMeasure) return refuse("'template' comes after 'measure'", "");
    if (rule_.form) return twice();
    rule_.form = find_builtin_template(value_);
    if (!rule_.form && context_.custom_template && context_.custom_template->format == value_) rule_.form = context_.custom_template;
    if (rule_.form) return true;
    return bad_value("ima ima-ng ima-sig ima-ngv2 ima-sigv2 ima-buf ima-modsig evm-sig, or the mount's own format");
  }

  bool take_appraise_type() {
    Rule::Signature wanted = Rule::Signature::kNone;
    if (value_ == "imasig") wanted = Rule::Signature::kImasig;
    if (value_ == "imasig|modsig") wanted = Rule::Signature::kImasigOrModsig;
    if (value_ == "sigv3") wanted = Rule::Signature::kSigV3;
    if (wanted == Rule::Signature::kNone) return bad_value("imasig, sigv3, imasig|modsig");
    const auto both = [&](Rule::Signature one, Rule::Signature other) { return rule_.signature == one && wanted == other; };
    if (both(Rule::Signature::kImasigOrModsig, Rule::Signature::kSigV3) || both(Rule::Signature::kSigV3, Rule::Signature::kImasigOrModsig)) {
      return refuse("an appended signature does not go with sigv3", "");
    }
    rule_.signature = std::max(rule_.signature, wanted);
    return true;
  }

  bool take_algorithms() {
    if (rule_.appraise_algos != 0) return twice();
    std::string_view rest = value_;
    while (true) {
      const std::size_t comma = rest.find(',');
      const auto algorithm = hash_algorithm_named(rest.substr(0, comma));
      if (!algorithm || !can_compute(*algorithm)) return bad_value("hash algorithms joined by ','");
      rule_.appraise_algos |= 1U << static_cast<unsigned>(*algorithm);
      if (comma == std::string_view::npos) return true;
      rest.remove_prefix(comma + 1);
    }
  }

  bool has_lsm() const {
    return std::any_of(rule_.lsm.begin(), rule_.lsm.end(), [](const auto& label) { return label.has_value(); });
  }
  bool has_file_system() const { return rule_.fsmagic || rule_.fsname || rule_.fs_subtype || rule_.fsuuid; }

  bool check_options() {
    const bool appraises = rule_.action == Action::kAppraise;
    if (rule_.pcr && rule_.action != Action::kMeasure) return refuse("'pcr' goes with 'measure' only", "");
    if (!appraises && (rule_.signature != Rule::Signature::kNone || rule_.appraise_algos != 0)) {
      return refuse("appraise options go with 'appraise' only", "");
    }
    if (rule_.digest_is_verity && (rule_.signature == Rule::Signature::kImasig || rule_.signature == Rule::Signature::kImasigOrModsig)) {
      return refuse("a verity digest goes with appraise_type=sigv3", "");
    }
    if (rule_.digest_is_verity && appraises && rule_.signature == Rule::Signature::kNone) {
      return refuse("appraising a verity digest needs appraise_type=sigv3", "");
    }
    return true;
  }

  bool check_hook() {
    const bool measures = rule_.action == Action::kMeasure || rule_.action == Action::kDontMeasure;
    const std::string hook(name_of(rule_.hook));
    if (!rule_.keyrings.empty() && rule_.hook != Hook::kKeyCheck) return refuse("'keyrings' goes with func=KEY_CHECK only", "");
    if (!rule_.labels.empty() && rule_.hook != Hook::kCriticalData) return refuse("'label' goes with func=CRITICAL_DATA only", "");
    switch (rule_.hook) {
      case Hook::kKexecCmdline:
        if (!measures || rule_.mask || rule_.digest_is_verity || rule_.permit_directio || !rule_.paths.empty()) {
          return refuse("not valid with func=" + hook, "measure or dont_measure; file system and id conditions, pcr, template");
        }
        return true;
      case Hook::kKeyCheck:
      case Hook::kCriticalData:
        if (!measures || rule_.mask || has_file_system() || rule_.fowner || rule_.fgroup || has_lsm() ||
            (rule_.uid && rule_.uid_is_euid) || (rule_.gid && rule_.gid_is_egid) || rule_.digest_is_verity ||
            rule_.permit_directio || !rule_.paths.empty()) {
          return refuse("not valid with func=" + hook, "measure or dont_measure; uid, gid, pcr, template, and the list");
        }
        return true;
      case Hook::kSetxattrCheck:
        if (rule_.action != Action::kAppraise || rule_.appraise_algos == 0 || rule_.mask || has_file_system() || rule_.uid ||
            rule_.gid || rule_.fowner || rule_.fgroup || has_lsm() || rule_.digest_is_verity || rule_.permit_directio ||
            rule_.signature != Rule::Signature::kNone || !rule_.paths.empty()) {
          return refuse("not valid with func=" + hook, "appraise with appraise_algos, and nothing else");
        }
        return true;
      case Hook::kModuleCheck:
      case Hook::kKexecKernelCheck:
      case Hook::kKexecInitramfsCheck:
        if (rule_.digest_is_verity || rule_.signature == Rule::Signature::kSigV3) return refuse("not valid with func=" + hook, "no verity, no sigv3");
        return true;
      default:
        if (rule_.signature == Rule::Signature::kImasigOrModsig) {
          return refuse("appended signatures go with MODULE_CHECK, KEXEC_KERNEL_CHECK and KEXEC_INITRAMFS_CHECK only", "");
        }
        return true;
    }
  }

  const ParseContext& context_;
  Rule rule_;
  bool has_action_ = false;
  std::string_view key_, value_;
  std::size_t column_ = 0;
  std::optional<Problem> problem_;
};

}  // namespace

std::string PolicyError::to_text() const {
  std::string text = origin + ":" + std::to_string(line) + ":" + std::to_string(column) + ": " + message + "\n";
  text += "  " + source_line + "\n  ";
  // Tabs stay tabs, so that the caret stands where the reader sees the column.
  for (unsigned i = 1; i < column; ++i) text += i <= source_line.size() && source_line[i - 1] == '\t' ? '\t' : ' ';
  text += "^\n";
  if (!hint.empty()) text += "  " + hint + "\n";
  return printable(text, "\n\t");
}

PolicyResult<std::optional<Rule>> parse_rule(std::string_view line, const ParseContext& context, unsigned line_number) {
  RuleBuilder builder(context);
  const auto error = [&](const Problem& problem) {
    return tl::unexpected<PolicyError>(PolicyError{context.origin, line_number, static_cast<unsigned>(problem.column + 1),
                                                   std::string(line), problem.message, problem.hint, problem.code});
  };
  if (line.size() > kMaxLine) return error({kMaxLine, "a line of more than 4095 bytes", "", EINVAL});
  bool any = false;
  std::size_t at = 0;
  while ((at = line.find_first_not_of(kBlank, at)) != std::string_view::npos) {
    if (line[at] == '#') break;
    const std::size_t end = std::min(line.find_first_of(kBlank, at), line.size());
    if (!builder.take(line.substr(at, end - at), at) || builder.problem()) return error(*builder.problem());
    any = true;
    at = end;
  }
  if (!any) return std::optional<Rule>();
  if (!builder.finish(line.size())) return error(*builder.problem());
  builder.rule().origin = context.origin;
  builder.rule().line = line_number;
  return std::optional<Rule>(std::move(builder.rule()));
}

PolicyResult<std::vector<Rule>> parse_policy(std::string_view text, const ParseContext& context) {
  std::vector<Rule> rules;
  unsigned number = 0;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    auto rule = parse_rule(text.substr(0, end), context, ++number);
    if (!rule) return tl::unexpected<PolicyError>(std::move(rule.error()));
    if (*rule) rules.push_back(std::move(**rule));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return rules;
}

}  // namespace imafs
