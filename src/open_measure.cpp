// One open, from its flags to its entries: the part of OpenFiles that runs while the file is busy.
#include <fcntl.h>
#include <linux/capability.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <thread>
#include <tuple>

#include "imafs/boundary.h"
#include "imafs/file_hasher.h"
#include "imafs/lsm_labels.h"
#include "imafs/posix_file.h"
#include "imafs/tree_ops.h"
#include "open_file_state.h"

namespace imafs {
namespace {

constexpr int kExecFlag = 0x20;  // __FMODE_EXEC: the kernel's mark of execve's open, handed through by FUSE

// Files up to this size are hashed by the thread that serves the request: a hand-over costs more.
constexpr std::int64_t kInlineSize = 128 * 1024;

// How often an open that a lease of somebody else holds up is tried again.
constexpr auto kAskAgain = std::chrono::milliseconds(10);

// The kernel drops pages only some time after our answer to the open that said so. Opens that it finishes in between must not
// keep them either: so long after the answer it has certainly done it.
constexpr auto kOpenEnds = std::chrono::seconds(1);

// The mask of the kernel's open event, from the flags: what it calls acc_mode.
unsigned mask_of(int flags) {
  if ((flags & kExecFlag) != 0) return kMayExec;
  unsigned mask = 0;
  switch (flags & O_ACCMODE) {
    case O_RDONLY: mask = kMayRead; break;
    case O_WRONLY: mask = kMayWrite; break;
    default: mask = kMayRead | kMayWrite; break;
  }
  if ((flags & O_TRUNC) != 0) mask |= kMayWrite;
  if ((flags & O_APPEND) != 0) mask |= kMayAppend;
  return mask;
}

// The numbers after "Uid:" in /proc/TID/status: real, effective, saved, file system.
bool read_ids(std::string_view text, std::string_view key, std::array<std::uint32_t, 4>& ids) {
  const std::size_t at = text.find(key);
  if (at == std::string_view::npos) return false;
  const char* from = text.data() + at + key.size();
  const char* const end = text.data() + text.size();
  for (std::uint32_t& id : ids) {
    while (from < end && (*from == ' ' || *from == '\t')) ++from;
    const auto parsed = std::from_chars(from, end, id);
    if (parsed.ec != std::errc()) return false;
    from = parsed.ptr;
  }
  return true;
}

std::optional<EventSource::Credentials> credentials_of(std::uint32_t tid) {
  // status is harmless to read; see comm_of().
  const auto text = read_file("/proc/" + std::to_string(tid) + "/status", 16384);
  if (!text) return std::nullopt;
  std::array<std::uint32_t, 4> uids{}, gids{};
  if (!read_ids(*text, "\nUid:", uids) || !read_ids(*text, "\nGid:", gids)) return std::nullopt;
  EventSource::Credentials found;
  found.uid = uids[0];
  found.euid = uids[1];
  found.suid = uids[2];
  found.gid = gids[0];
  found.egid = gids[1];
  found.sgid = gids[2];
  const std::uint64_t capabilities = effective_capabilities(*text);
  found.can_setgid = (capabilities >> 6 & 1) != 0;
  found.can_setuid = (capabilities >> 7 & 1) != 0;
  return found;
}

// What chattr(1) and read-only mounts protect: the kernel asks where a path is opened, but not for a backing file.
Status may_be_written(int fd, int flags) {
  const bool refused = ::faccessat(fd, "", W_OK, AT_EMPTY_PATH | AT_EACCESS) != 0;
  if (refused && (errno == EROFS || errno == EPERM)) return fail(errno_error("open"));  // EPERM: immutable
  struct statx attr {};
  if (::statx(fd, "", AT_EMPTY_PATH, 0, &attr) != 0) return {};
  if ((attr.stx_attributes & STATX_ATTR_APPEND) != 0 && (flags & O_APPEND) == 0) return fail(EPERM, "append-only");
  return {};
}

}  // namespace

class OpenFiles::RequestFacts final : public EventSource {
 public:
  RequestFacts(OpenFiles& files, Opening& opening) : files_(files), opening_(opening) {}

  std::optional<Credentials> credentials() override {
    if (!asked_) credentials_ = credentials_of(opening_.request.who.pid);
    asked_ = true;
    return credentials_;
  }
  std::string_view path() override {
    return files_.path_of(opening_);
  }
  const Names& names() override {
    if (!names_) {
      struct stat attr {};
      const bool is_seen = opening_.file->anchor && ::fstat(opening_.file->anchor.get(), &attr) == 0;
      names_ = is_seen ? files_.table_.names_of(opening_.request.node, attr.st_nlink) : Names{{}, false};
      if (names_->is_complete && opening_.request.name) names_->paths.push_back(files_.path_of(opening_));
    }
    return *names_;
  }
  const FileSystem& file_system() override {
    const int fd = readable_fd();
    const dev_t device = files_.table_.identity_of(opening_.request.node).first;
    return files_.tree_.file_system_of(fd, device);
  }
  std::string object_label() override { return opening_.file->anchor ? label_of_file(opening_.file->anchor.get()) : ""; }
  std::string subject_label() override { return label_of_task(opening_.request.who.pid); }

 private:
  int readable_fd() const { return opening_.file->anchor ? opening_.file->anchor.get() : files_.tree_.root(); }

  OpenFiles& files_;
  Opening& opening_;
  std::optional<Credentials> credentials_;
  std::optional<Names> names_;
  bool asked_ = false;
};

void OpenFiles::run(std::unique_ptr<Opening> opening) noexcept {
  if (opening->in_pool && is_given_up(*opening)) return finish(std::move(opening), fail(EINTR, ""));
  // Whatever is thrown: the file does not stay busy, and the opener gets an answer.
  Status status = contained_status("an open", [&] { return prepare(*opening); });
  if (!status && status.error().code == EWOULDBLOCK && !opening->in_pool) {
    return hand_over(std::move(opening), [this](std::unique_ptr<Opening> taken) { run(std::move(taken)); });
  }
  if (status) status = contained_status("an open", [&] { return decide(*opening); });
  if (!status) return finish(std::move(opening), std::move(status));
  if (!opening->in_pool && !hashes_inline(*opening)) {
    return hand_over(std::move(opening), [this](std::unique_ptr<Opening> taken) { carry_out(std::move(taken)); });
  }
  carry_out(std::move(opening));
}

// What is to be measured of it.
Status OpenFiles::decide(Opening& opening) {
  if (auto logged = log_owed_violation(*opening.file); !logged) return logged;
  if (auto learned = learn_content(opening); !learned) return learned;
  RequestFacts source(*this, opening);
  opening.facts.mask = mask_of(opening.request.flags);
  opening.facts.is_exec = (opening.request.flags & kExecFlag) != 0;
  // A file without a name has no open event when it is made, as in the kernel.
  opening.log = gate_.log_generation();
  if (!opening.request.unnamed) opening.orders = gate_.must_measure(opening.facts, opening.request.who, source);
  if (!opening.orders.empty() && !opening.file->anchor) return fail(EACCES, "a file that cannot be read cannot be measured");
  return {};
}

void OpenFiles::carry_out(std::unique_ptr<Opening> opening) noexcept {
  const bool took_place = !opening->in_pool && !opening->orders.empty();  // reading may drop orders
  Status status = contained_status("an open", [&] { return opening->writes() ? judge_writing(*opening) : judge_reading(*opening); });
  if (took_place) inline_hashes_.fetch_sub(1);
  if (!status) return finish(std::move(opening), std::move(status));
  status = contained_status("an open", [&] { return act(*opening); });
  if (status || status.error().code != EWOULDBLOCK || opening->in_pool) return finish(std::move(opening), std::move(status));
  hand_over(std::move(opening), [this](std::unique_ptr<Opening> taken) {
    Status done = contained_status("an open", [&] { return act(*taken); });
    finish(std::move(taken), std::move(done));
  });
}

// `held`: the lock of mutex_, if the caller has it. Without memory or any thread for that the process ends: the file would stay busy.
void OpenFiles::hand_over(std::unique_ptr<Opening> opening, std::function<void(std::unique_ptr<Opening>)> go_on, const Lock* held) noexcept {
  struct Handed {
    std::atomic<bool> is_taken{false};
    std::unique_ptr<Opening> opening;
    std::function<void(std::unique_ptr<Opening>)> go_on;
  };
  will_wait(*opening);
  opening->in_pool = true;
  const uid_t user = opening->request.who.uid;
  File& file = *opening->file;
  const auto handed = std::make_shared<Handed>();
  handed->opening = std::move(opening);
  handed->go_on = std::move(go_on);
  const std::function<void()> under_way = [handed] {
    if (!handed->is_taken.exchange(true)) handed->go_on(std::move(handed->opening));
  };
  std::optional<Lock> own;
  if (held == nullptr) own.emplace(mutex_);
  file.under_way = under_way;
  file.lent_by.assign(1, user);
  if (own) lend_threads(file, *own);
  workers_.post(user, under_way);
}

// The user whose open has the file busy may have as many threads at work as he may: others who wait for the file lend one of theirs.
void OpenFiles::lend_threads(File& file, const Lock&) noexcept {
  if (!file.under_way) return;
  for (const auto& one : file.waiting) {
    const std::uint32_t user = one->request.who.uid;
    if (std::find(file.lent_by.begin(), file.lent_by.end(), user) != file.lent_by.end()) continue;
    file.lent_by.push_back(user);
    workers_.post(user, file.under_way);
  }
}

// A descriptor of the file. A lease of somebody else may hold that up for as long as its holder likes, up to a minute: then
// a request thread gets EWOULDBLOCK, and a thread of its own waits.
Result<UniqueFd> OpenFiles::open_backing(const Opening& opening, int flags) {
  for (;;) {
    auto fd = table_.open(opening.request.node, flags | O_NONBLOCK | O_CLOEXEC);
    if (fd || fd.error().code != EWOULDBLOCK || !opening.in_pool) return fd;
    if (is_given_up(opening)) return fail(EINTR, "nobody waits for it any more");
    std::this_thread::sleep_for(kAskAgain);
  }
}

// Whether this thread may do what is left. Takes one of the places if so.
bool OpenFiles::hashes_inline(const Opening& opening) {
  if (opening.orders.empty()) return true;
  File& file = *opening.file;
  bool unchanged = file.verified && is_leased(file);
  if (unchanged) {
    cache_.with(file.node, [&](FileRecord& record) {
      unchanged = std::all_of(opening.orders.begin(), opening.orders.end(),
                              [&](const MeasureOrder& order) { return record.is_measured_in(order.pcr, opening.log); });
    });
  }
  if (!unchanged) {
    struct stat attr {};
    if (::fstat(file.anchor.get(), &attr) != 0 || attr.st_size > kInlineSize) return false;
    if (inline_hashes_.fetch_add(1) >= options_.inline_hashes) {
      inline_hashes_.fetch_sub(1);
      return false;
    }
    return true;
  }
  inline_hashes_.fetch_add(1);
  return true;
}

// The kernel judged the open by what it believed of the file. That stands if it is true now; if not, the file system below
// judges again, as the caller. Exec opens are the caller's to execute, not to read.
Status OpenFiles::judge(const Opening& opening) {
  const File& file = *opening.file;
  const Requester& who = opening.request.who;
  const int flags = opening.request.flags;
  PathFd path;
  int fd = file.anchor.get();
  if (fd < 0) {
    auto found = table_.path_fd(file.node);
    if (!found) return fail(found.error());
    path = std::move(*found);
    fd = path->get();
  }
  struct stat attr {};
  if (::fstatat(fd, "", &attr, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) != 0) return fail(errno_error("stat"));
  if (table_.is_as_told(file.node, attr)) return {};
  int mask = (flags & O_ACCMODE) == O_RDONLY ? R_OK : (flags & O_ACCMODE) == O_WRONLY ? W_OK : R_OK | W_OK;
  if ((flags & O_TRUNC) != 0) mask |= W_OK;
  if ((flags & kExecFlag) != 0) mask = X_OK;
  const Caller caller{who.pid, who.uid, who.gid, 0};
  if ((flags & O_NOATIME) != 0 && who.uid != attr.st_uid && !has_capability(caller, CAP_FOWNER)) return fail(EPERM, "no atime");
  return may_access(caller, fd, mask);
}

// A descriptor to read from, and the way the file's data will be served while it is open.
Status OpenFiles::prepare(Opening& opening) {
  File& file = *opening.file;
  bool first = false;
  {
    const Lock lock(mutex_);
    first = !file.is_open();
    if (!charge(opening, lock)) return fail(EMFILE, "the user's share of descriptors is taken");
  }
  UniqueFd& created = opening.request.created;
  const bool made_for_reading = created && (::fcntl(created.get(), F_GETFL) & O_ACCMODE) == O_RDONLY;
  if (!file.anchor) {
    if (made_for_reading) {
      file.anchor = std::move(created);
    } else {
      auto fd = open_backing(opening, O_RDONLY | O_NOATIME);
      if (!fd && fd.error().code == EPERM) fd = open_backing(opening, O_RDONLY);
      if (fd) {
        file.anchor = std::move(*fd);
      } else if (fd.error().code != EACCES || (opening.request.flags & O_ACCMODE) != O_WRONLY) {
        return fail(fd.error());
      }
    }
    if (file.anchor) note_anchor(file);
  }
  if (made_for_reading) created.reset();
  if (!opening.created) {
    if (auto status = judge(opening); !status) return status;
  }
  // Decided anew only while nobody has it open: every open of an inode must be served the same way.
  if (first && file.backing_id <= 0 && options_.passthrough && file.anchor) {
    file.backing_id = std::max(0, kernel_.open_backing(file.anchor.get()));
    if (file.backing_id == 0) passthrough_unsupported_ = true;
  }
  const int flags = opening.request.flags;
  if (file.backing_id == 0 && !file.reader && (flags & O_ACCMODE) != O_WRONLY && (flags & O_NOATIME) == 0) {
    auto fd = open_backing(opening, O_RDONLY);
    if (!fd && fd.error().code == EWOULDBLOCK) return fail(fd.error());
    if (fd) file.reader = std::move(*fd);
  }
  if (opening.writes() && !opening.created && file.anchor) return may_be_written(file.anchor.get(), flags);
  return {};
}

// Its leases are found by its descriptor: without memory to note that, breaks would be missed, so the process ends.
void OpenFiles::note_anchor(File& file) noexcept {
  const auto index = static_cast<std::size_t>(file.anchor.get());
  std::tie(file.device, file.inode) = table_.identity_of(file.node);
  file.kind = kind_of_file_system(tree_.file_system_of(file.anchor.get(), file.device).magic);
  bool returned = false;
  cache_.with_existing(file.node, [&](FileRecord& record) { returned = record.take_given_up(); });
  const Lock lock(mutex_);
  if (returned && !std::exchange(file.returned, true)) ++returned_;
  if (by_fd_.size() <= index) by_fd_.resize(index + 256);
  by_fd_[index] = &file;
  file.lent = file.anchor.get();
}

// What rules may ask about the file itself.
Status OpenFiles::learn_content(Opening& opening) {
  File& file = *opening.file;
  const MeasureGate::Interests interests = gate_.interests();
  if (!interests.measures || !file.anchor) return {};
  // A new file has no content, and write-only opens map nothing.
  const bool reads = (opening.request.flags & O_ACCMODE) != O_WRONLY && !opening.created;
  if (interests.content && reads) {
    if (!file.content_known || file.kind == FileSystemKind::kLayered || !is_leased(file)) {
      std::array<std::uint8_t, 4> head{};
      const auto got = pread_full(file.anchor.get(), head, 0);
      file.is_elf = got && *got == head.size() && std::memcmp(head.data(), "\x7f" "ELF", 4) == 0;
      file.content_known = true;
    }
    opening.facts.is_elf = file.is_elf;
  }
  if (interests.owner) {
    auto attr = stat_of(file.anchor.get());
    if (!attr) return fail(attr.error());
    opening.facts.fowner = attr->st_uid;
    opening.facts.fgroup = attr->st_gid;
  }
  return {};
}

const std::string& OpenFiles::path_of(Opening& opening) const {
  if (opening.path.empty()) {
    const auto& own = opening.request.name;
    opening.path = own ? table_.path_of(*own) : table_.path_of(opening.request.node, opening.request.who.pid);
  }
  return opening.path;
}

Status OpenFiles::store_violation(File& file, Violation violation, const Requester& who, const std::string& path) noexcept {
  const auto [device, inode] = table_.identity_of(file.node);
  return gate_.store_violation(violation, NamedFile{file.anchor.get(), path, device, inode}, who);
}

// What comes before a reader is let in: the violations and the measuring.
Status OpenFiles::judge_reading(Opening& opening) {
  File& file = *opening.file;
  Status status;
  Writers& writers = opening.writers;
  bool is_busy_text = false;
  if (!opening.orders.empty()) {
    const auto is_watched = [&] {
      return std::any_of(opening.orders.begin(), opening.orders.end(), [](const MeasureOrder& order) {
        return order.hook == Hook::kFileCheck || order.hook == Hook::kMmapCheck || order.hook == Hook::kMmapCheckReqprot;
      });
    };
    bool watches = is_watched();
    bool was_armed = false;
    // Before there is a lease, and until finish() counts the reader: a break in between must not find nobody.
    if (watches) {
      cache_.with(file.node, [&](FileRecord& record) {
        was_armed = record.may_emit_tomtou();
        record.measured_reader_opened();
      });
      const Lock lock(mutex_);
      file.being_read = true;
    }
    writers = find_writers(file);
    if (writers == Writers::kTracked && opening.facts.is_exec && is_written_through_mount(file)) {
      // What is open for writing does not run. The kernel would look after us, and the writer may have closed it by then:
      // only the open happens, and we refuse the rest.
      is_busy_text = true;
      std::erase_if(opening.orders, [](const MeasureOrder& order) { return order.hook != Hook::kFileCheck; });
      if (std::exchange(watches, is_watched()) && !watches && !was_armed) {
        cache_.with(file.node, [](FileRecord& record) { (void)record.take_tomtou(); });
      }
    }
    // Named before anything is taken: no violation is lost for want of memory.
    if (watches && writers != Writers::kNone) (void)path_of(opening);
    bool emit = false;
    cache_.with(file.node, [&](FileRecord& record) {
      if (writers == Writers::kNone) record.writing_phase_ended();
      emit = watches && writers != Writers::kNone && writers != Writers::kOurselves && record.take_open_writers();
      // IMA: of writers beside us nothing tells one from the next, so each open has its own violation.
      if (writers == Writers::kOthers) emit = watches;
    });
    if (emit) {
      status = store_violation(file, Violation::kOpenWriters, opening.request.who, path_of(opening));
    }
    if (status) status = measure(opening, writers);
    if (status && is_busy_text) status = fail(ETXTBSY, "open for writing");
  }
  return status;
}

// What the open itself does to the file, once it is judged. EWOULDBLOCK: a lease of somebody else is in the way; all of it may
// be tried again.
Status OpenFiles::act(Opening& opening) {
  if (opening.is_answered) return fail(EINTR, "answered already");  // who is dead changes nothing any more
  if (opening.writes()) return act_for_writing(opening);
  File& file = *opening.file;
  Status status;
  if ((opening.request.flags & O_TRUNC) != 0) status = truncate(opening);
  if (status && file.backing_id == 0 && file.anchor) {
    // The kernel may keep the pages it has if the file is as it was when they were read; while somebody writes to it,
    // no version says that. Nor do equal times if the file had to be hashed: the pages may be of a moment between two hashes.
    const auto attr = stat_of(file.anchor.get());
    const FileVersion version = attr && opening.writers == Writers::kNone ? version_of(*attr) : FileVersion{};
    const auto now = std::chrono::steady_clock::now();
    const bool is_known = version != FileVersion{} && version == file.cached_version && !opening.is_hashed_anew;
    if (!is_known) file.pages_doubted = now;
    file.keep_cache = is_known && now - file.pages_doubted > kOpenEnds && now_ns() - version.ctime_ns > clock_grain_of(version);
    file.cached_version = version;
    if (!file.keep_cache) kernel_.drop_attributes(file.node);
  }
  return status;
}

Status OpenFiles::judge_writing(Opening& opening) {
  File& file = *opening.file;
  Status status;
  bool armed = false;
  cache_.with_existing(file.node, [&](FileRecord& record) { armed = record.may_emit_tomtou(); });
  if (armed && has_readers(file)) {
    (void)path_of(opening);  // before anything is taken
    bool emit = false;
    cache_.with(file.node, [&](FileRecord& record) { emit = record.take_tomtou(); });
    if (emit) {
      status = store_violation(file, Violation::kToMToU, opening.request.who, path_of(opening));
    }
  }
  if (status && !opening.orders.empty()) {
    opening.writers = find_writers(file);
    status = measure(opening, opening.writers);
  }
  if (!status) return status;
  return end_writing_phase(file);
}

Status OpenFiles::act_for_writing(Opening& opening) {
  File& file = *opening.file;
  // Our own open would wait for our own lease.
  drop_lease(file);
  cache_.with_existing(file.node, [](FileRecord& record) { record.was_open_for_write(); });
  // What was made for reading and writing may have a mode that forbids us to open it again.
  if (file.backing_id == 0 && !file.writer) file.writer = std::move(opening.request.created);
  if (file.backing_id == 0 && !file.writer) {
    auto fd = open_backing(opening, O_RDWR);
    if (!fd && fd.error().code == EACCES) fd = open_backing(opening, O_WRONLY);
    if (!fd && fd.error().code == EPERM) fd = open_backing(opening, O_RDWR | O_APPEND);  // append-only
    if (!fd) return fail(fd.error());
    file.writer = std::move(*fd);
  }
  file.keep_cache = false;
  file.cached_version = {};
  // What the kernel has may be kept for long; from now on it is asked for each time.
  if ((opening.request.flags & O_ACCMODE) == O_RDWR && file.backing_id > 0) kernel_.drop_attributes(file.node);
  if ((opening.request.flags & O_TRUNC) != 0 && !opening.created) return truncate(opening);
  return {};
}

// A writer comes. If others were there before and are gone, what they left is judged now: later their
// changes could not be told from this one's.
Status OpenFiles::end_writing_phase(File& file) {
  bool emitted = false, hashed = false;
  cache_.with_existing(file.node, [&](FileRecord& record) {
    emitted = record.has_emitted_open_writers();
    hashed = record.is_hashed();
  });
  // A phase ends with its last writer, whoever looks: the next one has its own violation.
  const bool tracked = is_written_through_mount(file);
  const Writers writers = emitted || (tracked && hashed) ? find_writers(file) : Writers::kNone;
  cache_.with_existing(file.node, [&](FileRecord& record) {
    if (writers != Writers::kTracked) record.writing_phase_ended();
    if (writers == Writers::kDoubtful) record.clear();  // of those who are gone, if they are, nothing will tell
  });
  if (!hashed || !file.anchor || is_written_through_mount(file)) return {};
  const auto attr = stat_of(file.anchor.get());
  if (!attr) return fail(attr.error());
  cache_.with(file.node, [&](FileRecord& record) {
    if (record.standing(version_of(*attr), now_ns(), FileRecord::Writers::kPerhaps) == FileRecord::Standing::kStale) record.clear();
  });
  return {};
}

// O_TRUNC, held back until the old content was judged.
Status OpenFiles::truncate(Opening& opening) noexcept {
  File& file = *opening.file;
  const bool was_watched = drop_lease(file);
  auto fd = open_backing(opening, O_WRONLY);
  if (!fd) return fail(fd.error());
  if (::ftruncate(fd->get(), 0) != 0) return fail(errno_error("truncate"));
  if (opening.request.kill_suidgid) {
    const Requester& who = opening.request.who;
    if (auto status = kill_privileges(fd->get(), Caller{who.pid, who.uid, who.gid, 0}); !status) return status;
  }
  cache_.with(file.node, [](FileRecord& record) { record.clear(); });
  fd->reset();  // or it would be somebody who writes
  if (was_watched && !opening.writes()) watch_readers_again(file);
  return {};
}

}  // namespace imafs
