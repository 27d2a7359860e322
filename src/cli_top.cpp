#include "imafs/cli_top.h"

#define NCURSES_NOMACROS 1  // functions, in their namespace
#include <curses.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <clocale>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "imafs/bounded_json.h"
#include "imafs/entry_view.h"
#include "imafs/journal_reader.h"
#include "imafs/mount_info.h"

namespace imafs {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kMaxStatus = 64 << 20;
constexpr std::size_t kKeptEntries = 500;

// What one look at a mount saw, and when.
struct Look {
  Json status;
  std::chrono::steady_clock::time_point at = std::chrono::steady_clock::now();

  std::uint64_t number(const char* name) const { return count_at(status, name); }
  std::uint64_t counter(const char* name) const { return count_at(member(status, "counters"), name); }
};

// Nothing of the mount stays open between two looks: it can be unmounted.
Result<Look> look_at(const std::string& mountpoint) {
  const auto files = ControlFiles::open(mountpoint);
  if (!files) return fail(files.error());
  const auto text = files->read("status", kMaxStatus);
  if (!text) return fail(text.error());
  auto status = parse_json_object<Json>(*text, ".ima/status");
  if (!status) return fail(status.error());
  return Look{std::move(*status)};
}

// How much a counter grew in a second.
double rate(std::uint64_t before, std::uint64_t now, double seconds) {
  return now > before && seconds > 0 ? static_cast<double>(now - before) / seconds : 0;
}

// One line, cut at the terminal's edge; nothing in it draws.
void put(int row, const std::string& text, int attributes = A_NORMAL) {
  if (row >= LINES) return;
  ::attrset(attributes);
  ::mvaddnstr(row, 0, printable(text).c_str(), COLS);
  ::clrtoeol();
  ::attrset(A_NORMAL);
}

std::string printed(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

volatile sig_atomic_t g_interrupted = 0;

// A line for each PCR that the log is about, and whether all are what the log replays to. Of the banks of a PCR that all fit one is
// shown. A bank that cannot be computed is not compared.
std::vector<std::string> pcr_lines(const Json& tpm, bool& good) {
  std::vector<std::string> lines;
  good = true;
  const Json& pcrs = member(tpm, "pcrs");
  if (!pcrs.is_object()) return {"no PCR yet"};
  for (const auto& [pcr, banks] : pcrs.items()) {
    if (!banks.is_object()) continue;
    std::string shown, wrong;
    for (const auto& [bank, value] : banks.items()) {
      const Json& equal = member(value, "equal");
      if (member(value, "replayed").is_null()) continue;
      const std::string line = bank + ":" + pcr + " " + text_at(value, "read", "?");
      if (equal != Json(true)) wrong += (wrong.empty() ? "" : "  ") + line;
      if (shown.empty() || bank == "sha256") shown = line;
    }
    good = good && wrong.empty();
    if (!wrong.empty()) shown = wrong + "  DOES NOT FIT";
    if (!shown.empty()) lines.push_back(shown);
  }
  if (lines.empty()) lines.emplace_back("no PCR yet");
  return lines;
}

void draw(const TopOptions& options, const Look& before, const Look& now, const std::deque<std::string>& entries) {
  const double seconds = std::chrono::duration<double>(now.at - before.at).count();
  const Json& tpm = member(now.status, "tpm");
  bool replays = true;
  const std::vector<std::string> pcrs = pcr_lines(tpm, replays);
  const bool tpm_ok = flag_at(tpm, "ok", true) && !flag_at(tpm, "foreign_extend");
  int row = 0;
  put(row++, "imafs " + text_at(now.status, "version") + "  " + options.mountpoint + "  shows " + text_at(now.status, "backing"), A_BOLD);
  const std::uint64_t extends = now.counter("imafs_tpm_extends_total") - before.counter("imafs_tpm_extends_total");
  const double latency = static_cast<double>(now.counter("imafs_tpm_extend_microseconds_total") - before.counter("imafs_tpm_extend_microseconds_total"));
  put(row++, "TPM      " + (extends == 0 ? std::string() : printed("%.2f ms an extend  ", latency / 1000 / static_cast<double>(extends))) + text_at(tpm, "description") + (tpm_ok ? "" : "  " + text_at(tpm, "message")), tpm_ok ? A_NORMAL : A_REVERSE);
  put(row++, std::string("verdict  ") + (replays ? "the log replays to the PCR" : "THE LOG DOES NOT REPLAY TO THE PCR"), replays ? A_NORMAL : A_REVERSE);
  for (const std::string& line : pcrs) put(row++, "PCR      " + line);
  put(row++, "entries  " + std::to_string(now.number("entries")) + printed("  %.1f/s", rate(before.number("entries"), now.number("entries"), seconds)) +
                 "   violations  " + std::to_string(now.number("violations")),
      now.number("violations") > before.number("violations") ? A_REVERSE : A_NORMAL);
  put(row++, "hashed   " + printed("%.1f MB/s", rate(before.counter("imafs_hashed_bytes_total"), now.counter("imafs_hashed_bytes_total"), seconds) / 1e6) +
                 "   opens of known files" + printed("  %.0f/s", rate(before.counter("imafs_cache_hits_total"), now.counter("imafs_cache_hits_total"), seconds)) +
                 "   open now  " + std::to_string(now.counter("imafs_open_files")) + "   inodes  " + std::to_string(now.counter("imafs_known_inodes")));
  std::string degraded;
  if (const Json& list = member(now.status, "degraded"); list.is_array()) {
    for (const Json& one : list) degraded += (degraded.empty() ? "" : ", ") + text_at(one, "what");
  }
  put(row++, "degraded " + (degraded.empty() ? "nothing" : degraded), degraded.empty() ? A_NORMAL : A_REVERSE);
  put(row++, "");
  for (auto entry = entries.rbegin(); entry != entries.rend() && row < LINES; ++entry) put(row++, *entry);
  while (row < LINES) put(row++, "");
  ::refresh();
}

}  // namespace

ExitCode run_top(const TopOptions& options) {
  auto before = look_at(options.mountpoint);
  if (!before || ::isatty(STDOUT_FILENO) != 1) {
    std::fprintf(stderr, "imafs: %s\n", before ? "imafs top needs a terminal" : printable(before.error().what).c_str());
    return ExitCode::kUsage;
  }
  const std::string journal_directory = text_at(member(before->status, "options"), "state") + "/journal";
  JournalRead journal;
  std::deque<std::string> entries;
  ::setlocale(LC_ALL, "");  // names are UTF-8
  ::signal(SIGINT, [](int) { g_interrupted = 1; });  // or ncurses would end us as a failure
  SCREEN* const screen = ::newterm(nullptr, stdout, stdin);
  if (!screen) {
    std::fprintf(stderr, "imafs: this terminal is not known\n");
    return ExitCode::kUsage;
  }
  ::cbreak();
  ::noecho();
  ::curs_set(0);
  ::timeout(static_cast<int>(std::max(0.1, options.seconds) * 1000));
  Result<Look> now = before;
  for (int key = 0; key != 'q' && now && g_interrupted == 0; key = ::getch()) {
    if (read_on(journal_directory, journal)) {
      for (const JournalEntryRead& entry : journal.entries) {
        entries.push_back((entry.entry.is_violation ? "VIOLATION " : "          ") + entry.origin.comm + "[" + std::to_string(entry.origin.pid) + "] " +
                          view_of(entry.entry).name);
      }
      journal.entries.clear();
      while (entries.size() > kKeptEntries) entries.pop_front();
    }
    draw(options, *before, *now, entries);
    before = std::move(now);
    now = look_at(options.mountpoint);
  }
  ::endwin();
  ::delscreen(screen);
  return ExitCode::kOk;
}

}  // namespace imafs
