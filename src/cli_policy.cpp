#include "imafs/cli_policy.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <iostream>

#include "imafs/default_policy.h"
#include "imafs/lsm_labels.h"
#include "imafs/policy_matcher.h"
#include "imafs/policy_parser.h"
#include "imafs/posix_file.h"
#include "imafs/unique_fd.h"

namespace imafs {
namespace {

constexpr std::size_t kMaxPolicyFile = 64 << 20;

ExitCode complain(const std::string& sentence, ExitCode code = ExitCode::kUsage) {
  std::fprintf(stderr, "imafs: %s\n", printable(sentence).c_str());
  return code;
}

// The default policy in force where no word is given. Nothing, and a complaint: it cannot be told.
std::optional<std::string> source_named(const std::string& word, ExitCode& code) {
  if (!word.empty()) return word;
  auto source = default_policy_source();
  if (source) return std::move(*source);
  code = complain(source.error().what);
  return std::nullopt;
}

// The rules behind a word: "builtin:NAME", a mount point, or a file.
std::optional<Policy> rules_of(const std::string& source, ExitCode& code) {
  code = ExitCode::kOk;
  constexpr std::string_view builtin = "builtin:";
  if (source.starts_with(builtin)) {
    auto policy = builtin_policy(std::string_view(source).substr(builtin.size()));
    if (policy) return std::move(*policy);
    code = complain(policy.error().what);
    return std::nullopt;
  }
  struct stat attr {};
  const bool is_mount = ::stat(source.c_str(), &attr) == 0 && S_ISDIR(attr.st_mode);
  const std::string path = is_mount ? source + "/.ima/policy" : source;
  const auto text = read_file(path, kMaxPolicyFile);
  if (!text) {
    code = complain(text.error().what);
    return std::nullopt;
  }
  ParseContext context;
  context.origin = is_mount ? ".ima/policy" : path;
  context.builtin_policy_active = !is_mount;  // what a start with this file would say
  context.labels_known = labels_are_known();
  auto rules = parse_policy(*text, context);
  if (!rules) {
    std::fputs(printable(rules.error().to_text(), "\n\t").c_str(), stderr);
    code = ExitCode::kMismatch;
    return std::nullopt;
  }
  Policy policy;
  policy.rules = std::move(*rules);
  policy.is_builtin = false;
  return policy;
}

// A file that nobody opens: what `explain` can know of it.
class ImaginedFile final : public EventSource {
 public:
  ImaginedFile(std::string path, std::uint32_t uid) : path_(std::move(path)), uid_(uid) {}
  std::optional<Credentials> credentials() override {
    Credentials ids;
    ids.uid = ids.euid = ids.suid = uid_;
    return ids;
  }
  std::string_view path() override { return path_; }
  const FileSystem& file_system() override { return system_; }

 private:
  std::string path_;
  std::uint32_t uid_;
  FileSystem system_;
};

std::string described(const Rule* rule) {
  if (!rule) return "no rule";
  std::string text = to_text(*rule);
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  text += "   (" + rule->origin;
  if (rule->line != 0) text += ":" + std::to_string(rule->line);
  return text + ")";
}

std::optional<Hook> hook_of(const std::string& name) {
  for (unsigned i = 1; i <= static_cast<unsigned>(Hook::kSetxattrCheck); ++i) {
    if (name_of(static_cast<Hook>(i)) == name) return static_cast<Hook>(i);
  }
  return std::nullopt;
}

std::optional<unsigned> mask_of(const std::string& name) {
  constexpr std::array<std::pair<const char*, unsigned>, 4> masks{
      {{"MAY_READ", kMayRead}, {"MAY_WRITE", kMayWrite}, {"MAY_APPEND", kMayAppend}, {"MAY_EXEC", kMayExec}}};
  for (const auto& [text, mask] : masks) {
    if (name == text) return mask;
  }
  return std::nullopt;
}

// The lines that are rules, each with a newline: what the kernel's policy file takes one by one.
std::vector<std::string> rule_lines(std::istream& input) {
  std::vector<std::string> lines;
  std::string line;
  while (std::getline(input, line)) {
    const std::size_t start = line.find_first_not_of(" \t");
    if (start == std::string::npos || line[start] == '#') continue;
    lines.push_back(line.substr(start) + "\n");
  }
  return lines;
}

}  // namespace

ExitCode policy_check(std::vector<std::string> files) {
  ExitCode worst = ExitCode::kOk;
  if (files.empty()) {
    auto source = source_named("", worst);
    if (!source) return worst;
    files.push_back(std::move(*source));
  }
  for (const std::string& file : files) {
    ExitCode code = ExitCode::kOk;
    const auto policy = rules_of(file, code);
    if (!policy) {
      if (worst != ExitCode::kUsage) worst = code;
      continue;
    }
    std::printf("%s: %zu rules\n", file.c_str(), policy->rules.size());
    for (const Rule& rule : policy->rules) {
      if (!can_fire(rule.hook)) {
        std::printf("%s:%u: note: %s never fires on a mount\n", file.c_str(), rule.line, std::string(name_of(rule.hook)).c_str());
      } else if (rule.action >= Action::kAppraise) {
        std::printf("%s:%u: note: %s rules load and print; imafs does not act on them yet\n", file.c_str(), rule.line,
                    std::string(name_of(rule.action)).c_str());
      }
    }
  }
  return worst;
}

ExitCode policy_show(const std::string& source) {
  ExitCode code = ExitCode::kOk;
  const auto named = source_named(source, code);
  if (!named) return code;
  if (const auto policy = rules_of(*named, code)) std::fputs(to_text(*policy).c_str(), stdout);
  return code;
}

ExitCode policy_load(const std::string& mountpoint, const std::string& file, bool replace) {
  std::vector<std::string> lines;
  if (file.empty()) {
    lines = rule_lines(std::cin);
  } else {
    std::ifstream input(file);
    if (!input) return complain(errno_error("cannot open '" + file + "'").what);
    lines = rule_lines(input);
  }
  if (lines.empty()) return complain("there is no rule to load", ExitCode::kPolicy);
  const std::string path = mountpoint + "/.ima/" + (replace ? "policy_replace" : "policy");
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) return complain(errno_error("cannot open '" + path + "'").what);
  for (const std::string& line : lines) {
    if (::write(fd.get(), line.data(), line.size()) == static_cast<ssize_t>(line.size())) continue;
    const auto error = errno_error("refused");
    // Say where, as check would.
    ParseContext context;
    context.origin = file.empty() ? "standard input" : file;
    context.labels_known = labels_are_known();
    const auto parsed = parse_rule(std::string_view(line).substr(0, line.size() - 1), context);
    if (!parsed) std::fputs(printable(parsed.error().to_text(), "\n\t").c_str(), stderr);
    return complain(error.what + "; nothing was loaded: " + line.substr(0, line.size() - 1), ExitCode::kPolicy);
  }
  return ExitCode::kOk;
}

ExitCode policy_explain(const ExplainOptions& options) {
  ExitCode code = ExitCode::kOk;
  const auto source = source_named(options.source, code);
  if (!source) return code;
  const auto policy = rules_of(*source, code);
  if (!policy) return code;
  std::vector<Hook> hooks{Hook::kFileCheck, Hook::kBprmCheck, Hook::kMmapCheck};
  if (!options.hook.empty()) {
    const auto hook = hook_of(options.hook);
    if (!hook) return complain("--func '" + options.hook + "' is no hook");
    hooks = {*hook};
  }
  std::optional<unsigned> mask;
  if (!options.mask.empty()) {
    mask = mask_of(options.mask);
    if (!mask) return complain("--mask '" + options.mask + "' is none of MAY_READ MAY_WRITE MAY_APPEND MAY_EXEC");
  }
  for (const std::string& path : options.paths) {
    std::printf("%s uid=%u\n", path.c_str(), options.uid);
    for (const Hook hook : hooks) {
      ImaginedFile file(path, options.uid);
      Event event;
      event.hook = hook;
      event.mask = mask.value_or(hook == Hook::kFileCheck ? kMayRead : kMayExec);
      event.uid = options.uid;
      event.source = &file;
      const Decision decision = match(*policy, event);
      std::printf("  %-11s measure   %s\n", std::string(name_of(hook)).c_str(), described(decision.measure).c_str());
      if (decision.appraise) std::printf("  %-11s appraise  %s\n", "", described(decision.appraise).c_str());
      if (decision.audit) std::printf("  %-11s audit     %s\n", "", described(decision.audit).c_str());
      if (decision.hash) std::printf("  %-11s hash      %s\n", "", described(decision.hash).c_str());
    }
  }
  return ExitCode::kOk;
}

}  // namespace imafs
