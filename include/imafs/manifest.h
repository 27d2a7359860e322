// Reference digests: what files a verifier accepts. Text as sha256sum(1) writes it, or Keylime's runtime policy, v1.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "imafs/bytes.h"
#include "imafs/result.h"

namespace re2 {
class RE2;
}

namespace imafs {

// A regular expression (RE2's syntax) that leaves out names which begin with a match of it, as Keylime's excludes do. Takes time
// and memory in proportion to the name, whatever both are. Immutable; copies share what was compiled.
class Exclude {
 public:
  // EINVAL: no regular expression, with what is wrong with it; RE2 knows neither back references nor look-around.
  static Result<Exclude> of(const std::string& text);
  bool matches(std::string_view name) const;

 private:
  std::shared_ptr<const re2::RE2> compiled_;
};

struct Manifest {
  std::map<std::string, std::vector<Bytes>, std::less<>> digests;  // by name as logged: blanks are '_'
  std::vector<Exclude> excludes;

  enum class Answer { kAllowed, kExcluded, kUnknownFile, kOtherDigest };
  Answer ask(const std::string& logged_name, const Bytes& digest) const;
};

// The name under which a file at `path` inside the mount is logged.
std::string logged_name_of(std::string_view path);

// EINVAL: the sentence begins with `origin`:line: where the format has lines.
Result<Manifest> parse_manifest(std::string_view text, const std::string& origin);

struct ManifestFile {
  std::string path;  // inside the mount, absolute
  std::string hex;
};
// A line of sha256sum(1), its escapes included.
std::string sum_line(const ManifestFile& file);
// What a mount logs by itself, for Keylime, which wants every entry in its policy.
struct OwnEntries {
  std::vector<std::string> boot_aggregate;                      // digests, hexadecimal
  std::map<std::string, std::vector<std::string>> data;         // of the ima-buf entries "start", "policy" and "kernel_version"
};
// From the text of `.ima/ascii_runtime_measurements`.
OwnEntries own_entries_of(std::string_view ascii_log);
// {"meta": ..., "digests": {...}, "excludes": [...], "ima": {"log_hash_alg": ...}, ...}; `files` in the order of their paths.
std::string keylime_policy(const std::vector<ManifestFile>& files, const std::vector<std::string>& excludes, const std::string& log_hash,
                           const OwnEntries& own = {});

}  // namespace imafs
