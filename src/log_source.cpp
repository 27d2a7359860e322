#include "imafs/log_source.h"

#include <sys/stat.h>
#include <unistd.h>

#include "imafs/log_codec.h"
#include "imafs/mount_info.h"
#include "imafs/posix_file.h"

namespace imafs {
namespace {

constexpr std::size_t kMaxLog = std::size_t{4} << 30;

}  // namespace

Result<JournalRead> read_binary_log(const std::string& path) {
  const auto bytes = read_file(path, kMaxLog);
  if (!bytes) return fail(bytes.error());
  const auto size = guess_digest_size(as_bytes(*bytes));
  if (!size) return fail(EBADMSG, "'" + path + "': " + size.error().what);
  auto records = decode_log(as_bytes(*bytes), *size);
  if (!records) return fail(EBADMSG, "'" + path + "': " + records.error().what);
  JournalRead log;
  for (DecodedRecord& record : *records) {
    JournalEntryRead entry;
    entry.entry = std::move(record.entry);
    for (const HashAlgorithm algorithm : {HashAlgorithm::kSha1, HashAlgorithm::kSha256, HashAlgorithm::kSha384, HashAlgorithm::kSha512}) {
      if (digest_size(algorithm) == *size) entry.digests.emplace_back(algorithm, std::move(record.template_digest));
    }
    log.entries.push_back(std::move(entry));
  }
  return log;
}

Result<JournalPlace> find_journal(const std::string& target) {
  const auto info = read_mount_info(target);
  if (info) return JournalPlace{info->state + "/journal", info->entries, true};
  for (const char* below : {"", "/journal"}) {
    if (::access((target + below + "/journal.000001").c_str(), F_OK) == 0) return JournalPlace{target + below};
  }
  if (info.error().code == EPERM || info.error().code == EBADMSG) return fail(info.error());
  return fail(ENOENT, "'" + target + "' is no imafs mount, no state or archive directory, and no log");
}

Result<JournalRead> read_log(const std::string& target) {
  struct stat attr {};
  if (::stat(target.c_str(), &attr) != 0) return fail(errno_error("'" + target + "'"));
  if (!S_ISDIR(attr.st_mode)) return read_binary_log(target);
  const auto place = find_journal(target);
  if (!place) return fail(place.error());
  auto journal = read_journal(place->directory);
  if (journal && place->limit < journal->entries.size()) journal->entries.resize(place->limit);
  return journal;
}

}  // namespace imafs
