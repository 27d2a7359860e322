// Files that are open through the mount, or were a moment ago: who reads, who writes, the descriptor
// and the lease that watch them, and the measuring of each open.
//
// Thread-safe. One mutex guards the counts; a file's `busy` flag, not a mutex, keeps everything that
// takes time in one order for each file: later opens of a busy file queue up without a thread.
#pragma once

#include <sys/stat.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "imafs/descriptor_budget.h"
#include "imafs/fair_turns.h"
#include "imafs/fair_workers.h"
#include "imafs/inode_table.h"
#include "imafs/lease_keeper.h"
#include "imafs/measure_cache.h"
#include "imafs/measure_gate.h"
#include "imafs/reaper.h"
#include "imafs/tree_watch.h"
#include "imafs/unique_fd.h"
#include "imafs/worker_pool.h"

namespace imafs {

class OpenFiles {
  struct File;

 public:
  struct Options {
    bool passthrough = true;
    bool leases = true;
    std::size_t idle_descriptors = 1300;      // kept for files that nobody has open; a few more for a moment
    std::size_t returned_descriptors = 8000;  // and for those that were opened again after theirs was given up,
    std::uint64_t small_tree = 16000;         // while not more inodes than these are known;
    std::size_t descriptors = 12000;          // for open files and idle ones together: these make room
    unsigned inline_hashes = 12;              // request threads that may hash a small file at once; 0: pool only
  };
  // What only the FUSE session can do. All thread-safe.
  struct Kernel {
    std::function<int(int fd)> open_backing;     // a backing id > 0, or a negative errno
    std::function<void(int id)> close_backing;
    std::function<void(NodeId)> drop_page_cache;
    std::function<void(NodeId)> drop_attributes;  // at once; among them the size, which ends a cached read
    // How many requests are on their way to us or in work; nothing if that cannot be learnt.
    std::function<std::optional<unsigned>()> requests;
    std::function<bool()> has_neighbours;     // another imafs shows these files
    std::function<bool(NodeId)> is_our_own;   // what we keep open for ourselves: the state directory, the file of messages
    // Who reports writers outside the mount; null: nobody.
    std::function<TreeWatch*()> watch;
  };
  // What is not as it should be, for status. Counters only grow.
  struct Health {
    bool leases_unsupported = false;       // some file could not be watched
    bool passthrough_unsupported = false;  // some file is served through the daemon
    bool layers_unwatched = false;         // some file may be written below us without a trace: hashed at each open
    bool writers_unreported = false;       // some file is hashed again whenever no lease was kept on it
    std::uint64_t owed_violations = 0;     // files whose violation could not be logged yet: not opened until it is
    std::uint64_t files = 0, open = 0, leased = 0;
    std::uint64_t measured = 0, cache_hits = 0, hashed_bytes = 0, inline_hashes = 0;
  };

  struct Request {
    NodeId node = 0;
    int flags = 0;  // as FUSE gives them: open(2)'s and 0x20 for exec
    Requester who;
    std::optional<InodeTable::Name> name;  // by which its own thread has just found it; nothing: not known
    bool unnamed = false;       // made by O_TMPFILE
    bool kill_suidgid = false;  // clear setuid, setgid and capabilities when truncating
    // Whether who asked is being killed; null: never. Called while the answer is owed, on another thread.
    std::function<bool()> is_killed;
    UniqueFd created;           // a descriptor of a file this open has just made: O_RDONLY, or O_RDWR without passthrough
  };
  struct Opened {
    std::uint64_t handle = 0;
    int backing_id = 0;  // 0: not in passthrough mode
    bool keep_cache = false;
  };
  using Done = std::function<void(Result<Opened>)>;

  // `reaper`, `workers` and `budget` outlive this; what `kernel` calls outlives them. Nobody else posts to `workers` when this ends.
  OpenFiles(Options options, Kernel kernel, BackingTree& tree, InodeTable& table, MeasureGate& gate,
            Reaper& reaper, FairWorkers& workers, DescriptorBudget& budget);
  ~OpenFiles();

  // Measures what the policy asks for, then calls `done`: on this thread or on another one. EMFILE: the user has his share of
  // our descriptors. EINTR: who asked is being killed,
  // or stop() was called. A file is hashed on as long as anybody waits for it.
  void open(Request request, Done done);
  void release(std::uint64_t handle) noexcept;

  // Descriptors of an open handle, valid until its release. Reads of data go to the first.
  static int readable(std::uint64_t handle);
  // A descriptor for writing: the handle's own, or (passthrough) one for this call.
  struct Writable {
    int fd = -1;
    UniqueFd owned;
  };
  Result<Writable> writable(std::uint64_t handle);
  // fsync(2), fdatasync(2). An error of writing to the disk is told to each handle that was open then, once.
  Status sync(std::uint64_t handle, bool only_data);
  static NodeId node_of(std::uint64_t handle);

  // The O_RDONLY descriptor of a file that somebody has open, for calls that would need one of their own. It stays open as
  // long as this lives.
  class Borrowed {
   public:
    Borrowed() = default;
    Borrowed(Borrowed&& other) noexcept : files_(std::exchange(other.files_, nullptr)), file_(other.file_), fd_(other.fd_) {}
    Borrowed& operator=(Borrowed&&) = delete;
    ~Borrowed() {
      if (files_) files_->give_back(*file_);
    }
    explicit operator bool() const { return files_ != nullptr; }
    int fd() const { return fd_; }

   private:
    friend class OpenFiles;
    Borrowed(OpenFiles& files, File& file, int fd) : files_(&files), file_(&file), fd_(fd) {}

    OpenFiles* files_ = nullptr;
    File* file_ = nullptr;
    int fd_ = -1;
  };
  Borrowed borrow(NodeId node);  // empty: nobody has it open, or we cannot read it

  // Around changes that do not come as an open for writing.
  // By path or handle, before it happens. True if did_truncate() is wanted afterwards.
  bool will_truncate(NodeId node);
  // What has happened must be noted: without memory for that the process ends.
  void did_truncate(NodeId node) noexcept;
  void did_change_attributes(NodeId node, bool times_set) noexcept;
  void did_change_label(NodeId node) noexcept;  // security.ima set or removed
  void did_change_flags(NodeId node) noexcept { kernel_.drop_attributes(node); }  // an ioctl: the ctime has moved
  bool is_written(NodeId node) const;  // somebody has it open for writing through the mount
  void forget(NodeId node) noexcept;
  // Whether a mapping of this mount may store into it: open for reading and writing, or so since it was last known
  // that nobody writes.
  bool may_be_mapped_for_writing(NodeId node) const;
  void let_go(NodeId node) noexcept;  // closes it, if nobody has it open

  // What waits gives up soon, what is being hashed is not hashed to its end. For the end.
  void stop();
  bool is_stopping() const { return stopping_; }

  // Gives back every descriptor that nobody needs. For the end, and for tests.
  void drop_idle();
  Health health() const;

 private:
  struct Handle;
  struct Opening;
  class RequestFacts;
  using Lock = std::unique_lock<std::mutex>;

  // Those that wait, and who waits for them (open_waiting.cpp).
  bool is_given_up(const Opening& opening) const;
  void will_wait(Opening& opening);
  void waits_no_more(Opening& opening);
  void look_after_waiting();
  void give_up_killed();

  // Bookkeeping (open_files.cpp).
  bool make_busy(std::unique_ptr<Opening>& opening);
  void finish(std::unique_ptr<Opening> opening, Status status) noexcept;
  void leave_busy(File& file, Lock& lock) noexcept;
  File& file_of(NodeId node, const Lock& lock);
  void unlist(File& file);
  void give_back(File& file) noexcept;
  void trim_idle_soon(Lock& lock) noexcept;
  void trim_idle(Lock& lock) noexcept;
  std::size_t idle_limit() const;  // REQUIRES: the mutex is held
  File& claim(File& file, const Lock& lock) noexcept;
  void give_up(const std::vector<File*>& files, Lock& lock) noexcept;
  void close_anchor(File& file) noexcept;
  void note_mappings(File& file, bool again = false) noexcept;
  void ask_again_for_mappings(NodeId node) noexcept;
  void set_writable(File& file, bool writable, const Lock& lock);

  // The lease thread's (open_watch.cpp).
  struct Broken;
  void on_breaks(LeaseKeeper::Breaks breaks);
  void settle_breaks(const std::vector<Broken>& broken);
  void wait_for_releases(const std::vector<Broken>& broken);
  void end_lease(File& file) noexcept;
  void rest(const Broken& broken);
  bool is_leased(File& file) noexcept;
  void on_tick() noexcept;
  bool drop_lease(File& file) noexcept;  // whether there was one
  void watch_readers_again(File& file) noexcept;
  void note_writer_beside(File& file, bool is_read) noexcept;
  Status log_owed_violation(File& file) noexcept;
  std::optional<std::uint64_t> take_reports(const File& file);
  FileRecord::Writers writers_since(const File& file, const FileRecord& record) const;

  // One open (open_measure.cpp, open_collect.cpp, open_watch.cpp). The file is busy, and ours.
  void run(std::unique_ptr<Opening> opening) noexcept;
  Status decide(Opening& opening);
  void carry_out(std::unique_ptr<Opening> opening) noexcept;
  void hand_over(std::unique_ptr<Opening> opening, std::function<void(std::unique_ptr<Opening>)> go_on, const Lock* held = nullptr) noexcept;
  void lend_threads(File& file, const Lock&) noexcept;
  void close(const File& file, UniqueFd& fd) noexcept;
  Result<UniqueFd> open_backing(const Opening& opening, int flags);
  bool charge(Opening& opening, const Lock& lock);
  void discharge(File& file, std::uint32_t user, const Lock& lock);
  Status prepare(Opening& opening);
  void note_anchor(File& file) noexcept;
  Status judge(const Opening& opening);
  Status learn_content(Opening& opening);
  Status judge_reading(Opening& opening);
  Status judge_writing(Opening& opening);
  Status act(Opening& opening);
  Status act_for_writing(Opening& opening);
  Status truncate(Opening& opening) noexcept;
  enum class Writers {
    kNone,
    kTracked,   // of the mount, and one of them for sure
    kDoubtful,  // perhaps those we know of, perhaps others, perhaps none any more
    kOthers,    // outside the mount
    kOurselves, // we, for ourselves, and nobody through the mount
  };
  Writers find_writers(File& file);
  bool releases_are_in() const;
  bool has_waited_for_releases(std::chrono::steady_clock::time_point start) const;
  bool is_written_through_mount(const File& file) const;
  LeaseKeeper::Answer take_lease(File& file, LeaseKeeper::Answer (LeaseKeeper::*ask)(int)) noexcept;
  bool has_readers(File& file);
  Status end_writing_phase(File& file);
  Status measure(Opening& opening, Writers& writers);
  Result<Collected> collect(Opening& opening, const MeasureOrder& order, struct stat before, Writers& writers, bool direct);
  const std::string& path_of(Opening& opening) const;
  Status store_violation(File& file, Violation violation, const Requester& who, const std::string& path) noexcept;
  bool hashes_inline(const Opening& opening);

  const Options options_;
  const Kernel kernel_;
  BackingTree& tree_;
  InodeTable& table_;
  MeasureGate& gate_;
  Reaper& reaper_;
  FairWorkers& workers_;
  DescriptorBudget& budget_;
  MeasureCache cache_;

  mutable std::mutex mutex_;
  std::unordered_map<NodeId, std::unique_ptr<File>> files_;  // guarded by mutex_
  std::size_t returned_ = 0;     // guarded by mutex_; files with `returned` set
  bool trims_newest_ = false;    // guarded by mutex_
  bool trim_posted_ = false;     // guarded by mutex_
  std::atomic<std::size_t> writable_{0};  // files with may_be_mapped set; changed under mutex_
  std::list<File*> idle_;        // guarded by mutex_; files nobody has open, the longest idle first
  std::vector<File*> by_fd_;     // guarded by mutex_; which file a lease's descriptor belongs to
  std::atomic<unsigned> inline_hashes_{0};
  std::atomic<std::uint64_t> opens_begun_{0}, opens_ended_{0};  // ended: about to be answered
  std::atomic<bool> leases_unsupported_{false};
  std::atomic<bool> passthrough_unsupported_{false};
  std::atomic<bool> layers_unwatched_{false}, writers_unreported_{false};
  std::atomic<std::uint64_t> owed_violations_{0};
  std::atomic<std::uint64_t> measured_{0}, cache_hits_{0}, hashed_bytes_{0};

  std::atomic<bool> has_neighbours_{false};  // as of the last tick

  // What is left to do about broken leases: waiting for RELEASEs, which is short, and logging violations, for which a TPM may
  // have to be waited for. Each has a thread of its own, so that neither keeps the keeper's from noting the next breaks.
  WorkerPool breaks_{1};
  WorkerPool violations_{1};
  std::unique_ptr<LeaseKeeper> leases_;  // null: not wanted
  FairTurns turns_;

  // Taken before mutex_.
  std::mutex waiting_mutex_;
  std::condition_variable waits_;
  std::list<Opening*> waiting_;        // guarded by waiting_mutex_; those that are not answered at once
  std::atomic<bool> stopping_{false};  // changed under waiting_mutex_
  std::thread overseer_;               // last: it uses the rest
};

}  // namespace imafs
