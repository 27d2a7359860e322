// The measuring itself: is it needed, the digest, the entries. Part of OpenFiles, while the file is busy.
#include <fcntl.h>

#include <algorithm>

#include "open_file_state.h"

namespace imafs {
namespace {

constexpr int kStableReads = 3;  // without a lease: how often to read a file that changes meanwhile

}  // namespace

Status OpenFiles::measure(Opening& opening, Writers& writers) {
  File& file = *opening.file;
  const bool direct = (opening.request.flags & O_DIRECT) != 0;
  bool needed = false;
  bool doubted = false;  // measured, and perhaps changed since
  // A lease on a merged file says nothing of who writes to its layers.
  if (file.kind == FileSystemKind::kLayered) layers_unwatched_ = true;
  const bool watched = file.kind != FileSystemKind::kLayered && is_leased(file);
  const auto unmeasured = [&](const FileRecord& record) {
    return std::any_of(opening.orders.begin(), opening.orders.end(),
                       [&](const MeasureOrder& order) { return !record.is_measured_in(order.pcr, opening.log); });
  };
  cache_.with(file.node, [&](FileRecord& record) { needed = unmeasured(record); });
  struct stat seen {};
  if (needed || !watched || !file.verified) {
    file.reports = watched ? take_reports(file) : std::nullopt;
    auto attr = stat_of(file.anchor.get());
    if (!attr) return fail(attr.error());
    seen = *attr;
    cache_.with(file.node, [&](FileRecord& record) {
      const auto standing = record.standing(version_of(seen), now_ns(), writers_since(file, record));
      if (standing == FileRecord::Standing::kCurrent) record.was_checked_up_to(*file.reports);
      // While a writer that came through the mount has it open, what was hashed stands (as in the
      // kernel) until the last one closes. Of others we know nothing from one open to the next.
      if (writers == Writers::kTracked) {
        needed = !record.is_hashed() || unmeasured(record);
      } else if (writers != Writers::kNone || standing != FileRecord::Standing::kCurrent) {
        needed = true;
        doubted = writers == Writers::kNone && standing == FileRecord::Standing::kSuspect && !unmeasured(record);
      }
      if (needed && standing == FileRecord::Standing::kStale && writers != Writers::kTracked) record.clear();
    });
  }
  if (!needed) {
    ++cache_hits_;
    file.verified = watched;
    return {};
  }
  opening.is_hashed_anew = true;
  const auto [device, inode] = table_.identity_of(file.node);
  const NamedFile named{file.anchor.get(), path_of(opening), device, inode};
  if (direct && doubted) {
    // The kernel, which knows that it did not change, measures nothing: look at the content, though its reader asked for
    // O_DIRECT.
    const auto looked = collect(opening, opening.orders.front(), seen, writers, false);
    cache_.with(file.node, [&](FileRecord& record) { needed = !looked || unmeasured(record); });
    if (!needed) return {};
  }
  std::optional<Collected> content;
  const MeasureOrder* collected_for = nullptr;
  for (const MeasureOrder& order : opening.orders) {
    // IMA: the kernel keeps the digest it took first; here each rule gets the kind that it asks for.
    if (!content || order.wants_verity != collected_for->wants_verity ||
        order.form->is_legacy() != collected_for->form->is_legacy() || (order.form->has(FieldId::kD) && !collected_for->form->has(FieldId::kD))) {
      auto collected = collect(opening, order, seen, writers, direct);
      if (!collected && collected.error().code == ENODATA && order.wants_verity) continue;  // no fs-verity digest: no entry
      if (!collected) return fail(collected.error());
      content = *collected;
      collected_for = &order;
    }
    bool done = false;
    cache_.with(file.node, [&](FileRecord& record) { done = !direct && record.is_measured_in(order.pcr, opening.log); });
    if (done) continue;
    if (auto stored = gate_.store_measurement(order, *content, named, opening.request.who); !stored) return stored;
    ++measured_;
    if (!direct) cache_.with(file.node, [&](FileRecord& record) { record.did_measure(order.pcr, opening.log); });
  }
  const Lock lock(mutex_);
  file.verified = watched && file.leased && !file.broken;
  return {};
}

// The digest of what a reader will see, or zeros where the kernel logs zeros. `before`: the file's attributes, asked for just now.
Result<Collected> OpenFiles::collect(Opening& opening, const MeasureOrder& order, struct stat before, Writers& writers, bool direct) {
  File& file = *opening.file;
  const auto report = [&](const char* cause) {
    AuditRecord record;
    record.type = AuditRecord::Type::kData;
    record.pid = opening.request.who.pid;
    record.uid = opening.request.who.uid;
    record.comm = comm_of(opening.request.who.pid);
    record.op = "collect_data";
    record.cause = cause;
    record.name = opening.path.substr(opening.path.rfind('/') + 1);
    const auto [device, inode] = table_.identity_of(file.node);
    record.device = device_name(device);
    record.inode = inode;
    record.succeeded = false;
    gate_.report(record);
  };
  Collected zeros;
  zeros.digest = Digest::zero(gate_.options().file_hash);
  if (direct && !order.wants_verity) {
    report("failed(directio)");
    return zeros;
  }
  // A thread of its own takes turns with others that hash; a request thread hashes small files only.
  std::optional<FairTurns::Job> job;
  const auto given_up = [&] { return is_given_up(opening); };
  const HashPause pause = [&](std::uint64_t done) { return job->next(done, given_up) ? Status() : Status(fail(EINTR, "nobody waits for it any more")); };
  for (int round = 1;; ++round) {
    if (opening.in_pool) {
      job.emplace(turns_, opening.request.who.uid);
      if (auto turn = pause(0); !turn) return fail(turn.error());
    }
    auto collected = gate_.collect_measurement(file.anchor.get(), order, job ? pause : HashPause());
    job.reset();
    if (!collected) {
      const int code = collected.error().code;
      if (code == EINTR) return collected;
      report(code == ENODATA ? "no-verity-digest" : "failed");
      // IMA: the kernel serves a file that it cannot read for hashing; here what cannot be measured is not served.
      if (code != EINVAL && code != EBADF) return collected;
      cache_.with(file.node, [&](FileRecord& record) { record.did_hash(zeros.digest, version_of(before)); });
      return zeros;
    }
    collected->size = static_cast<std::uint64_t>(before.st_size);
    hashed_bytes_ += collected->size;
    const auto after = stat_of(file.anchor.get());
    bool disturbed = !after || version_of(*after) != version_of(before);
    const bool watched = is_leased(file);
    {
      const Lock lock(mutex_);
      disturbed |= file.broken;
    }
    if (disturbed && !watched && round < kStableReads && writers == Writers::kNone) {
      if (!after) return fail(after.error());
      before = *after;
      continue;
    }
    cache_.with(file.node, [&](FileRecord& record) {
      record.did_hash(collected->digest, version_of(before));
      if (!watched) record.stop_watching(now_ns());
      if (disturbed || writers != Writers::kNone || !file.reports) record.nothing_is_certain();
      if (file.reports) record.was_checked_up_to(*file.reports);
    });
    if (disturbed && !watched && writers == Writers::kNone) {
      // Somebody began to write while we read: say so, whatever the digest is of.
      bool emit = false;
      cache_.with(file.node, [&](FileRecord& record) { emit = record.take_open_writers(); });
      if (emit) {
        auto stored = store_violation(file, Violation::kOpenWriters, opening.request.who, opening.path);
        if (!stored) return fail(stored.error());
      }
      writers = Writers::kOthers;
    }
    return collected;
  }
}

}  // namespace imafs
