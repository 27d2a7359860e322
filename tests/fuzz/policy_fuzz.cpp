// Any text is a policy or an error; what parses prints back to something that parses to the same rules.
#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "imafs/policy_matcher.h"
#include "imafs/policy_parser.h"

namespace {

[[noreturn]] void broken() { std::abort(); }

std::size_t longest_line(std::string_view text) {
  std::size_t longest = 0;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    longest = std::max(longest, end);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return longest;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  imafs::ParseContext context;
  context.builtin_policy_active = false;
  context.labels_known = size % 2 == 1;
  const auto rules = imafs::parse_policy(text, context);
  if (!rules) {
    if (rules.error().line == 0 || rules.error().column == 0) broken();
    (void)rules.error().to_text();
    return 0;
  }
  imafs::Policy policy;
  policy.rules = *rules;
  const std::string printed = imafs::to_text(policy);
  // Ids from 2^31 on print as negative numbers, as the kernel prints them, and no parser takes those.
  for (const char* sign : {"id=-", "id>-", "id<-", "fowner=-", "fowner>-", "fowner<-", "fgroup=-", "fgroup>-", "fgroup<-"}) {
    if (printed.find(sign) != std::string::npos) return 0;
  }
  // The normal form ends in a blank and may say a thing in more bytes, so that it can pass the longest line there is.
  if (longest_line(printed) > 4095) return 0;
  const auto again = imafs::parse_policy(printed, context);
  if (!again) broken();
  imafs::Policy second;
  second.rules = *again;
  if (imafs::to_text(second) != printed) broken();
  imafs::Event event;
  event.hook = imafs::Hook::kCriticalData;
  event.label = "imafs";
  (void)imafs::match(policy, event);
  return 0;
}
