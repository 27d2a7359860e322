// Whatever a log says, a line of its text is one line of printable UTF-8, a record of its CSV has all its fields and no formula, and its
// JSON is ASCII.
#include <algorithm>
#include <cstdlib>
#include <string>

#include "imafs/log_codec.h"
#include "imafs/log_export.h"

namespace {

void check_line(const std::string& line) {
  if (!line.ends_with('\n') || std::count(line.begin(), line.end(), '\n') != 1) std::abort();
  if (imafs::printable(line, "\n") != line) std::abort();
}

void check_csv(const std::string& record) {
  check_line(record);
  std::size_t fields = 1;
  bool quoted = false, at_start = true;
  for (const char c : record) {
    if (at_start && (c == '=' || c == '+' || c == '-' || c == '@')) std::abort();
    at_start = false;
    if (c == '"') quoted = !quoted;
    if (c == ',' && !quoted) {
      ++fields;
      at_start = true;
    }
  }
  if (quoted || fields != 11) std::abort();
}

void check_ascii(const std::string& json) {
  if (!std::all_of(json.begin(), json.end(), [](char c) { return c >= ' ' && c <= '~'; })) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  for (const std::size_t digest : {20, 32}) {
    const auto records = imafs::decode_log(imafs::ByteView(data, size), digest);
    if (!records) continue;
    for (const imafs::DecodedRecord& record : *records) {
      imafs::JournalEntryRead entry;
      entry.entry = record.entry;
      for (const std::int64_t time : {0, 1'700'000'000}) {
        entry.origin.time_ns = time * 1'000'000'000;
        entry.origin.comm.assign(reinterpret_cast<const char*>(data), std::min<std::size_t>(size, 15));
        check_line(imafs::to_line(entry, 1));
        check_csv(imafs::to_csv(entry, 1));
        check_ascii(imafs::to_json_text(entry, 1));
        check_ascii(imafs::to_cel_text(entry, 1));
      }
    }
  }
  return 0;
}
