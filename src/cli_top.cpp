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

#include "imafs/entry_view.h"
#include "imafs/journal_reader.h"
#include "imafs/posix_file.h"

namespace imafs {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kMaxStatus = 64 << 20;
constexpr std::size_t kKeptEntries = 500;

// What one look at a mount saw, and when.
struct Look {
  Json status;
  std::chrono::steady_clock::time_point at = std::chrono::steady_clock::now();

  std::uint64_t number(const char* name) const { return status.value(name, std::uint64_t{0}); }
  std::uint64_t counter(const char* name) const { return status.value("counters", Json::object()).value(name, std::uint64_t{0}); }
};

Result<Look> look_at(const std::string& mountpoint) {
  const auto text = read_file(mountpoint + "/.ima/status", kMaxStatus);
  if (!text) return fail(text.error());
  Look look{Json::parse(*text, nullptr, false)};
  if (!look.status.is_object()) return fail(EBADMSG, "'" + mountpoint + "/.ima/status' is no JSON object");
  return look;
}

// How much a counter grew in a second.
double rate(std::uint64_t before, std::uint64_t now, double seconds) {
  return now > before && seconds > 0 ? static_cast<double>(now - before) / seconds : 0;
}

// One line, cut at the terminal's edge; unusual names are escaped in the log already.
void put(int row, const std::string& text, int attributes = A_NORMAL) {
  if (row >= LINES) return;
  ::attrset(attributes);
  ::mvaddnstr(row, 0, text.c_str(), COLS);
  ::clrtoeol();
  ::attrset(A_NORMAL);
}

std::string printed(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

volatile sig_atomic_t g_interrupted = 0;

// The PCR that is shown, and whether all are what the log replays to.
std::string pcr_of(const Json& tpm, bool& good) {
  const Json pcrs = tpm.value("pcrs", Json::object());
  good = true;
  std::string shown = "no PCR yet";
  for (const auto& [pcr, banks] : pcrs.items()) {
    for (const auto& [bank, value] : banks.items()) {
      const bool equal = value.value("equal", Json()) == Json(true);
      good = good && equal;
      if (bank == "sha256" || !equal) shown = bank + ":" + pcr + " " + (value["read"].is_string() ? value["read"].get<std::string>() : "?");
    }
  }
  return shown;
}

void draw(const TopOptions& options, const Look& before, const Look& now, const std::deque<std::string>& entries) {
  const double seconds = std::chrono::duration<double>(now.at - before.at).count();
  const Json tpm = now.status.value("tpm", Json::object());
  bool replays = true;
  const std::string pcr = pcr_of(tpm, replays);
  const bool tpm_ok = tpm.value("ok", true) && !tpm.value("foreign_extend", false);
  int row = 0;
  put(row++, "imafs " + now.status.value("version", "") + "  " + options.mountpoint + "  shows " + now.status.value("backing", ""), A_BOLD);
  const std::uint64_t extends = now.counter("imafs_tpm_extends_total") - before.counter("imafs_tpm_extends_total");
  const double latency = static_cast<double>(now.counter("imafs_tpm_extend_microseconds_total") - before.counter("imafs_tpm_extend_microseconds_total"));
  put(row++, "TPM      " + (extends == 0 ? std::string() : printed("%.2f ms an extend  ", latency / 1000 / static_cast<double>(extends))) + tpm.value("description", "") + (tpm_ok ? "" : "  " + tpm.value("message", "")), tpm_ok ? A_NORMAL : A_REVERSE);
  put(row++, std::string("verdict  ") + (replays ? "the log replays to the PCR" : "THE LOG DOES NOT REPLAY TO THE PCR"), replays ? A_NORMAL : A_REVERSE);
  put(row++, "PCR      " + pcr);
  put(row++, "entries  " + std::to_string(now.number("entries")) + printed("  %.1f/s", rate(before.number("entries"), now.number("entries"), seconds)) +
                 "   violations  " + std::to_string(now.number("violations")),
      now.number("violations") > before.number("violations") ? A_REVERSE : A_NORMAL);
  put(row++, "hashed   " + printed("%.1f MB/s", rate(before.counter("imafs_hashed_bytes_total"), now.counter("imafs_hashed_bytes_total"), seconds) / 1e6) +
                 "   opens of known files" + printed("  %.0f/s", rate(before.counter("imafs_cache_hits_total"), now.counter("imafs_cache_hits_total"), seconds)) +
                 "   open now  " + std::to_string(now.counter("imafs_open_files")) + "   inodes  " + std::to_string(now.counter("imafs_known_inodes")));
  std::string degraded;
  for (const Json& one : now.status.value("degraded", Json::array())) degraded += (degraded.empty() ? "" : ", ") + one.value("what", "");
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
    std::fprintf(stderr, "imafs: %s\n", before ? "imafs top needs a terminal" : before.error().what.c_str());
    return ExitCode::kUsage;
  }
  const std::string journal_directory = before->status.value("options", Json::object()).value("state", "") + "/journal";
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
