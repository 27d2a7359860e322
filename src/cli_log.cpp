#include "imafs/cli_log.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <functional>

#include "imafs/cli_verify.h"
#include "imafs/entry_view.h"
#include "imafs/log_export.h"
#include "imafs/log_source.h"
#include "imafs/mount_info.h"
#include "imafs/policy_matcher.h"
#include "imafs/posix_file.h"
#include "imafs/unique_fd.h"

namespace imafs {
namespace {

ExitCode complain(const Error& error) {
  std::fprintf(stderr, "imafs: %s\n", printable(error.what).c_str());
  return error.code == EBADMSG ? ExitCode::kMismatch : ExitCode::kUsage;
}

// One format: what comes before the first entry, each entry, what comes between two, and after the last.
class Writer {
 public:
  static std::optional<Writer> of(const std::string& format) {
    const auto with = [](std::string (*make)(const JournalEntryRead&, std::uint64_t), const char* end) {
      return [make, end](const JournalEntryRead& entry, std::uint64_t index) { return make(entry, index) + end; };
    };
    if (format == "text") return Writer{"", to_line, "", ""};
    if (format == "csv") return Writer{"index,time,pid,uid,comm,size,pcr,template,violation,digest,name\n", to_csv, "", ""};
    if (format == "ndjson") return Writer{"", with(to_json_text, "\n"), "", ""};
    if (format == "json") return Writer{"[\n", with(to_json_text, ""), ",\n", "\n]\n"};
    if (format == "cel-json") return Writer{"[\n", with(to_cel_text, ""), ",\n", "\n]\n"};
    return std::nullopt;
  }
  bool has_end() const { return !end_.empty(); }

  void put(const JournalEntryRead& entry, std::uint64_t index) {
    const std::string text = (written_++ == 0 ? begin_ : between_) + make_(entry, index);
    std::fwrite(text.data(), 1, text.size(), stdout);
  }
  void finish() const { std::fputs(((written_ == 0 ? begin_ : "") + end_).c_str(), stdout); }

 private:
  using Make = std::function<std::string(const JournalEntryRead&, std::uint64_t)>;
  Writer(std::string begin, Make make, std::string between, std::string end)
      : begin_(std::move(begin)), make_(std::move(make)), between_(std::move(between)), end_(std::move(end)) {}
  std::string begin_;
  Make make_;
  std::string between_, end_;
  std::uint64_t written_ = 0;
};

bool is_wanted(const JournalEntryRead& entry, const LogExportOptions& options) {
  if (options.violations && !entry.entry.is_violation) return false;
  if (options.uid && entry.origin.uid != *options.uid) return false;
  if (!options.comm.empty() && entry.origin.comm != options.comm) return false;
  return options.path.empty() || glob_matches(options.path, view_of(entry.entry).name);
}

// Returns when the log of the mount has grown, or after a second.
void wait_for_growth(const std::string& mountpoint) {
  static UniqueFd log;
  if (!log) {
    const auto files = ControlFiles::open(mountpoint);
    if (files) log.reset(::open(files->path_of("measurements").c_str(), O_RDONLY | O_CLOEXEC));
  }
  struct pollfd wait {log.get(), POLLIN, 0};
  if (::lseek(log.get(), 0, SEEK_END) < 0 || ::poll(&wait, 1, 1000) < 0) ::sleep(1);
}

}  // namespace

ExitCode run_log_export(const LogExportOptions& options) {
  auto writer = Writer::of(options.format);
  if (!writer) return complain({EINVAL, "unknown format '" + options.format + "': text, json, ndjson, csv or cel-json"});
  if (options.follow && writer->has_end()) return complain({EINVAL, "a log that is followed has no end: use ndjson, csv or text"});
  struct stat attr {};
  if (::stat(options.target.c_str(), &attr) != 0) return complain(errno_error("'" + options.target + "'"));
  JournalRead log;
  std::uint64_t next = 0;
  ino_t journal = 0;
  const auto put = [&](std::uint64_t limit) {
    for (; next < limit && next < log.entries.size(); ++next) {
      const std::uint64_t index = log.trimmed + next;
      if (index >= options.from && is_wanted(log.entries[next], options)) writer->put(log.entries[next], index);
    }
  };
  if (!S_ISDIR(attr.st_mode)) {
    if (options.follow) return complain({EINVAL, "only the log of a mount can be followed"});
    auto read = read_binary_log(options.target);
    if (!read) return complain(read.error());
    log = std::move(*read);
    put(log.entries.size());
  } else {
    for (;;) {
      const auto place = find_journal(options.target);
      if (!place) return complain(place.error());
      if (options.follow && !place->is_mount) return complain({EINVAL, "only the log of a mount can be followed"});
      // Trimming puts another journal there: go on where we are. So does a reset of the TPM, but that one begins at 0.
      if (::stat(place->directory.c_str(), &attr) != 0 && options.follow) {
        wait_for_growth(options.target);  // between the two
        continue;
      }
      const ino_t now = attr.st_ino;
      const bool is_another = journal != 0 && now != journal;
      const std::uint64_t shown = log.trimmed + next;
      if (is_another) log = JournalRead{};
      if (auto read = read_on(place->directory, log); !read) return complain(read.error());
      if (is_another) next = log.trimmed > 0 && log.trimmed <= shown ? shown - log.trimmed : 0;
      journal = now;
      put(place->limit);
      if (!options.follow) break;
      if (std::fflush(stdout) != 0) return ExitCode::kOk;  // who read it has gone
      wait_for_growth(options.target);
    }
  }
  writer->finish();
  return ExitCode::kOk;
}

ExitCode run_log_trim(const LogTrimOptions& options) {
  const auto files = ControlFiles::open(options.mountpoint);
  if (!files) return complain(files.error());
  const auto info = read_mount_info(*files);
  if (!info) return complain(info.error());
  if (info->tcti.empty()) return complain({ENOTSUP, "nothing is trimmed: the mount has no TPM, and without one there is no PCR value to go on from"});
  if (info->entries <= options.keep) {
    std::printf("nothing to trim: the log has %llu entries\n", static_cast<unsigned long long>(info->entries));
    return ExitCode::kOk;
  }
  VerifyOptions verify;
  verify.target = options.mountpoint;
  verify.tcti = options.tcti;
  verify.quiet = true;
  if (const ExitCode verdict = run_verify(verify); verdict != ExitCode::kOk) return verdict;
  const UniqueFd control(::open(files->path_of("trim_log").c_str(), O_WRONLY | O_CLOEXEC));
  if (!control) return complain(errno_error("cannot open '" + options.mountpoint + "/.ima/trim_log'"));
  const std::string count = std::to_string(info->entries - options.keep);
  if (auto written = write_all(control.get(), as_bytes(count + "\n")); !written) {
    return complain({written.error().code, "cannot trim: " + written.error().what});
  }
  std::printf("%s entries moved to the archive in '%s'\n", count.c_str(), printable(info->state).c_str());
  return ExitCode::kOk;
}

}  // namespace imafs
