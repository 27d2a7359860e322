#include <fcntl.h>
#include <fts.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include "imafs/cli_attest.h"
#include "imafs/file_hasher.h"
#include "imafs/manifest.h"
#include "imafs/mount_info.h"
#include "imafs/posix_file.h"
#include "imafs/progress.h"
#include "imafs/unique_fd.h"
#include "imafs/worker_pool.h"
#include "manifest_partial.h"

namespace imafs {
namespace {

constexpr std::size_t kMaxLog = std::size_t{1} << 30;

ExitCode complain(const Error& error) {
  std::fprintf(stderr, "imafs: %s\n", printable(error.what).c_str());
  return ExitCode::kUsage;
}

// proc, sysfs and the like: nothing in them is a file to measure, and a mount does not show them.
bool is_pseudo(const char* path) {
  struct statfs fs {};
  if (::statfs(path, &fs) != 0) return true;
  constexpr std::array<long, 9> kinds{0x9fa0, 0x62656572, 0x1cd1, 0x63677270, 0x27e0eb, 0x64626720, 0x74726163, 0x73636673, 0xcafe4a11};
  return std::find(kinds.begin(), kinds.end(), static_cast<long>(fs.f_type)) != kinds.end();
}

// Regular files below `root`, as paths inside it, in order; `unread` counts directories that cannot be read.
Result<std::vector<std::string>> files_below(const std::string& root, bool one_file_system, std::size_t& unread) {
  struct stat attr {};
  if (::stat(root.c_str(), &attr) == 0 && !S_ISDIR(attr.st_mode)) return fail(error_of(ENOTDIR, "'" + root + "'"));
  std::string start = root;
  while (start.size() > 1 && start.ends_with('/')) start.pop_back();
  std::array<char*, 2> roots{start.data(), nullptr};
  FTS* const walk = ::fts_open(roots.data(), FTS_PHYSICAL | FTS_COMFOLLOW | FTS_NOCHDIR | (one_file_system ? FTS_XDEV : 0), nullptr);
  if (!walk) return fail(errno_error("cannot walk '" + root + "'"));
  std::vector<std::string> files;
  Status status;
  dev_t device = 0;
  while (FTSENT* const entry = ::fts_read(walk)) {
    if (entry->fts_info == FTS_DNR || entry->fts_info == FTS_ERR || entry->fts_info == FTS_NS) {
      status = fail(error_of(entry->fts_errno, "'" + std::string(entry->fts_path) + "'"));
      if (entry->fts_level == 0) break;
      std::fprintf(stderr, "imafs: warning: %s\n", printable(status.error().what).c_str());
      unread += entry->fts_errno == ENOENT ? 0 : 1;
      status = {};
      continue;
    }
    if (entry->fts_info == FTS_D) {
      if (entry->fts_statp->st_dev != device && is_pseudo(entry->fts_path)) ::fts_set(walk, entry, FTS_SKIP);
      device = entry->fts_statp->st_dev;
    }
    if (entry->fts_info == FTS_F && S_ISREG(entry->fts_statp->st_mode)) files.emplace_back(entry->fts_path + (start == "/" ? 0 : start.size()));
  }
  ::fts_close(walk);
  if (!status) return fail(status.error());
  std::sort(files.begin(), files.end());
  return files;
}

// Which directory, and what else decides the lines of its manifest.
std::string identity_of(const ManifestOptions& options) {
  struct stat attr {};
  char* const real = ::realpath(options.directory.c_str(), nullptr);
  std::string text = real ? real : "";
  ::free(real);
  if (::stat(options.directory.c_str(), &attr) == 0) text += " " + std::to_string(attr.st_dev) + ":" + std::to_string(attr.st_ino);
  return text + " " + options.hash + " " + options.path_prefix;
}

}  // namespace

ExitCode run_manifest(const ManifestOptions& options) {
  const bool as_keylime = options.format == "keylime";
  if (!as_keylime && options.format != "sha256sum") return complain({EINVAL, "unknown format '" + options.format + "': sha256sum or keylime"});
  if (options.relative && as_keylime) return complain({EINVAL, "--relative is for sha256sum lines: Keylime compares the paths that the log has"});
  if (options.relative && !options.path_prefix.empty()) return complain({EINVAL, "--relative and --path-prefix exclude each other"});
  const auto hash = hash_algorithm_named(options.hash);
  if (!hash || !can_compute(*hash)) return complain({EINVAL, "'" + options.hash + "' is no hash algorithm"});
  std::vector<Exclude> excludes;
  for (const std::string& text : options.excludes) {
    auto exclude = Exclude::of(text);
    if (!exclude) return complain(exclude.error());
    excludes.push_back(std::move(*exclude));
  }
  struct stat attr {};
  const bool exists = !options.output.empty() && ::stat(options.output.c_str(), &attr) == 0;
  if (exists && S_ISDIR(attr.st_mode)) return complain(error_of(EISDIR, "cannot write '" + options.output + "'"));
  OwnEntries own;
  const std::string& mount = options.own_entries.empty() ? options.directory : options.own_entries;
  if (const auto control = as_keylime ? ControlFiles::open(mount) : Result<ControlFiles>(fail(ENODEV, "not wanted")); control) {
    const auto log = control->read("ascii_runtime_measurements", kMaxLog);
    if (!log) return complain(log.error());
    own = own_entries_of(*log);
  } else if (!options.own_entries.empty()) {
    return complain(as_keylime ? control.error() : Error{EINVAL, "--own-entries is for --format keylime"});
  }
  std::size_t unread = 0;
  const auto found = files_below(options.directory, options.one_file_system, unread);
  if (!found) return complain(found.error());

  const bool resumes = !options.output.empty() && (!exists || S_ISREG(attr.st_mode));
  ManifestPartial partial(resumes ? options.output + ".partial" : "", identity_of(options));
  std::string root = options.directory;
  while (root.size() > 1 && root.ends_with('/')) root.pop_back();
  if (root == "/") root.clear();
  std::vector<ManifestFile> files(found->size());
  std::mutex mutex;  // failures and their count
  std::vector<std::string> failures;
  {
    Progress progress("files", found->size());
    WorkerPool pool(std::max(1U, std::thread::hardware_concurrency()));
    for (std::size_t i = 0; i < found->size(); ++i) {
      ManifestFile& file = files[i];
      file.path = options.path_prefix + (*found)[i];
      const std::string name = logged_name_of(file.path);
      const auto is_excluded = [&](const Exclude& exclude) { return exclude.matches(name); };
      if (std::any_of(excludes.begin(), excludes.end(), is_excluded)) continue;
      pool.post([&, path = root + (*found)[i]] {
        // What is no regular file any more, a FIFO for example, must not be waited for.
        const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY));
        struct stat before {}, after {};
        Result<Digest> digest = fail(errno_error("'" + path + "'"));
        if (fd && ::fstat(fd.get(), &before) == 0 && S_ISREG(before.st_mode)) {
          if (const auto known = partial.find(file.path, before)) {
            file.hex = *known;
            return;
          }
          digest = hash_file(fd.get(), *hash);
        } else if (fd) {
          digest = fail(ENOENT, "'" + path + "' is no regular file any more");
        }
        if (digest) {
          file.hex = to_hex(digest->bytes());
          if (::fstat(fd.get(), &after) == 0) partial.note(file.path, before, after, file.hex);
          progress.add(1, static_cast<std::uint64_t>(std::max<off_t>(0, before.st_size)));
        }
        const std::lock_guard lock(mutex);
        if (!digest) failures.push_back(digest.error().what);
        if (!digest && digest.error().code != ENOENT) ++unread;  // one that has gone meanwhile is no file any more
      });
    }
    pool.finish();
  }
  for (const std::string& failure : failures) std::fprintf(stderr, "imafs: warning: %s\n", printable(failure).c_str());
  std::erase_if(files, [](const ManifestFile& file) { return file.hex.empty(); });

  std::string text;
  if (as_keylime) {
    // Keylime compares the template hash column, sha1 in the file that its agent reads.
    text = keylime_policy(files, options.excludes, "sha1", own);
  } else {
    for (ManifestFile& file : files) {
      if (options.relative) file.path.insert(0, ".");
      text += sum_line(file);
    }
  }
  if (options.output.empty()) {
    std::fwrite(text.data(), 1, text.size(), stdout);  // whether that came out is seen to at the end of the program
  } else {
    if (auto written = write_file_atomically(options.output, text, 0644); !written) return complain(written.error());
    partial.remove();
  }
  if (unread == 0) return ExitCode::kOk;
  return complain({EACCES, std::to_string(unread) + (unread == 1 ? " file could not be read and is" : " files could not be read and are") + " not in the manifest"});
}

}  // namespace imafs
