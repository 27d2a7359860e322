// The log under faults of disk and TPM: a table of operations against the moment at which something fails. Prints a line a
// row for docs/CRASH_MATRIX.md with `log_faults_test "[matrix]" -s`.
#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cstdio>
#include <fstream>
#include <sys/stat.h>
#include <thread>

#include "disk_faults.h"
#include "imafs/journal_reader.h"
#include "imafs/log_journal.h"
#include "imafs/posix_file.h"
#include "log_world.h"

namespace imafs {
namespace {

namespace fs = std::filesystem;
using Call = FaultyPcrExtender::Call;
using Kind = DiskFaults::Kind;

std::size_t count_of(const std::vector<std::string>& names, const std::string& name) {
  return static_cast<std::size_t>(std::count(names.begin(), names.end(), name));
}

// All cells of the byte tables take a minute: a part of them, unless IMAFS_FULL_MATRIX is set.
std::size_t step_of_matrix() { return ::getenv("IMAFS_FULL_MATRIX") ? 1 : 7; }

// All that a state directory has logged: the archives in their order, then the live log.
std::vector<std::string> all_logged(const World& world) {
  std::vector<std::string> found;
  const auto take = [&](const std::string& directory) {
    const auto journal = read_journal(directory);
    REQUIRE(journal);
    for (const JournalEntryRead& entry : journal->entries) {
      std::string name(as_text(entry.entry.values[1]).substr(1));
      name.pop_back();
      found.push_back((entry.entry.is_violation ? "!" : "") + name);
    }
  };
  const auto numbers = archive_numbers(world.state.path());
  REQUIRE(numbers);
  for (const unsigned number : *numbers) take(world.state.path() + "/archive/" + std::to_string(number));
  take(world.state.path() + "/journal");
  return found;
}

// Every archive replays to its end-pcrs, and what follows a trimmed one begins there.
bool archives_replay(const World& world) {
  const auto numbers = archive_numbers(world.state.path());
  REQUIRE(numbers);
  for (const unsigned number : *numbers) {
    const std::string directory = world.state.path() + "/archive/" + std::to_string(number);
    const auto journal = read_journal(directory);
    const auto end = read_file(directory + "/end-pcrs", 1 << 20);
    if (!journal || !end) return false;
    std::vector<DecodedRecord> records;
    for (const JournalEntryRead& entry : journal->entries) {
      DecodedRecord record;
      record.entry = entry.entry;
      record.template_digest = entry.digests.at(0).second;
      records.push_back(record);
    }
    if (verify_log(records, 20, world.tpm->banks, *parse_pcr_values(*end, "end-pcrs"), journal->base).verdict == Verdict::kMismatch) return false;
  }
  return true;
}

// The operations that a fault can meet, and what they have promised by having succeeded.
class Story {
 public:
  explicit Story(World& world) : world_(world) {}

  using Step = std::function<void(Story&)>;
  struct Named {
    const char* name;
    Step step;
  };
  static const std::vector<Named>& steps() {
    static const std::vector<Named> all{
        {"append", [](Story& story) { story.append("new"); }},
        {"violation", [](Story& story) { story.violate("seen"); }},
        {"append, violation, append", [](Story& story) { story.append("one"), story.violate("seen"), story.append("two"); }},
        {"trim", [](Story& story) { (void)story.world_.log->trim(2); }},
        {"trim to nothing, append", [](Story& story) { (void)story.world_.log->trim(story.world_.log->count()), story.append("new"); }},
        {"check", [](Story& story) { (void)story.world_.log->check_tpm(); }},
        {"reset, append", [](Story& story) { story.reset(), story.append("new"); }},
        {"reset, violation", [](Story& story) { story.reset(), story.violate("seen"); }},
    };
    return all;
  }

  void begin() {
    REQUIRE(world_.start());
    world_.log->begin_new_logs_with([] { return std::vector<LogEntry>{entry_for("boot_aggregate")}; });
    for (const char* name : {"boot_aggregate", "a", "b", "c"}) REQUIRE(world_.append(name));
  }
  void append(const std::string& name) {
    if (world_.append(name)) promised_.push_back(name);
  }
  void violate(const std::string& name) {
    (void)world_.violate(name);
    promised_.push_back("!" + name);  // whatever it says
  }
  void reset() { world_.tpm->reset(); }

  // After the fault is gone: all goes on, nothing is lost, nothing is there twice, and a restart finds the same.
  void judge() {
    CHECK(world_.append("after") == Appended::kLogged);
    promised_.push_back("after");
    check_log();
    REQUIRE(world_.start());
    check_log();
    CHECK(world_.append("restarted") == Appended::kLogged);
    CHECK(world_.replays());
  }

 private:
  void check_log() {
    CHECK(world_.replays());
    CHECK(archives_replay(world_));
    CHECK(world_.log->tpm_health().owed_violations == 0);
    const auto names = all_logged(world_);
    for (const std::string& name : promised_) {
      CAPTURE(name, names);
      CHECK(count_of(names, name) == 1);
    }
    for (const char* name : {"a", "b", "c"}) CHECK(count_of(names, name) == 1);
    const auto live = world_.marked_names();
    if (!world_.log->base().empty() || live.empty()) return;  // trimmed
    CHECK(live.front() == "boot_aggregate");
  }

  World& world_;
  std::vector<std::string> promised_;
};

// Runs `fault(n)` for n = 1, 2, ... before the step until the step ends without meeting it.
void run_row(const char* what, const std::function<void(World&, unsigned)>& arm, const std::function<bool(World&)>& has_met,
             const std::function<void(World&)>& disarm) {
  for (const auto& [name, step] : Story::steps()) {
    unsigned cells = 0;
    for (unsigned n = 1; n < 200; ++n) {
      CAPTURE(what, name, n);
      World world;
      Story story(world);
      story.begin();
      std::this_thread::sleep_for(std::chrono::milliseconds(21));  // so that the TPM is looked at first
      arm(world, n);
      step(story);
      const bool met = has_met(world);
      disarm(world);
      story.judge();
      if (!met) break;
      ++cells;
    }
    std::printf("| %s | %s | %u |\n", what, name, cells);
  }
}

}  // namespace

TEST_CASE("no call to the TPM that fails loses an entry, or makes a log that does not fit", "[matrix]") {
  const std::pair<const char*, std::pair<Call, Fault>> faults[]{
      {"TPM2_PCR_Extend refused", {Call::kExtend, Fault::kBeforeEffect}},
      {"TPM2_PCR_Extend, answer lost", {Call::kExtend, Fault::kAfterEffect}},
      {"TPM2_PCR_Read", {Call::kRead, Fault::kBeforeEffect}},
      {"TPM2_ReadClock", {Call::kClock, Fault::kBeforeEffect}},
      {"reconnect", {Call::kReconnect, Fault::kBeforeEffect}},
      {"any", {Call::kAny, Fault::kBeforeEffect}},
  };
  for (const auto& [what, fault] : faults) {
    run_row(
        what,
        [&](World& world, unsigned n) {
          // Without a fault nobody reconnects or asks for the clock.
          if (fault.first == Call::kClock || fault.first == Call::kReconnect) world.extender->fail_next(Fault::kBeforeEffect);
          world.extender->fail_call(fault.first, n, fault.second);
        },
        [](World& world) { return world.extender->has_failed_call(); },
        [](World& world) {
          world.extender->fail_call(Call::kAny, 0);
          world.extender->fail_next(Fault::kNone);
        });
  }
}

TEST_CASE("no write that finds the disk full loses an entry, or makes a log that does not fit", "[matrix]") {
  for (const bool stays : {false, true}) {
    run_row(
        stays ? "disk full from a write on" : "disk full at a write",
        [&](World&, unsigned n) { DiskFaults::arm(Kind::kWrite, static_cast<int>(n), ENOSPC, stays); },
        [](World&) { return DiskFaults::has_met.load(); }, [](World&) { DiskFaults::disarm(); });
  }
}

TEST_CASE("no rename that fails loses an entry, or makes a log that does not fit", "[matrix]") {
  for (const bool stays : {false, true}) {
    run_row(
        stays ? "rename, and all that follow" : "rename", [&](World&, unsigned n) { DiskFaults::arm(Kind::kRename, static_cast<int>(n), EIO, stays); },
        [](World&) { return DiskFaults::has_met.load(); }, [](World&) { DiskFaults::disarm(); });
  }
}

TEST_CASE("each byte of a journal that is damaged is found, and nothing is cut off", "[matrix]") {
  const bool with_tpm = GENERATE(true, false);
  World world;
  const auto start = [&] { return with_tpm ? world.start() : world.start_without_tpm(); };
  REQUIRE(start());
  for (const char* name : {"a", "b"}) REQUIRE(world.append(name));
  REQUIRE(world.violate("b"));
  world.log.reset();
  const auto whole = read_file(world.journal(), 1 << 20);
  REQUIRE(whole);
  unsigned cells = 0;
  for (std::size_t at = 0; at < whole->size(); at += step_of_matrix()) {
    for (const char change : {'\x01', '\x5a', '\x80'}) {
      CAPTURE(at, static_cast<int>(change));
      std::string damaged = *whole;
      damaged[at] = static_cast<char>(damaged[at] ^ change);
      std::ofstream(world.journal(), std::ios::trunc) << damaged;
      const auto started = start();
      CHECK_FALSE(started);
      if (!started) CHECK(started.error().code == EBADMSG);
      CHECK_FALSE(read_journal(world.state.path() + "/journal"));
      CHECK(read_file(world.journal(), 1 << 20) == damaged);
      ++cells;
    }
  }
  std::printf("| a byte of the journal damaged%s | start | %u |\n", with_tpm ? "" : ", without a TPM", cells);
  std::ofstream(world.journal(), std::ios::trunc) << *whole;
  REQUIRE(start());
  CHECK(world.log->count() == 3);
}

TEST_CASE("the end of a journal that is cut off is kept, and only if the PCR does not hold it") {
  World world;
  REQUIRE(world.start());
  for (const char* name : {"a", "b"}) REQUIRE(world.append(name));
  const auto before = world.tpm->pcrs;
  const auto size = fs::file_size(world.journal());
  REQUIRE(world.append("c"));
  world.log.reset();
  fs::resize_file(world.journal(), size + 20);
  const std::string torn = world.state.path() + "/journal.torn";
  SECTION("it was never extended") {
    world.tpm->pcrs = before;
    REQUIRE(world.start());
    CHECK(world.names() == std::vector<std::string>{"a", "b"});
    CHECK(fs::file_size(torn) == 20);
    CHECK(world.log->start().message.find("journal.torn") != std::string::npos);
  }
  SECTION("the PCR holds it") {
    const auto started = world.start();
    REQUIRE_FALSE(started);
    CHECK(started.error().code == EBADMSG);
    CHECK(fs::file_size(world.journal()) == size + 20);
    CHECK_FALSE(fs::exists(torn));
  }
}

TEST_CASE("who only reads a journal changes nothing in it") {
  World world;
  REQUIRE(world.start());
  REQUIRE(world.append("a"));
  const auto size = fs::file_size(world.journal());
  std::ofstream(world.journal(), std::ios::app) << "torn";
  CHECK(journal_fits(world.state.path(), *world.extender));
  CHECK(read_journal(world.state.path() + "/journal"));
  CHECK(fs::file_size(world.journal()) == size + 4);
}

TEST_CASE("who reads on in a journal reads what is new, not what is old") {
  World world;
  REQUIRE(world.start());
  REQUIRE(world.append("a"));
  auto journal = read_journal(world.state.path() + "/journal");
  REQUIRE(journal);
  // What was read is made unreadable.
  std::fstream(world.journal(), std::ios::in | std::ios::out).seekp(40).put('\x5a');
  REQUIRE(world.append("b"));
  REQUIRE(read_on(world.state.path() + "/journal", *journal));
  CHECK(journal->entries.size() == 2);
}

TEST_CASE("a reader of a journal that somebody has cut gets an error") {
  World world;
  REQUIRE(world.start());
  for (int i = 0; i < 100; ++i) REQUIRE(world.append("file " + std::to_string(i)));
  const std::uint64_t cut = GENERATE(0U, 16U, 2000U);
  fs::resize_file(world.journal(), cut);
  std::vector<char> part(100'000);
  const auto read = world.log->read_view({LogView::Form::kAscii, 0}, 0, part);
  REQUIRE_FALSE(read);
  CHECK(read.error().code == EBADMSG);
}

TEST_CASE("a violation outlives a TPM that is away, and is the first entry when it is back") {
  World world;
  REQUIRE(world.start());
  REQUIRE(world.append("a"));
  world.extender->fail_next(Fault::kGone);
  if (GENERATE(false, true)) CHECK_FALSE(world.append("denied"));  // an entry whose fate is open stands before it
  CHECK_FALSE(world.violate("a"));
  CHECK_FALSE(world.violate("a"));  // the one that is kept stands for it
  CHECK_FALSE(world.violate("b"));
  CHECK_FALSE(world.append("c"));
  CHECK(world.log->append(entry_for("a"), own_origin).error().code == EIO);  // also what was logged before
  CHECK(world.log->tpm_health().owed_violations == 2);
  SECTION("the TPM is back, and somebody opens a file") { world.extender->fail_next(Fault::kNone); }
  SECTION("the TPM is back, and nobody comes") {
    world.extender->fail_next(Fault::kNone);
    for (int i = 0; i < 100 && world.log->tpm_health().owed_violations > 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    CHECK(world.log->tpm_health().owed_violations == 0);
  }
  SECTION("the daemon is started anew") { REQUIRE(world.start()); }
  SECTION("the TPM is back without its state") {
    world.tpm->reset();
    world.extender->fail_next(Fault::kNone);
  }
  CHECK(world.append("d") == Appended::kLogged);
  const auto names = all_logged(world);
  CHECK(count_of(names, "!b") >= 1);
  CHECK(count_of(names, "!a") >= 1);
  const auto live = world.marked_names();
  CHECK(count_of(live, "!a") == 1);
  CHECK(count_of(live, "!b") == 1);
  CHECK(live.back() == "d");
  CHECK(world.replays());
  CHECK(world.log->tpm_health().owed_violations == 0);
}

TEST_CASE("a violation outlives TPM and disk together") {
  World world;
  REQUIRE(world.start());
  REQUIRE(world.append("a"));
  world.extender->fail_next(Fault::kGone);
  DiskFaults::arm(Kind::kWrite, 1, ENOSPC, true);
  const auto violated = world.violate("a");
  const auto denied = world.append("b");
  DiskFaults::disarm();
  CHECK_FALSE(violated);
  CHECK_FALSE(denied);
  CHECK(world.log->tpm_health().owed_violations == 1);
  CHECK_FALSE(world.append("b"));  // the disk is back, the TPM is not
  world.extender->fail_next(Fault::kNone);
  CHECK(world.append("b") == Appended::kLogged);
  CHECK(world.marked_names() == std::vector<std::string>{"a", "!a", "b"});
  CHECK(world.replays());
}

TEST_CASE("a PCR that a rule names may hold something already") {
  World world;
  extend_pcr(world.tpm->banks, world.tpm->pcr(11), extend_values(entry_for("before"), world.tpm->banks));
  REQUIRE(world.start());
  REQUIRE(world.append("a"));
  CHECK(world.log->append(entry_for("x", 11), own_origin) == Appended::kLogged);
  CHECK(world.log->check_tpm());
  CHECK(world.log->replayed().at(11) == world.tpm->pcr(11));
  REQUIRE(world.start());
  CHECK(world.log->replayed().at(11) == world.tpm->pcr(11));
  REQUIRE(world.log->trim(1));
  CHECK(world.log->append(entry_for("y", 11), own_origin) == Appended::kLogged);
  REQUIRE(world.start());
  CHECK(world.replays());
  CHECK(archives_replay(world));
  // It is ours now.
  FaultyPcrExtender other(world.tpm);
  Scratch elsewhere;
  LogOptions options;
  options.state_directory = elsewhere.path();
  options.default_pcr = 11;
  const auto second = MeasurementLog::open(options, &other);
  REQUIRE_FALSE(second);
  CHECK(second.error().code == EALREADY);
}

TEST_CASE("a log that was trimmed to nothing finds a foreign extend") {
  World world;
  REQUIRE(world.start());
  for (const char* name : {"a", "b"}) REQUIRE(world.append(name));
  REQUIRE(world.log->trim(2));
  CHECK(world.log->check_tpm());
  const auto extend = [&] { extend_pcr(world.tpm->banks, world.tpm->pcr(10), extend_values(entry_for("foreign"), world.tpm->banks)); };
  SECTION("while it is open") {
    extend();
    CHECK_FALSE(world.log->check_tpm());
  }
  SECTION("while it is not") {
    world.log.reset();
    extend();
    const auto started = world.start();
    REQUIRE_FALSE(started);
    CHECK(started.error().code == EBADMSG);
  }
}

TEST_CASE("a log without an entry begins anew when the PCR has moved") {
  World world;
  REQUIRE(world.start());
  world.log.reset();
  extend_pcr(world.tpm->banks, world.tpm->pcr(10), extend_values(entry_for("foreign"), world.tpm->banks));
  REQUIRE(world.start());
  REQUIRE(world.append("a"));
  CHECK(world.log->replayed().at(10) == world.tpm->pcr(10));
}

TEST_CASE("a state directory may have a TPM, none, and the TPM again") {
  World world;
  REQUIRE(world.start());
  for (const char* name : {"boot_aggregate", "a"}) REQUIRE(world.append(name));
  REQUIRE(world.start_without_tpm());
  CHECK(world.log->start().needs_boot_aggregate);
  for (const char* name : {"boot_aggregate", "b", "c"}) REQUIRE(world.append(name));
  REQUIRE(world.start());
  CHECK(world.log->start().needs_boot_aggregate);
  for (const char* name : {"boot_aggregate", "d"}) REQUIRE(world.append(name));
  CHECK(world.log->replayed().at(10) == world.tpm->pcr(10));
  CHECK(archives_replay(world));
  CHECK(all_logged(world) == std::vector<std::string>{"boot_aggregate", "a", "boot_aggregate", "b", "c", "boot_aggregate", "d"});
}

TEST_CASE("a log for another PCR is another log") {
  World world;
  REQUIRE(world.start());
  REQUIRE(world.append("a"));
  REQUIRE(world.start([](LogOptions& options) { options.default_pcr = 12; }));
  CHECK(world.log->start().needs_boot_aggregate);
  CHECK(world.log->append(entry_for("b", 12), own_origin) == Appended::kLogged);
  CHECK(world.log->replayed().at(12) == world.tpm->pcr(12));
  REQUIRE(world.start());
  REQUIRE(world.append("c"));
  CHECK(world.log->replayed().at(10) == world.tpm->pcr(10));
  CHECK(archives_replay(world));
}

TEST_CASE("a damaged journal of before a reset of the TPM is archived as it is") {
  World world;
  REQUIRE(world.start());
  for (const char* name : {"a", "b"}) REQUIRE(world.append(name));
  world.log.reset();
  std::fstream(world.journal(), std::ios::in | std::ios::out).seekp(-5, std::ios::end).put('\x5a');
  CHECK_FALSE(world.start());
  world.tpm->reset();
  REQUIRE(world.start());
  CHECK(world.log->start().kind == LogStart::Kind::kArchivedReboot);
  CHECK(fs::exists(world.state.path() + "/archive/1/journal.000001"));
}

TEST_CASE("archives are numbered on, also where one was taken away") {
  World world;
  REQUIRE(world.start());
  for (int i = 0; i < 8; ++i) REQUIRE(world.append("file " + std::to_string(i)));
  const std::string archive = world.state.path() + "/archive/";
  for (int i = 0; i < 3; ++i) REQUIRE(world.log->trim(1));
  fs::remove_all(archive + "1");
  REQUIRE(world.log->trim(1));
  CHECK_FALSE(fs::exists(archive + "1"));
  CHECK(archive_numbers(world.state.path()) == std::vector<unsigned>{2, 3, 4});
}

TEST_CASE("a bank whose algorithm cannot be computed is not compared") {
  World world;
  Bank unknown;
  unknown.tpm_algorithm = 0x12;  // SM3
  unknown.size = 32;
  world.tpm->banks.push_back(unknown);
  REQUIRE(world.start());
  const auto stir = [&] { world.tpm->pcr(10)[2][0] ^= 0x55; };  // as its extends do
  for (const char* name : {"a", "b"}) {
    REQUIRE(world.append(name));
    stir();
  }
  CHECK(world.log->check_tpm());
  world.extender->fail_next(Fault::kBeforeEffect);
  CHECK_FALSE(world.append("c"));
  CHECK(world.append("c") == Appended::kLogged);
  stir();
  REQUIRE(world.start());
  CHECK(world.log->check_tpm());
}

TEST_CASE("journal files have their own mode, whatever the caller's umask is") {
  World world;
  const mode_t mask = ::umask(GENERATE(0U, 0777U));
  const auto started = world.start();
  const auto appended = started ? world.append("a") : Result<Appended>(fail(EIO, ""));
  const auto trimmed = appended ? world.log->trim(1) : Result<std::string>(fail(EIO, ""));
  ::umask(mask);
  REQUIRE(started);
  REQUIRE(trimmed);
  for (const std::string& path : {world.journal(), *trimmed + "/journal.000001", *trimmed + "/end-pcrs"}) {
    CHECK(static_cast<unsigned>(fs::status(path).permissions()) == 0600U);
  }
  for (const std::string& path : {world.state.path() + "/journal", *trimmed, world.state.path() + "/archive"}) {
    CHECK(static_cast<unsigned>(fs::status(path).permissions()) == 0700U);
  }
}

TEST_CASE("entries go on for a while on a full disk") {
  World world;
  REQUIRE(world.start());
  REQUIRE(world.append("a"));
  CHECK_FALSE(world.log->room().in_use);
  const auto room = world.log->room().bytes;
  CHECK(room >= LogJournal::kRoomAhead / 2);
  // The blocks are there, and readers do not see them.
  struct stat attr {};
  REQUIRE(::stat(world.journal().c_str(), &attr) == 0);
  CHECK(static_cast<std::uint64_t>(attr.st_blocks) * 512 >= LogJournal::kRoomAhead / 2);
  CHECK(attr.st_size < 4096);
}

TEST_CASE("the journal's payloads are decoded whatever their bytes are") {
  World world;
  REQUIRE(world.start());
  EntryFacts facts;
  facts.file_digest = hash_of(HashAlgorithm::kSha1, {});
  facts.name = "/a";
  facts.legacy_digest = facts.file_digest;
  REQUIRE(world.log->append(make_entry(*find_builtin_template("ima"), 10, facts), own_origin));
  world.log.reset();
  // A legacy entry whose fields are taken away: intact by its checksum, and no entry.
  auto text = read_file(world.journal(), 1 << 20);
  REQUIRE(text);
  Bytes rest(text->begin() + 16, text->end());
  const auto header = LogJournal::frame_at(rest, 0);
  REQUIRE(header);
  const auto entry = LogJournal::frame_at(ByteView(rest).subspan(header->size), 0);
  REQUIRE(entry);
  for (std::size_t size = 0; size < entry->payload.size(); ++size) {
    fs::remove_all(world.state.path() + "/journal");
    auto journal = LogJournal::create(world.state.path() + "/journal");
    REQUIRE(journal);
    REQUIRE((*journal)->append(1, header->payload));
    Bytes payload(entry->payload.begin(), entry->payload.begin() + static_cast<std::ptrdiff_t>(size));
    // The number of fields is behind the template's name; what is left of it says that there is none.
    const auto name = std::find_end(payload.begin(), payload.end(), std::begin("ima"), std::end("ima") - 1);
    if (payload.end() - name > 3) name[3] = 0;
    REQUIRE((*journal)->append(2, payload));
    CHECK_FALSE(read_journal(world.state.path() + "/journal"));
  }
}

}  // namespace imafs
