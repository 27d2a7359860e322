// The insides of OpenFiles, shared by its two sources.
#pragma once

#include <fcntl.h>

#include <deque>

#include "imafs/file_system_kind.h"
#include "imafs/file_version.h"
#include "imafs/open_files.h"

namespace imafs {

// A file that is or was open. Fields under `busy` belong to whoever set the flag, the others to
// OpenFiles::mutex_.
struct OpenFiles::File {
  explicit File(NodeId id) : node(id) {}

  const NodeId node;

  // Under the mutex.
  std::uint32_t readers = 0;  // open handles without write access
  std::uint32_t writers = 0;  // open handles with write access
  std::vector<std::pair<std::uint32_t, std::uint32_t>> users;  // but root: who has it open, and how often
  bool busy = false;
  bool leased = false;  // set by the busy one, cleared by anybody
  bool broken = false;  // a lease was broken while busy
  bool being_read = false;  // a measured open for reading is under way: who comes to write comes too late for it
  bool mapped = false;  // readers live on in mappings whose handles are closed,
  bool unsure = false;  // or perhaps they do: it is asked again
  bool writable = false;  // a mapping of this mount may store into it,
  bool outlived = false;  // and one did live on when the last handle was closed
  bool check_mapped = false;  // the last reader left while busy
  bool returned = false;      // opened again after its descriptor had been given up
  unsigned pins = 0;  // the lease thread is at it: must not go away
  unsigned borrowers = 0;  // use its descriptor without being busy: must not go away either
  int lent = -1;           // the anchor's descriptor, for them
  bool listed_idle = false;
  std::list<File*>::iterator idle_position;
  std::chrono::steady_clock::time_point idle_since;
  std::deque<std::unique_ptr<Opening>> waiting;
  std::function<void()> under_way;  // goes on with the open that has it busy, unless a thread has begun to: whoever calls it first does;
  std::vector<std::uint32_t> lent_by;  // it is in the queues of these users' threads

  // Under busy.
  UniqueFd anchor;          // O_RDONLY; also what a backing id is made of, and what a lease is on
  UniqueFd writer;          // without passthrough: one for all handles that write
  UniqueFd reader;          // without passthrough: reads through it move the atime, which measuring must not
  int backing_id = 0;
  FileSystemKind kind = FileSystemKind::kForeign;  // of the file system that the anchor is on
  dev_t device = 0;
  ino_t inode = 0;
  std::optional<std::uint64_t> reports;  // of writers, which the lease that stands is later than; nothing: none come
  bool verified = false;       // the record was found current under the lease that stands
  bool content_known = false;  // is_elf holds as long as the lease does
  bool is_elf = false;
  bool keep_cache = false;  // the kernel's pages are of `cached_version`
  FileVersion cached_version;
  std::chrono::steady_clock::time_point pages_doubted;  // the last open that told the kernel to drop them, because they might be old

  // For handles that have no descriptor of their own to learn write errors from. Changed under `sync_mutex`.
  std::mutex sync_mutex;  // one such fsync(2) at a time: an error it was told is known to the next
  std::atomic<std::uint64_t> write_errors{0};  // how many it was told
  int write_error = 0;                         // the last one

  bool is_open() const { return readers + writers > 0; }
  bool may_be_mapped() const { return mapped || unsure; }
};

// A file whose lease is being broken, pinned.
struct OpenFiles::Broken {
  File* file;
  bool is_ours;  // to leave busy
};

struct OpenFiles::Handle {
  File* file;
  int reads_from;  // a descriptor of the file's
  bool writes;
  std::uint32_t user;
  std::uint64_t errors_seen = 0;  // of File::write_errors. Under File::sync_mutex, as is:
  UniqueFd synced_by = UniqueFd();  // its own descriptor, from its first fsync on
};

struct OpenFiles::Opening {
  Opening(Request asked, Done reply) : request(std::move(asked)), done(std::move(reply)) {}

  Request request;
  Done done;
  File* file = nullptr;
  bool in_pool = false;  // on a thread of its own, which may wait
  std::atomic<bool> is_cancelled{false};  // who asked is being killed, and nobody else waits for the file
  std::atomic<bool> is_answered{false};   // who asked is being killed, and has been told so
  // Under waiting_mutex_.
  bool is_listed = false;  // in waiting_, at:
  std::list<Opening*>::iterator place;
  bool is_killed = false;  // who asked is being killed; answered already, if `done` is empty

  OpenFacts facts;
  std::vector<MeasureOrder> orders;
  std::uint32_t log = 0;  // the log they are for: MeasureGate::log_generation()
  std::string path;  // known once an entry or a rule needs it

  bool created = false;  // the open made the file
  bool is_charged = false;  // counted in File::users
  Writers writers = Writers::kNone;  // who has it open for writing, once that was asked
  bool is_hashed_anew = false;       // nothing proved that the file is as it was hashed before

  // IMA: access mode 3 gives neither reading nor writing and counts as neither in the kernel. It breaks leases as a
  // writer does, and who may ask for it may write: here it is a writer.
  bool writes() const { return (request.flags & O_ACCMODE) != O_RDONLY; }
};

}  // namespace imafs
