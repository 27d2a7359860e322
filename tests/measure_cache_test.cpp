#include "imafs/measure_cache.h"

#include <catch2/catch_test_macros.hpp>

namespace imafs {
namespace {

using Standing = FileRecord::Standing;
constexpr auto kNoneSince = FileRecord::Writers::kNoneSince;

constexpr std::int64_t kMilli = 1'000'000;
constexpr std::int64_t kSecond = 1000 * kMilli;
constexpr std::int64_t kNow = 1'700'000'000 * kSecond + 345 * kMilli;

FileVersion changed_at(std::int64_t time) {
  return {100, time, time};
}

Digest digest_of(std::string_view text) {
  return hash_of(HashAlgorithm::kSha256, as_bytes(text));
}

// Hashed at a version, measured in PCR 10, and watched until `until`.
FileRecord measured(const FileVersion& version, std::int64_t until) {
  FileRecord record;
  record.did_hash(digest_of("content"), version);
  record.did_measure(10, 0);
  record.stop_watching(until);
  return record;
}

}  // namespace

TEST_CASE("equal times say that nothing changed only if the last change was not just now") {
  CHECK(measured(changed_at(kNow - kSecond), kNow).standing(changed_at(kNow - kSecond), kNow, kNoneSince) == Standing::kCurrent);
  CHECK(measured(changed_at(kNow - 10 * kMilli), kNow).standing(changed_at(kNow - 10 * kMilli), kNow, kNoneSince) == Standing::kSuspect);
  // Later the same: when we stopped watching counts, not when we ask.
  CHECK(measured(changed_at(kNow - 10 * kMilli), kNow).standing(changed_at(kNow - 10 * kMilli), kNow + kSecond, kNoneSince) == Standing::kSuspect);
}

TEST_CASE("a clock of whole seconds proves nothing for two of them") {
  const FileVersion version = changed_at(kNow - kNow % kSecond);
  CHECK(measured(version, kNow + kSecond).standing(version, kNow + kSecond, kNoneSince) == Standing::kSuspect);
  CHECK(measured(version, kNow + 3 * kSecond).standing(version, kNow + 3 * kSecond, kNoneSince) == Standing::kCurrent);
}

TEST_CASE("a clock that was set back proves nothing") {
  const FileVersion version = changed_at(kNow - 10 * kSecond);
  const FileRecord record = measured(version, kNow);
  CHECK(record.standing(version, kNow + 1, kNoneSince) == Standing::kCurrent);
  CHECK(record.standing(version, kNow - kSecond, kNoneSince) == Standing::kSuspect);
  // Changes that were made before it was set back lie in the future: the version is younger than the watch.
  CHECK(measured(changed_at(kNow + 3600 * kSecond), kNow).standing(changed_at(kNow + 3600 * kSecond), kNow, kNoneSince) == Standing::kSuspect);
}

TEST_CASE("what is only suspected stays measured if the digest is the same") {
  FileRecord record = measured(changed_at(kNow - kMilli), kNow);
  record.did_hash(digest_of("content"), changed_at(kNow - kMilli));
  CHECK(record.is_measured_in(10, 0));
  record.did_hash(digest_of("other"), changed_at(kNow - kMilli));
  CHECK_FALSE(record.is_measured_in(10, 0));
}

TEST_CASE("mtime put back: ctime tells, and after a writer it is a write") {
  FileRecord record = measured(changed_at(kNow - kSecond), kNow);
  FileVersion touched = changed_at(kNow - kSecond);
  touched.ctime_ns = kNow + kMilli;
  CHECK(record.standing(touched, kNow + kSecond, kNoneSince) == Standing::kSuspect);
  record.was_open_for_write();
  CHECK(record.standing(touched, kNow + kSecond, kNoneSince) == Standing::kStale);
  touched.mtime_ns += kMilli;
  CHECK(measured(changed_at(kNow - kSecond), kNow).standing(touched, kNow + kSecond, kNoneSince) == Standing::kStale);
}

TEST_CASE("equal times prove nothing after a writer, nor where none would have been reported") {
  const FileVersion version = changed_at(kNow - kSecond);
  CHECK(measured(version, kNow).standing(version, kNow, FileRecord::Writers::kPerhaps) == Standing::kSuspect);
  FileRecord record = measured(version, kNow);
  record.was_open_for_write();
  CHECK(record.standing(version, kNow, kNoneSince) == Standing::kSuspect);
  record.did_hash(digest_of("content"), version);
  CHECK(record.is_measured_in(10, 0));  // in silence
  CHECK(record.standing(version, kNow, kNoneSince) == Standing::kCurrent);
  record.was_written_beside();
  record.did_hash(digest_of("stored into a mapping"), version);
  CHECK_FALSE(record.is_measured_in(10, 0));
}

TEST_CASE("a record of an earlier log measures nothing in this one") {
  FileRecord record = measured(changed_at(kNow - kSecond), kNow);
  CHECK(record.is_measured_in(10, 0));
  CHECK_FALSE(record.is_measured_in(10, 1));
  CHECK_FALSE(record.is_measured_in(11, 0));
  record.did_measure(11, 1);
  CHECK(record.is_measured_in(11, 1));
  CHECK_FALSE(record.is_measured_in(10, 1));
}

}  // namespace imafs
