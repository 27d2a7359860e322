#include "run_record.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "imafs/entry_view.h"
#include "imafs/file_hasher.h"
#include "imafs/journal_reader.h"
#include "imafs/posix_file.h"
#include "imafs/unique_fd.h"

namespace imafs {
namespace {

constexpr std::size_t kMaxControlFile = 64 << 20;

template <class T>
void sort_once(std::vector<T>& items) {
  std::sort(items.begin(), items.end());
  items.erase(std::unique(items.begin(), items.end()), items.end());
}

Status check_health(const std::string& mount) {
  const auto text = read_file(mount + "/.ima/status", kMaxControlFile);
  if (!text) return fail(text.error());
  const auto status = nlohmann::json::parse(*text, nullptr, false);
  if (!status.is_object() || !status.contains("degraded") || !status["degraded"].is_array()) return fail(EBADMSG, "'.ima/status' cannot be read");
  for (const auto& one : status["degraded"]) {
    const auto what = one.is_object() && one.contains("what") && one["what"].is_string() ? one["what"].get<std::string>() : "";
    if (what == "tpm-fault" || what == "missing-extends") return fail(EBADMSG, "the log has a gap: " + one.value("why", ""));
  }
  return {};
}

bool is_data(const LogEntry& entry) { return std::find(entry.fields.begin(), entry.fields.end(), FieldId::kBuf) != entry.fields.end(); }

// A file that still has the bytes that were read; its SHA-1 if that is wanted.
struct Kept {
  bool is_as_read = false;
  Bytes sha1;
};
Kept look_again(const std::string& path, const FileDigest& read, bool with_sha1) {
  Kept kept;
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  const auto same = hash_algorithm_named(read.algorithm);
  if (!fd || !same || !can_compute(*same)) return kept;
  const auto now = hash_file(fd.get(), *same);
  if (!now || !std::equal(now->bytes().begin(), now->bytes().end(), read.digest.begin(), read.digest.end())) return kept;
  kept.is_as_read = true;
  const auto sha1 = with_sha1 ? hash_file(fd.get(), HashAlgorithm::kSha1) : Result<Digest>(fail(EINVAL, ""));
  if (sha1) kept.sha1.assign(sha1->bytes().begin(), sha1->bytes().end());
  return kept;
}

}  // namespace

Result<LogMark> mark_log(const std::string& mount, const std::string& state) {
  LogMark mark;
  struct stat attr {};
  const std::string directory = state + "/journal";
  if (::stat(directory.c_str(), &attr) != 0) return fail(errno_error("'" + directory + "'"));
  mark.journal = attr.st_ino;
  const auto journal = read_journal(directory);
  if (!journal) return fail(journal.error());
  mark.entries = journal->trimmed + journal->entries.size();
  auto policy = read_file(mount + "/.ima/policy", kMaxControlFile);
  if (!policy) return fail(policy.error());
  mark.policy = std::move(*policy);
  return mark;
}

Status collect_run(const std::string& mount, const std::string& state, const LogMark& mark, const std::string& format, RunRecord& run) {
  const auto now = mark_log(mount, state);
  if (!now) return fail(now.error());
  const auto journal = read_journal(state + "/journal");
  if (!journal) return fail(journal.error());
  if (now->journal != mark.journal || journal->trimmed > mark.entries || journal->trimmed + journal->entries.size() < mark.entries) {
    return fail(EBADMSG, "the log was trimmed or begun anew while the command ran");
  }
  if (now->policy != mark.policy) return fail(EBADMSG, "the policy was changed while the command ran");
  if (auto healthy = check_health(mount); !healthy) return healthy;
  run.policy = mark.policy;
  for (std::size_t i = mark.entries - journal->trimmed; i < journal->entries.size(); ++i) {
    const JournalEntryRead& entry = journal->entries[i];
    EntryView view = view_of(entry.entry);
    if (is_data(entry.entry)) {
      if (view.name == "policy" || view.name == "start") return fail(EBADMSG, "the policy was changed while the command ran");
      continue;
    }
    // An entry's own name has '_' for blanks, and escapes.
    std::string path = entry.origin.path.empty() ? std::move(view.name) : entry.origin.path;
    if (entry.entry.is_violation) {
      run.violations.push_back(std::move(path));
      continue;
    }
    struct stat attr {};
    FileDigest file{std::move(path), std::move(view.algorithm), std::move(view.digest), {}};
    const bool is_there = ::lstat((mount + file.name).c_str(), &attr) == 0 && S_ISREG(attr.st_mode);
    if (!is_there) file.name.clear();
    (is_there ? run.read : run.gone).push_back(std::move(file));
  }
  sort_once(run.read);
  sort_once(run.gone);
  sort_once(run.violations);
  if (format != "spdx" && format != "text") return {};
  for (FileDigest& file : run.read) {
    Kept kept = look_again(mount + file.name, file, format == "spdx");
    file.is_earlier = !kept.is_as_read;
    file.sha1 = std::move(kept.sha1);
  }
  return {};
}

}  // namespace imafs
