#include "log_header.h"

#include <algorithm>
#include <charconv>

namespace imafs {
namespace {

template <class Number>
std::optional<Number> number(std::string_view text) {
  Number value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || parsed.ec != std::errc() || parsed.ptr != text.data() + text.size()) return std::nullopt;
  return value;
}

std::string pcr_line(const std::string& bank, std::uint32_t pcr, const Bytes& value) {
  return bank + ":" + std::to_string(pcr) + ": " + to_hex(value) + "\n";
}

bool take(LogHeader& header, std::string_view key, std::string_view value) {
  if (key == "tpm") {
    header.tpm = value;
  } else if (key == "boot") {
    header.boot_id = value;
  } else if (key == "reset" || key == "pcr") {
    const auto parsed = number<std::uint32_t>(value);
    if (!parsed) return false;
    (key == "pcr" ? header.pcr : header.reset_count) = *parsed;
  } else if (key == "trimmed") {
    const auto parsed = number<std::uint64_t>(value);
    if (!parsed) return false;
    header.trimmed = *parsed;
  } else if (key == "digest") {
    const auto algorithm = hash_algorithm_named(value);
    if (!algorithm) return false;
    header.digests.push_back(*algorithm);
  } else if (key == "base") {
    auto values = parse_pcr_values(value, "base");
    if (!values) return false;
    for (auto& [bank, pcrs] : *values) header.base[bank].merge(pcrs);
  }
  return true;  // keys of a later version are passed over
}

}  // namespace

std::string to_text(const LogHeader& header) {
  std::string text = "tpm=" + header.tpm + "\nboot=" + header.boot_id + "\nreset=" + std::to_string(header.reset_count) +
                     "\npcr=" + std::to_string(header.pcr) + "\n";
  if (header.trimmed > 0) text += "trimmed=" + std::to_string(header.trimmed) + "\n";
  for (const HashAlgorithm algorithm : header.digests) text += "digest=" + std::string(name_of(algorithm)) + "\n";
  for (const auto& [bank, pcrs] : header.base) {
    for (const auto& [pcr, value] : pcrs) text += "base=" + pcr_line(bank, pcr, value);
  }
  return text;
}

std::string base_lines(const LogHeader& header) {
  std::string text;
  for (const auto& [bank, pcrs] : header.base) {
    for (const auto& [pcr, value] : pcrs) text += pcr_line(bank, pcr, value);
  }
  return text;
}

Result<LogHeader> parse_log_header(std::string_view text) {
  LogHeader header;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::size_t equals = line.find('=');
    if (equals == std::string_view::npos || !take(header, line.substr(0, equals), line.substr(equals + 1))) {
      return fail(EBADMSG, "the journal's header has a bad line: '" + std::string(line) + "'");
    }
  }
  return header;
}

}  // namespace imafs
