// What an interrupted `imafs manifest -o OUTPUT` has hashed so far: OUTPUT.partial.
#pragma once

#include <sys/stat.h>

#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "imafs/unique_fd.h"

namespace imafs {

// Reference digests decide what a verifier accepts, so a line of an earlier run is believed only if the file with the lines is
// this user's alone, was made for the same directory and options, and the hashed file has not changed since. Thread-safe.
class ManifestPartial {
 public:
  // `tree` says which directory with which options. What stands at `path` and is not ours stays untouched, and nothing is kept.
  ManifestPartial(std::string path, std::string tree);
  ManifestPartial(const ManifestPartial&) = delete;
  ManifestPartial& operator=(const ManifestPartial&) = delete;

  // The digest (hexadecimal) of the file at `name`, if it was hashed and `now` is how it was then.
  std::optional<std::string> find(const std::string& name, const struct stat& now) const;
  // `before` and `after` the file was hashed. A file that changed meanwhile or a moment ago is not noted: its times may not tell
  // the next change.
  void note(const std::string& name, const struct stat& before, const struct stat& after, const std::string& hex);
  // The manifest stands: the lines go.
  void remove();

 private:
  void read_lines();

  const std::string path_, tree_;
  UniqueFd fd_;  // none: not ours, or in use by another run
  std::map<std::string, std::string> known_;  // what a file was, and its digest, by name
  std::mutex mutex_;  // guards writing
};

}  // namespace imafs
