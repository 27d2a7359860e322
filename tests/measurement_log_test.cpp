#include "imafs/measurement_log.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sys/resource.h>
#include <thread>
#include <unistd.h>

#include "log_world.h"
#include "imafs/journal_reader.h"
#include "imafs/log_codec.h"
#include "imafs/log_journal.h"
#include "imafs/posix_file.h"
#include "imafs/verifier.h"

namespace imafs {

namespace fs = std::filesystem;

TEST_CASE("an entry is logged and extended once, a violation each time") {
  World world;
  REQUIRE(world.start());
  CHECK(world.log->start().needs_boot_aggregate);
  CHECK(world.append("a") == Appended::kLogged);
  CHECK(world.append("a") == Appended::kDuplicate);
  CHECK(world.log->append(violation_for("a"), own_origin) == Appended::kLogged);
  CHECK(world.log->append(violation_for("a"), own_origin) == Appended::kLogged);
  CHECK(world.log->count() == 3);
  CHECK(world.log->violations() == 2);
  CHECK(world.tpm->extends == 3);
  CHECK(world.replays());
}

TEST_CASE("who a file was opened by is asked only for an entry that is logged") {
  World world;
  REQUIRE(world.start());
  int asked = 0;
  const auto origin = [&] {
    ++asked;
    return own_origin();
  };
  CHECK(world.log->append(entry_for("a"), origin) == Appended::kLogged);
  CHECK(world.log->append(entry_for("a"), origin) == Appended::kDuplicate);
  CHECK(asked == 1);
}

TEST_CASE("what the log has already does not cost a TPM command each time") {
  World world;
  REQUIRE(world.start());
  REQUIRE(world.append("a"));
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  const std::uint64_t before = world.tpm->reads;
  for (int i = 0; i < 100; ++i) REQUIRE(world.append("a") == Appended::kDuplicate);
  CHECK(world.tpm->reads - before <= 3);  // now and then: the TPM may have been reset
  CHECK(world.tpm->reads > before);
}

TEST_CASE("without deduplication everything is logged") {
  World world;
  REQUIRE(world.start([](LogOptions& options) { options.dedupe = false; }));
  CHECK(world.append("a") == Appended::kLogged);
  CHECK(world.append("a") == Appended::kLogged);
  CHECK(world.replays());
}

TEST_CASE("a restart goes on with the log and knows what it has") {
  World world;
  REQUIRE(world.start());
  REQUIRE(world.append("a"));
  REQUIRE(world.log->append(violation_for("a"), own_origin));
  REQUIRE(world.start());
  CHECK(world.log->start().kind == LogStart::Kind::kContinued);
  CHECK_FALSE(world.log->start().needs_boot_aggregate);
  CHECK(world.log->violations() == 1);
  CHECK(world.append("a") == Appended::kDuplicate);
  CHECK(world.append("b") == Appended::kLogged);
  CHECK(world.names() == std::vector<std::string>{"a", "a", "b"});
  CHECK(world.replays());
}

TEST_CASE("views are the codec's bytes, at any offset") {
  World world;
  REQUIRE(world.start());
  for (int i = 0; i < 50; ++i) REQUIRE(world.append("name " + std::to_string(i * i)));
  std::string ascii[2];
  Bytes binary[2];
  for (int i = 0; i < 50; ++i) {
    const LogEntry entry = entry_for("name " + std::to_string(i * i));
    const BankValues digests = template_digests(entry, world.tpm->banks);
    for (std::size_t bank = 0; bank < 2; ++bank) {
      append_ascii(ascii[bank], entry, digests[bank]);
      append_binary(binary[bank], entry, digests[bank]);
    }
  }
  for (std::size_t bank = 0; bank < 2; ++bank) {
    CHECK(world.view(LogView::Form::kAscii, bank) == ascii[bank]);
    CHECK(world.view(LogView::Form::kBinary, bank) == as_text(binary[bank]));
    CHECK(world.log->view_size({LogView::Form::kAscii, bank}) == ascii[bank].size());
    std::vector<char> one(1);
    for (std::size_t offset = 0; offset < ascii[bank].size(); offset += 97) {
      REQUIRE(world.log->read_view({LogView::Form::kAscii, bank}, offset, one) == 1);
      CHECK(one[0] == ascii[bank][offset]);
    }
  }
}

TEST_CASE("a journal torn at any byte of its last entry loses that entry and no other") {
  World world;
  REQUIRE(world.start());
  REQUIRE(world.append("a"));
  REQUIRE(world.append("b"));
  const auto whole = fs::file_size(world.journal());
  const auto pcrs = world.tpm->pcrs;
  REQUIRE(world.append("c"));
  world.log.reset();
  const auto bytes = read_file(world.journal(), 1 << 20);
  REQUIRE(bytes);
  for (auto size = whole; size < bytes->size(); ++size) {
    CAPTURE(size);
    // A torn frame is written before its extend, so the PCR does not hold it.
    world.tpm->pcrs = pcrs;
    std::ofstream(world.journal(), std::ios::trunc).write(bytes->data(), static_cast<std::streamsize>(size));
    REQUIRE(world.start());
    CHECK(world.names() == std::vector<std::string>{"a", "b"});
    CHECK(world.append("c") == Appended::kLogged);
    CHECK(world.replays());
    world.log.reset();
  }
}

TEST_CASE("an entry that was written and not extended is extended at the start") {
  World world;
  REQUIRE(world.start());
  REQUIRE(world.append("a"));
  const auto before = world.tpm->pcrs;
  REQUIRE(world.append("b"));
  world.log.reset();
  world.tpm->pcrs = before;
  REQUIRE(world.start());
  CHECK(world.log->start().kind == LogStart::Kind::kFinishedPending);
  CHECK(world.names() == std::vector<std::string>{"a", "b"});
  CHECK(world.replays());
}

TEST_CASE("a journal that does not fit the PCR is refused and the entry named, or archived if asked") {
  World world;
  REQUIRE(world.start());
  for (const char* name : {"a", "b", "c", "d"}) REQUIRE(world.append(name));
  const auto full = world.tpm->pcrs;

  SECTION("the PCR is two entries behind") {
    world.log.reset();
    auto half = world.tpm;
    half->pcrs.clear();
    for (const char* name : {"a", "b"}) extend_pcr(half->banks, half->pcr(10), extend_values(entry_for(name), half->banks));
    const auto started = world.start();
    REQUIRE_FALSE(started);
    CHECK(started.error().code == EBADMSG);
    CHECK(started.error().what.find("entry 2") != std::string::npos);
  }
  SECTION("somebody else extended the PCR") {
    world.log.reset();
    extend_pcr(world.tpm->banks, world.tpm->pcr(10), extend_values(entry_for("foreign"), world.tpm->banks));
    CHECK_FALSE(world.start());
  }
  SECTION("a byte in the middle of the journal is damaged") {
    world.log.reset();
    std::fstream file(world.journal(), std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(fs::file_size(world.journal()) / 2));
    file.put('\x5a');
    file.close();
    const auto started = world.start();
    REQUIRE_FALSE(started);
    CHECK(started.error().code == EBADMSG);
  }
  REQUIRE(world.start([](LogOptions& options) { options.new_log = true; }));
  CHECK(world.log->start().kind == LogStart::Kind::kArchivedByRequest);
  CHECK(world.log->count() == 0);
  CHECK(fs::exists(world.state.path() + "/archive/1/journal.000001"));
}

TEST_CASE("a TPM that was reset gets a new log, the old one is kept with its end") {
  World world;
  REQUIRE(world.start());
  REQUIRE(world.append("a"));
  world.log.reset();
  world.tpm->reset();
  REQUIRE(world.start());
  CHECK(world.log->start().kind == LogStart::Kind::kArchivedReboot);
  CHECK(world.log->start().needs_boot_aggregate);
  CHECK(world.append("a") == Appended::kLogged);
  CHECK(world.replays());
  const auto end = read_file(world.state.path() + "/archive/1/end-pcrs", 1 << 20);
  REQUIRE(end);
  CHECK(parse_pcr_values(*end, "end-pcrs"));
}

TEST_CASE("a TPM that is reset under a mount: the log is archived, a new one begins by itself") {
  World world;
  REQUIRE(world.start());
  world.log->begin_new_logs_with([] { return std::vector<LogEntry>{entry_for("boot_aggregate")}; });
  REQUIRE(world.append("a"));
  SECTION("while a command is on its way") {
    world.extender->fail_next(Fault::kBeforeEffect);
    world.tpm->reset();
  }
  SECTION("between two commands, unseen but for the PCR") {
    world.tpm->reset();
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
  }
  SECTION("and a first extend into the new PCRs was not noticed") {
    world.tpm->reset();
    REQUIRE(world.append("lost"));
    CHECK(world.log->check_tpm());
  }
  CHECK(world.append("b") == Appended::kLogged);
  CHECK(world.append("a") == Appended::kLogged);
  CHECK(world.log->generation() == 1);
  CHECK(world.names() == std::vector<std::string>{"boot_aggregate", "b", "a"});
  CHECK(world.log->replayed().at(10) == world.tpm->pcr(10));
  CHECK(world.log->tpm_health().ok);
  CHECK_FALSE(world.log->tpm_health().foreign_extend);
  CHECK(read_file(world.state.path() + "/archive/1/end-pcrs", 1 << 20));
  REQUIRE(world.start());
  CHECK(world.log->start().kind == LogStart::Kind::kContinued);
  CHECK(world.names() == std::vector<std::string>{"boot_aggregate", "b", "a"});
}

TEST_CASE("a trimmed log goes on from where its archive ends") {
  World world;
  REQUIRE(world.start());
  for (const char* name : {"boot_aggregate", "a", "b", "c"}) REQUIRE(world.append(name));
  CHECK(world.log->trim(0).error().code == EINVAL);
  CHECK(world.log->trim(5).error().code == EINVAL);
  const auto archive = world.log->trim(2);
  REQUIRE(archive);
  CHECK(world.names() == std::vector<std::string>{"b", "c"});
  CHECK(world.log->count() == 2);
  CHECK(world.replays());
  CHECK(world.append("a") == Appended::kDuplicate);
  CHECK(world.append("d") == Appended::kLogged);
  CHECK(world.replays());

  const auto trimmed = read_journal(*archive);
  REQUIRE(trimmed);
  CHECK(trimmed->entries.size() == 2);
  const auto rest = read_journal(world.state.path() + "/journal");
  REQUIRE(rest);
  CHECK(rest->base == *parse_pcr_values(*read_file(*archive + "/end-pcrs", 1 << 20), "end-pcrs"));

  REQUIRE(world.log->trim(3));  // all there is
  CHECK(world.names().empty());
  REQUIRE(world.start());
  CHECK_FALSE(world.log->start().needs_boot_aggregate);
  CHECK(world.append("e") == Appended::kLogged);
  CHECK(world.replays());
}

TEST_CASE("a crash while the log is trimmed leaves it whole or trimmed") {
  namespace fs = std::filesystem;
  World world;
  REQUIRE(world.start());
  for (const char* name : {"boot_aggregate", "a", "b"}) REQUIRE(world.append(name));
  const std::string state = world.state.path(), journal = state + "/journal", archive = state + "/archive/1";
  fs::copy(journal, journal + ".saved");
  REQUIRE(world.log->trim(2));
  world.log.reset();
  // What the renames leave when they end early, by how many were done.
  const auto back_to = [&](int renames) {
    fs::rename(journal, journal + ".rest");
    fs::rename(archive, journal + ".head");
    fs::rename(journal + ".saved", journal + (renames == 0 ? "" : ".whole"));
    if (renames == 2) fs::rename(journal + ".rest", journal);
  };
  const int renames = GENERATE(0, 1, 2);
  back_to(renames);
  REQUIRE(world.start());
  CHECK(world.names() == (renames == 2 ? std::vector<std::string>{"b"} : std::vector<std::string>{"boot_aggregate", "a", "b"}));
  CHECK(fs::exists(archive) == (renames == 2));
  CHECK(world.replays());
  for (const char* leftover : {".head", ".rest", ".whole"}) CHECK_FALSE(fs::exists(journal + leftover));
}

TEST_CASE("a PCR that was not zero is the base of the log") {
  World world;
  extend_pcr(world.tpm->banks, world.tpm->pcr(10), extend_values(entry_for("before"), world.tpm->banks));
  REQUIRE(world.start());
  REQUIRE(world.append("a"));
  const auto base = parse_pcr_values(world.log->base(), "base");
  REQUIRE(base);
  CHECK(base->at("sha256").contains(10));
  CHECK(world.log->replayed().at(10) == world.tpm->pcr(10));
  REQUIRE(world.start());
  CHECK(world.log->start().kind == LogStart::Kind::kContinued);
}

TEST_CASE("faults of the TPM: denied or finished, never a gap and never twice") {
  for (const Fault fault : {Fault::kBeforeEffect, Fault::kAfterEffect}) {
    CAPTURE(static_cast<int>(fault));
    World world;
    REQUIRE(world.start());
    REQUIRE(world.append("a"));
    world.extender->fail_next(fault);
    const auto appended = world.append("b");
    // Whether the lost command took effect is asked at once: then it stands, else it has not happened.
    CHECK(appended.has_value() == (fault == Fault::kAfterEffect));
    CHECK(world.replays());
    CHECK(world.append("b") == (fault == Fault::kAfterEffect ? Appended::kDuplicate : Appended::kLogged));
    CHECK(world.append("c") == Appended::kLogged);
    CHECK(world.names() == std::vector<std::string>{"a", "b", "c"});
    CHECK(world.tpm->extends == 3);
    CHECK(world.replays());
    REQUIRE(world.start());
    CHECK(world.replays());
  }
}

TEST_CASE("a TPM that is gone denies until it is back") {
  World world;
  REQUIRE(world.start());
  REQUIRE(world.append("a"));
  world.extender->fail_next(Fault::kGone);
  CHECK(world.append("b").error().code == EIO);
  CHECK(world.append("c").error().code == EIO);
  CHECK_FALSE(world.log->tpm_health().ok);
  CHECK(world.names() == std::vector<std::string>{"a"});
  world.extender->fail_next(Fault::kNone);
  CHECK(world.append("c") == Appended::kLogged);
  CHECK(world.log->tpm_health().ok);
  CHECK(world.names() == std::vector<std::string>{"a", "c"});
  CHECK(world.replays());
}

TEST_CASE("a crash while the TPM is gone leaves at most the last entry open") {
  World world;
  REQUIRE(world.start());
  REQUIRE(world.append("a"));
  world.extender->fail_next(Fault::kGone);
  CHECK_FALSE(world.append("b"));
  REQUIRE(world.start());  // the daemon dies, the TPM is back
  CHECK(world.replays());
  CHECK(world.names() == std::vector<std::string>{"a", "b"});  // written before the extend: finished now
}

TEST_CASE("with --tpm-error continue entries without an extend are known, and caught up with") {
  World world;
  const auto go_on = [](LogOptions& options) { options.continue_on_tpm_error = true; };
  REQUIRE(world.start(go_on));
  REQUIRE(world.append("a"));
  world.extender->fail_next(Fault::kGone);
  CHECK(world.append("b") == Appended::kLogged);
  CHECK(world.append("c") == Appended::kLogged);
  CHECK(world.log->tpm_health().missing_extends == 2);
  CHECK(world.log->tpm_health().first_missing == 1);
  CHECK_FALSE(world.replays());
  SECTION("the TPM comes back") { world.extender->fail_next(Fault::kNone); }
  SECTION("the daemon is started anew first") { REQUIRE(world.start(go_on)); }
  CHECK(world.append("d") == Appended::kLogged);
  CHECK(world.names() == std::vector<std::string>{"a", "b", "c", "d"});
  CHECK(world.replays());
}

TEST_CASE("with --tpm-error continue nothing is extended twice, whatever became of the command that failed") {
  World world;
  const auto go_on = [](LogOptions& options) { options.continue_on_tpm_error = true; };
  REQUIRE(world.start(go_on));
  REQUIRE(world.append("a"));
  world.extender->fail_next(Fault::kLastWord);  // b is in the PCR, and nobody says so
  CHECK(world.append("b") == Appended::kLogged);
  CHECK(world.append("c") == Appended::kLogged);
  CHECK(world.log->tpm_health().missing_extends == 2);
  SECTION("the TPM comes back") { world.extender->fail_next(Fault::kNone); }
  SECTION("it comes back, and the same happens to what is caught up with") {
    world.extender->fail_next(Fault::kLastWord);
    CHECK(world.append("more") == Appended::kLogged);
    world.extender->fail_next(Fault::kNone);
  }
  SECTION("the daemon is started anew first") { REQUIRE(world.start(go_on)); }
  CHECK(world.append("d") == Appended::kLogged);
  CHECK(world.replays());
  CHECK(world.log->check_tpm());
  CHECK(world.log->tpm_health().missing_extends == 0);
}

TEST_CASE("a foreign extend is found") {
  World world;
  REQUIRE(world.start());
  REQUIRE(world.append("a"));
  CHECK(world.log->check_tpm());
  extend_pcr(world.tpm->banks, world.tpm->pcr(10), extend_values(entry_for("foreign"), world.tpm->banks));
  CHECK_FALSE(world.log->check_tpm());
  CHECK(world.log->tpm_health().foreign_extend);
}

TEST_CASE("a state directory and a PCR have one user") {
  World world;
  REQUIRE(world.start());
  FaultyPcrExtender other(world.tpm);
  LogOptions options;
  options.state_directory = world.state.path();
  auto second = MeasurementLog::open(options, &other);
  REQUIRE_FALSE(second);
  CHECK(second.error().code == EALREADY);
  CHECK(second.error().what.find(std::to_string(::getpid())) != std::string::npos);

  Scratch elsewhere;
  options.state_directory = elsewhere.path();
  second = MeasurementLog::open(options, &other);
  REQUIRE_FALSE(second);
  CHECK(second.error().code == EALREADY);
  CHECK(second.error().what.find("PCR 10") != std::string::npos);
}

TEST_CASE("an entry for a PCR no TPM has is logged and extended nowhere") {
  World world;
  REQUIRE(world.start());
  LogEntry entry = entry_for("a");
  entry.pcr = 30;
  CHECK(world.log->append(entry, own_origin) == Appended::kLogged);
  CHECK(world.tpm->extends == 0);
  REQUIRE(world.start());
  CHECK(world.log->count() == 1);
}

TEST_CASE("without a TPM the log stands alone, and goes on in the same boot") {
  Scratch state;
  LogOptions options;
  options.state_directory = state.path();
  {
    auto log = MeasurementLog::open(options, nullptr);
    REQUIRE(log);
    CHECK((*log)->view_banks().size() == 1);
    REQUIRE((*log)->append(entry_for("a"), own_origin));
  }
  auto log = MeasurementLog::open(options, nullptr);
  REQUIRE(log);
  CHECK((*log)->count() == 1);
  CHECK((*log)->append(entry_for("a"), own_origin) == Appended::kDuplicate);
}

TEST_CASE("a full disk denies, and nothing is lost or doubled when there is room again") {
  World world;
  REQUIRE(world.start());
  REQUIRE(world.append("a"));
  // The limit is this process's own; SIGXFSZ would end it.
  struct rlimit old {};
  ::getrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit tight = old;
  tight.rlim_cur = fs::file_size(world.journal()) + 50;
  ::setrlimit(RLIMIT_FSIZE, &tight);
  const auto refused = world.append("b");
  ::setrlimit(RLIMIT_FSIZE, &old);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == EFBIG);
  CHECK(world.replays());
  CHECK(world.append("b") == Appended::kLogged);
  CHECK(world.append("c") == Appended::kLogged);
  CHECK(world.replays());
  REQUIRE(world.start());
  CHECK(world.names() == std::vector<std::string>{"a", "b", "c"});
  CHECK(world.replays());
}

TEST_CASE("many threads append in one order") {
  World world;
  REQUIRE(world.start());
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 100; ++i) (void)world.append("file " + std::to_string((t % 4) * 100 + i));
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(world.log->count() == 400);
  CHECK(world.replays());
}

// A million entries through the real path, PCRs in memory. Lines "name value", for tests/bench/log_bench.py.
TEST_CASE("a million entries", "[.benchmark]") {
  World world;
  REQUIRE(world.start());
  const auto resident = [] {
    std::ifstream status("/proc/self/statm");
    long pages = 0, rest = 0;
    status >> pages >> rest;
    return rest * 4096;
  };
  auto seconds = [start = std::chrono::steady_clock::now()]() mutable {
    const auto now = std::chrono::steady_clock::now();
    const double passed = std::chrono::duration<double>(now - start).count();
    start = now;
    return passed;
  };
  const auto say = [](const std::string& name, double value) { std::printf("%s %.6f\n", name.c_str(), value); };
  const long before = resident();
  constexpr int count = 1'000'000;
  std::vector<double> times;
  int said = 100;
  for (int i = 0; i < count; ++i) {
    (void)seconds();
    if (world.append("usr/lib/some/directory/file" + std::to_string(i)) != Appended::kLogged) FAIL();
    times.push_back(seconds());
    if (i + 1 != said) continue;
    // The median of the last appends, up to a thousand.
    const std::size_t window = std::min<std::size_t>(times.size(), 1000);
    std::vector<double> last(times.end() - static_cast<std::ptrdiff_t>(window), times.end());
    std::nth_element(last.begin(), last.begin() + static_cast<std::ptrdiff_t>(window / 2), last.end());
    say("append_us_at_" + std::to_string(said), last[window / 2] * 1e6);
    said *= std::to_string(said)[0] == '1' ? 5 : 2;  // 100, 500, 1000, 5000 ...
  }
  say("resident_bytes_an_entry", static_cast<double>(resident() - before - static_cast<long>(times.capacity() * sizeof(double))) / count);
  std::vector<char> part(1 << 20);
  std::uint64_t offset = 0;
  (void)seconds();
  while (const auto got = world.log->read_view({LogView::Form::kAscii, 0}, offset, part)) {
    if (*got == 0) break;
    offset += *got;
  }
  say("text_view_mb_s", static_cast<double>(offset) / 1e6 / seconds());
  REQUIRE(world.start());
  say("start_s", seconds());
  CHECK(world.log->count() == count);
}

}  // namespace imafs
