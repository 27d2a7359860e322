#include "imafs/open_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <thread>
#include <utility>

#include "imafs/check.h"
#include "open_file_state.h"

namespace imafs {
namespace {

constexpr std::size_t kMayWait = 100;  // descriptors beyond the limit, if there are many
// RELEASE can overtake the end of the close(2) it tells of.
constexpr auto kCloseEnds = std::chrono::milliseconds(2);

constexpr std::size_t kWithoutPassthrough = 3;  // descriptors of an open file: to measure, to read, to write
constexpr uid_t kOurselves = ~uid_t{0};  // whose jobs are nobody's
constexpr uid_t kClosing = kOurselves - 1;  // closes that may take as long as a file system does not answer

}  // namespace

OpenFiles::OpenFiles(Options options, Kernel kernel, BackingTree& tree, InodeTable& table, MeasureGate& gate, Reaper& reaper,
                     FairWorkers& workers, DescriptorBudget& budget)
    : options_(options), kernel_(std::move(kernel)), tree_(tree), table_(table), gate_(gate), reaper_(reaper), workers_(workers), budget_(budget) {
  overseer_ = std::thread([this] { look_after_waiting(); });
  has_neighbours_ = kernel_.has_neighbours();
  if (options_.leases) leases_ = LeaseKeeper::start([this](LeaseKeeper::Breaks breaks) { on_breaks(std::move(breaks)); }, [this] { on_tick(); });
}

OpenFiles::~OpenFiles() {
  stop();
  overseer_.join();
  workers_.finish();  // it may be asking for leases
  breaks_.finish();
  violations_.finish();
  leases_.reset();
  reaper_.settle();
}

// ---- handles ----

int OpenFiles::readable(std::uint64_t handle) { return reinterpret_cast<Handle*>(handle)->reads_from; }

Result<OpenFiles::Writable> OpenFiles::writable(std::uint64_t handle) {
  const auto* const open = reinterpret_cast<Handle*>(handle);
  if (!open->writes) return fail(EBADF, "not open for writing");
  // `writer` is set before the handle is given out and lives as long as any handle that writes.
  if (open->file->writer) return Writable{open->file->writer.get(), UniqueFd()};
  // As long as it is open for writing nobody has a lease that this would wait for.
  auto fd = table_.open(open->file->node, O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (!fd && fd.error().code == EPERM) fd = table_.open(open->file->node, O_RDWR | O_APPEND | O_NONBLOCK | O_CLOEXEC);  // append-only
  if (!fd) return fail(fd.error());
  Writable own;
  own.fd = fd->get();
  own.owned = std::move(*fd);
  return own;
}

// The kernel tells a write error to each open file description once, and handles share ours. The first fsync of a handle asks
// the shared one, and what that was told is remembered for the others; then the handle gets one of its own.
Status OpenFiles::sync(std::uint64_t handle, bool only_data) {
  auto& open = *reinterpret_cast<Handle*>(handle);
  File& file = *open.file;
  const auto flush = [only_data](int fd) { return (only_data ? ::fdatasync(fd) : ::fsync(fd)) == 0 ? 0 : errno; };
  std::unique_lock shared(file.sync_mutex);
  int code = 0;
  if (open.synced_by) {
    const int own = open.synced_by.get();
    shared.unlock();
    code = flush(own);
  } else {
    code = flush(open.reads_from);
    if (code != 0) {
      ++file.write_errors;
      file.write_error = code;
    } else if (open.errors_seen != file.write_errors) {
      code = file.write_error;
    }
    open.errors_seen = file.write_errors;
    if (!budget_.take(open.user)) return code != 0 ? Status(fail(code, "sync")) : Status();
    if (auto own = table_.open(file.node, O_RDONLY | O_NONBLOCK | O_CLOEXEC)) open.synced_by = std::move(*own);
    if (!open.synced_by) budget_.give_back(open.user);
  }
  if (code != 0) return fail(code, "sync");
  return {};
}

NodeId OpenFiles::node_of(std::uint64_t handle) { return reinterpret_cast<Handle*>(handle)->file->node; }

// ---- opening ----

OpenFiles::File& OpenFiles::file_of(NodeId node, const Lock&) {
  auto found = files_.find(node);
  if (found == files_.end()) found = files_.emplace(node, std::make_unique<File>(node)).first;
  unlist(*found->second);
  return *found->second;
}

void OpenFiles::open(Request request, Done done) {
  auto opening = std::make_unique<Opening>(std::move(request), std::move(done));
  opening->created = static_cast<bool>(opening->request.created);

  ++opens_begun_;
  try {
    reaper_.keep_up();
    if (!make_busy(opening)) return;
  } catch (...) {
    waits_no_more(*opening);  // it is still ours: what throws is what would have taken it
    if (opening->done) ++opens_ended_;  // or it was counted when it was answered
    throw;
  }
  run(std::move(opening));
}

// False: the file is busy, and the opening is in its queue.
bool OpenFiles::make_busy(std::unique_ptr<Opening>& opening) {
  for (;;) {
    Lock lock(mutex_);
    File& file = file_of(opening->request.node, lock);
    opening->file = &file;
    if (file.busy && opening->is_listed) {
      file.waiting.push_back(std::move(opening));
      lend_threads(file, lock);
      return false;
    }
    if (file.busy) {
      // While the mutex is not held it may go away, or have it open no more: looked for again.
      opening->file = nullptr;
      lock.unlock();
      will_wait(*opening);
      continue;
    }
    file.busy = true;
    file.broken = false;
    if (files_.size() > options_.descriptors) trim_idle(lock);
    return true;
  }
}

void OpenFiles::finish(std::unique_ptr<Opening> opening, Status status) noexcept {
  waits_no_more(*opening);
  File& file = *opening->file;
  Result<Opened> result = fail(EIO, "");
  if (!opening->done) status = fail(EINTR, "");
  if (status) {
    const bool moves_atime = file.reader && (opening->request.flags & O_NOATIME) == 0;
    const UniqueFd& source = moves_atime ? file.reader : file.anchor ? file.anchor : file.writer;
    auto* const handle = new (std::nothrow) Handle{&file, source.get(), opening->writes(), opening->request.who.uid, file.write_errors, UniqueFd()};
    if (handle) {
      result = Opened{reinterpret_cast<std::uint64_t>(handle), file.backing_id, file.keep_cache};
    } else {
      status = fail(ENOMEM, "");
    }
  }
  if (!status) result = fail(std::move(status.error()));
  {
    Lock lock(mutex_);
    if (status) ++(opening->writes() ? file.writers : file.readers);
    if (!status && opening->is_charged) discharge(file, opening->request.who.uid, lock);
    if (status && (opening->request.flags & O_ACCMODE) == O_RDWR) set_writable(file, true, lock);
    file.being_read = false;
    leave_busy(file, lock);
  }
  if (!opening->done) return;
  ++opens_ended_;
  opening->done(std::move(result));
}

// Ends a busy time: the next in the queue, or rest.
void OpenFiles::leave_busy(File& file, Lock& lock) noexcept {
  file.under_way = nullptr;
  if (file.writers == 0) close(file, file.writer);  // it would count as somebody who writes
  if (!file.is_open()) close(file, file.reader);
  if (file.check_mapped && !file.is_open()) {
    file.check_mapped = false;
    lock.unlock();
    note_mappings(file);
    lock.lock();
  }
  if (!file.waiting.empty()) {
    auto next = std::move(file.waiting.front());
    file.waiting.pop_front();
    file.broken = false;
    // Another thread takes it: a queue of opens must not grow our stack, nor hold up the reply of this one.
    hand_over(std::move(next), [this](std::unique_ptr<Opening> taken) { run(std::move(taken)); }, &lock);
    lend_threads(file, lock);
    return;
  }
  file.busy = false;
  if (file.is_open() || file.listed_idle || file.pins > 0 || file.borrowers > 0) return;
  // Another imafs would take our descriptor for a reader.
  if (has_neighbours_ && !file.may_be_mapped() && !file.writable) {
    give_up({&claim(file, lock)}, lock);
    return;
  }
  file.idle_since = std::chrono::steady_clock::now();
  file.idle_position = idle_.insert(idle_.end(), &file);
  file.listed_idle = true;
  trim_idle_soon(lock);
}

void OpenFiles::release(std::uint64_t handle) noexcept {
  const std::unique_ptr<Handle> open(reinterpret_cast<Handle*>(handle));
  File& file = *open->file;
  if (open->synced_by) budget_.give_back(open->user);
  open->synced_by.reset();  // or it would count as somebody who reads
  Lock lock(mutex_);
  auto& count = open->writes ? file.writers : file.readers;
  IMAFS_CHECK(count > 0);
  --count;
  discharge(file, open->user, lock);
  if (file.busy) {
    file.check_mapped = true;
    return;
  }
  if (file.is_open() && (file.writers > 0 || !file.writer)) return;
  file.busy = true;
  if (!file.is_open()) {
    lock.unlock();
    note_mappings(file);
    lock.lock();
  }
  leave_busy(file, lock);
}

// The last handle is closed, but in passthrough mode mappings live on without one. A writer among them goes on with its
// phase, a reader still counts when somebody writes. REQUIRES: busy is ours, the mutex is not held.
void OpenFiles::note_mappings(File& file, bool again) noexcept {
  if (!leases_ || file.backing_id == 0) return;
  const bool outlived = file.writable && file.anchor && take_lease(file, &LeaseKeeper::watch) == LeaseKeeper::Answer::kRefused;
  {
    const Lock lock(mutex_);
    file.outlived = outlived;
    if (!file.leased) file.mapped = file.unsure = false;
    if (!file.leased) return;
  }
  bool armed = false;
  cache_.with(file.node, [&](FileRecord& record) { armed = record.may_emit_tomtou(); });
  const bool others = armed && leases_->watch_if_alone(file.anchor.get()) == LeaseKeeper::Answer::kRefused;
  // RELEASE can overtake the end of the very close(2) it tells of, and a writer may have come meanwhile: then
  // the answer says nothing yet. Libraries and programs are what lives on in mappings; others are asked again.
  const bool sure = !others || (file.is_elf && !has_neighbours_) || again;
  {
    const Lock lock(mutex_);
    file.mapped = others && sure;
    file.unsure = others && !sure;
  }
  if (!sure) workers_.post(kOurselves, [this, node = file.node] { ask_again_for_mappings(node); });
}

void OpenFiles::ask_again_for_mappings(NodeId node) noexcept {
  std::this_thread::sleep_for(kCloseEnds);
  File* file = nullptr;
  {
    const Lock lock(mutex_);
    const auto found = files_.find(node);
    if (found == files_.end() || found->second->busy || found->second->is_open()) return;
    file = &file_of(node, lock);
    file->busy = true;
  }
  note_mappings(*file, true);
  Lock lock(mutex_);
  leave_busy(*file, lock);
}

// ---- descriptors ----

// A file costs each user who has it open what it costs us, once.
bool OpenFiles::charge(Opening& opening, const Lock&) {
  const std::uint32_t user = opening.request.who.uid;
  if (user == 0 || opening.is_charged) return true;
  auto& users = opening.file->users;
  const auto own = std::find_if(users.begin(), users.end(), [&](const auto& one) { return one.first == user; });
  if (own != users.end()) {
    ++own->second;
  } else {
    users.reserve(users.size() + 1);
    if (!budget_.take(user, options_.passthrough ? 1 : kWithoutPassthrough)) return false;
    users.emplace_back(user, 1);
  }
  opening.is_charged = true;
  return true;
}

void OpenFiles::discharge(File& file, std::uint32_t user, const Lock&) {
  if (user == 0) return;
  const auto own = std::find_if(file.users.begin(), file.users.end(), [&](const auto& one) { return one.first == user; });
  if (own == file.users.end() || --own->second > 0) return;
  *own = file.users.back();
  file.users.pop_back();
  budget_.give_back(user, options_.passthrough ? 1 : kWithoutPassthrough);
}

// REQUIRES: the mutex is held.
void OpenFiles::unlist(File& file) {
  if (file.listed_idle) idle_.erase(file.idle_position);
  file.listed_idle = false;
}

OpenFiles::Borrowed OpenFiles::borrow(NodeId node) {
  const Lock lock(mutex_);
  const auto found = files_.find(node);
  if (found == files_.end() || !found->second->is_open() || found->second->lent < 0) return {};
  ++found->second->borrowers;
  return {*this, *found->second, found->second->lent};
}

void OpenFiles::give_back(File& file) noexcept {
  Lock lock(mutex_);
  if (--file.borrowers > 0 || file.busy || file.is_open() || file.listed_idle) return;
  file.busy = true;  // it could not rest while it was lent
  leave_busy(file, lock);
}

// How many idle files may keep their descriptor. What was opened again after its descriptor had been given up belongs to
// a tree that is used again and again: it is kept on top, while the tree is small enough for that to help.
std::size_t OpenFiles::idle_limit() const {
  const bool helps = returned_ > 0 && table_.size() <= options_.small_tree;
  const std::size_t wanted = options_.idle_descriptors + (helps ? std::min(returned_, options_.returned_descriptors) : 0);
  const std::size_t open = files_.size() - idle_.size();
  return std::min(wanted, options_.descriptors - std::min(options_.descriptors, open));
}

// Not in the thread that serves a close: the next open would find it busy, and need another one.
void OpenFiles::trim_idle_soon(Lock& lock) noexcept {
  const std::size_t limit = idle_limit();
  if (idle_.size() <= limit) return;
  if (idle_.size() > limit + std::min(kMayWait, options_.descriptors / 32)) return trim_idle(lock);
  if (std::exchange(trim_posted_, true)) return;
  reaper_.post([this] {
    Lock later(mutex_);
    trim_posted_ = false;
    trim_idle(later);
  });
}

// Frees idle files beyond the limit: the oldest one time, the newest the other, so that a tree which is read again and
// again and is larger than the limit finds a part of it each time. Those with mapped readers stay: their lease is the
// only thing that will tell us of a writer.
void OpenFiles::trim_idle(Lock& lock) noexcept {
  std::vector<File*> leaving;
  const auto can_go = [](const File* file) { return !file->may_be_mapped(); };
  const std::size_t limit = idle_limit();
  while (idle_.size() > limit) {
    trims_newest_ = !trims_newest_;
    auto victim = idle_.end();
    if (trims_newest_) {
      const auto newest = std::find_if(idle_.rbegin(), idle_.rend(), can_go);
      if (newest != idle_.rend()) victim = std::prev(newest.base());
    } else {
      victim = std::find_if(idle_.begin(), idle_.end(), can_go);
    }
    if (victim == idle_.end()) break;
    leaving.push_back(&claim(**victim, lock));
  }
  give_up(leaving, lock);
}

// An idle file is about to lose its descriptor: from here to the end of give_up() it is busy, or an open meanwhile would
// take our old descriptor for somebody else's; and the lease thread finds it no more.
OpenFiles::File& OpenFiles::claim(File& file, const Lock& lock) noexcept {
  unlist(file);
  file.busy = true;
  set_writable(file, false, lock);
  if (file.anchor) by_fd_[static_cast<std::size_t>(file.anchor.get())] = nullptr;
  file.lent = -1;
  return file;
}

// Closes what claimed files hold, and forgets those that nobody waits for.
void OpenFiles::give_up(const std::vector<File*>& files, Lock& lock) noexcept {
  for (File* const file : files) {
    lock.unlock();
    drop_lease(*file);
    cache_.with_existing(file->node, [](FileRecord& record) { record.gave_up_descriptor(); });
    if (file->backing_id > 0) kernel_.close_backing(std::exchange(file->backing_id, 0));
    close_anchor(*file);
    lock.lock();
    if (std::exchange(file->returned, false)) --returned_;
    if (file->waiting.empty()) {
      files_.erase(file->node);
    } else {
      leave_busy(*file, lock);
    }
  }
}

// What asks a server when a file is closed (FUSE, network) may not answer: that must hold up neither who holds the mutex, nor a
// thread that has others to serve.
void OpenFiles::close(const File& file, UniqueFd& fd) noexcept {
  if (fd && file.kind == FileSystemKind::kForeign) workers_.post(kClosing, [closing = std::make_shared<UniqueFd>(std::move(fd))] {});
  fd.reset();
}

// The last close of a deleted file takes long, and nobody will open it again.
void OpenFiles::close_anchor(File& file) noexcept {
  if (file.kind == FileSystemKind::kForeign) return close(file, file.anchor);
  struct stat attr {};
  if (file.anchor && ::fstat(file.anchor.get(), &attr) == 0 && attr.st_nlink == 0) {
    reaper_.post([anchor = std::make_shared<UniqueFd>(std::move(file.anchor))] {});
  }
  file.anchor.reset();
}

void OpenFiles::set_writable(File& file, bool writable, const Lock&) {
  file.outlived = false;
  if (std::exchange(file.writable, writable) == writable) return;
  writable ? ++writable_ : --writable_;
}

bool OpenFiles::may_be_mapped_for_writing(NodeId node) const {
  if (writable_ == 0) return false;
  const Lock lock(mutex_);
  const auto found = files_.find(node);
  return found != files_.end() && found->second->writable;
}

void OpenFiles::let_go(NodeId node) noexcept {
  Lock lock(mutex_);
  const auto found = files_.find(node);
  if (found == files_.end() || !found->second->listed_idle || found->second->busy) return;
  give_up({&claim(*found->second, lock)}, lock);
}

void OpenFiles::forget(NodeId node) noexcept {
  let_go(node);
  cache_.forget(node);
}

void OpenFiles::drop_idle() {
  Lock lock(mutex_);
  std::vector<File*> leaving;
  while (!idle_.empty()) leaving.push_back(&claim(*idle_.front(), lock));
  give_up(leaving, lock);
}

// ---- changes that are not opens ----

bool OpenFiles::will_truncate(NodeId node) {
  File* file = nullptr;
  {
    Lock lock(mutex_);
    const auto found = files_.find(node);
    // Of a busy file the lease thread gives way, when our own truncate breaks the lease.
    if (found == files_.end() || !found->second->leased || found->second->busy) {
      lock.unlock();
      cache_.with_existing(node, [](FileRecord& record) { record.clear(); });
      return false;
    }
    file = found->second.get();
    file->busy = true;
    unlist(*file);
  }
  const bool was_watched = drop_lease(*file);
  cache_.with(node, [](FileRecord& record) { record.clear(); });
  Lock lock(mutex_);
  leave_busy(*file, lock);
  return was_watched;
}

void OpenFiles::did_truncate(NodeId node) noexcept {
  File* file = nullptr;
  {
    const Lock lock(mutex_);
    const auto found = files_.find(node);
    if (found == files_.end()) return;
    file = found->second.get();
    // Who opens it meanwhile asks for a lease as well.
    if (file->busy || file->writers > 0 || (file->readers == 0 && !file->may_be_mapped())) return;
    file->busy = true;
    unlist(*file);
  }
  watch_readers_again(*file);
  Lock lock(mutex_);
  leave_busy(*file, lock);
}

void OpenFiles::did_change_attributes(NodeId node, bool times_set) noexcept {
  cache_.with_existing(node, [&](FileRecord& record) {
    if (times_set) record.times_were_set();
  });
}

bool OpenFiles::is_written(NodeId node) const {
  const Lock lock(mutex_);
  const auto found = files_.find(node);
  return found != files_.end() && found->second->writers > 0;
}

void OpenFiles::did_change_label(NodeId node) noexcept {
  cache_.with_existing(node, [](FileRecord& record) { record.clear(); });
}

OpenFiles::Health OpenFiles::health() const {
  Health health;
  health.leases_unsupported = leases_unsupported_ || !leases_;
  health.layers_unwatched = layers_unwatched_;
  health.writers_unreported = writers_unreported_;
  health.owed_violations = owed_violations_;
  health.passthrough_unsupported = passthrough_unsupported_ || !options_.passthrough;
  health.measured = measured_;
  health.cache_hits = cache_hits_;
  health.hashed_bytes = hashed_bytes_;
  health.inline_hashes = inline_hashes_;
  const Lock lock(mutex_);
  health.files = files_.size();
  for (const auto& [node, file] : files_) {
    health.open += file->readers + file->writers;
    health.leased += file->leased ? 1 : 0;
  }
  return health;
}

}  // namespace imafs
