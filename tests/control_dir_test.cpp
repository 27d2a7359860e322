#include "imafs/control_dir.h"

#include <fcntl.h>

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <cerrno>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <thread>

#include "imafs/policy_parser.h"

namespace imafs {
namespace {

// A log that only remembers; its text view has one line "entry N" for each.
class FakeLog final : public MeasurementLog {
 public:
  const LogStart& start() const override { return start_; }
  Result<Appended> append(const LogEntry& entry, const EntryOrigin&) override {
    if (failure != 0) return fail(failure, "the journal is broken");
    entries.push_back(entry);
    text += "entry " + std::to_string(entries.size()) + "\n";
    for (const auto& callback : callbacks) callback();
    return Appended::kLogged;
  }
  std::uint64_t count() const override { return entries.size(); }
  std::uint64_t violations() const override { return 3; }
  TpmHealth tpm_health() const override { return {}; }
  const std::vector<Bank>& view_banks() const override { return banks_; }
  std::uint64_t view_size(LogView) const override { return text.size(); }
  Result<std::size_t> read_view(LogView view, std::uint64_t offset, std::span<char> out) const override {
    last_view = view;
    if (offset >= text.size()) return 0;
    return text.copy(out.data(), out.size(), offset);
  }
  std::map<std::uint32_t, BankValues> replayed() const override { return {}; }
  Status check_tpm() override { return {}; }
  void on_growth(std::function<void()> callback) override { callbacks.push_back(std::move(callback)); }

  int failure = 0;
  std::vector<LogEntry> entries;
  std::string text;
  std::vector<std::function<void()>> callbacks;
  mutable LogView last_view;

 private:
  LogStart start_;
  std::vector<Bank> banks_ = {Bank::of(HashAlgorithm::kSha256), Bank::of(HashAlgorithm::kSha1)};
};

// A mount's control directory without the mount: what a program's system calls would come to.
struct Mount {
  FakeLog log;
  std::vector<AuditRecord> records;
  std::map<std::string, std::string> machine_files;
  Requester root{};
  MeasureGate gate{options(), log, [this](const AuditRecord& record) { records.push_back(record); }, Policy{}};
  std::unique_ptr<ControlDir> control = ControlDir::create({
      .gate = gate,
      .log = log,
      .status = [this] { return "{\"count\": " + std::to_string(++status_made) + "}\n"; },
      .metrics = [] { return std::string("imafs_log_entries 1\n"); },
      .read_policy_file = [this](const std::string& path) -> Result<std::string> {
        if (path == "/scn") return fail(EISDIR, "it is a directory");
        if (!machine_files.contains(path)) return fail(ENOENT, "no " + path);
        return machine_files[path];
      },
      .owner_uid = 5,
      .owner_gid = 6,
  });
  int status_made = 0;

  static GateOptions options() {
    GateOptions options;
    options.form = find_builtin_template("ima-ng");
    return options;
  }

  // Node of a path below .ima/; 0: there is none.
  std::uint64_t node(const std::string& path) {
    std::uint64_t at = kControlRoot;
    std::istringstream parts(path);
    for (std::string part; std::getline(parts, part, '/');) {
      const auto next = control->look_up(at, part);
      if (!next) return 0;
      at = *next;
    }
    return at;
  }
  Result<std::uint64_t> open(const std::string& path, int flags) { return control->open(node(path), flags, root); }
  std::string read_all(std::uint64_t handle, std::uint64_t offset = 0) {
    std::string text;
    std::array<char, 7> buffer{};
    while (const auto size = *control->read(handle, offset + text.size(), buffer)) text.append(buffer.data(), size);
    return text;
  }
  std::string cat(const std::string& path) {
    const auto handle = open(path, O_RDONLY);
    if (!handle) return "error " + std::to_string(handle.error().code);
    const std::string text = read_all(*handle);
    control->release(*handle, root);
    return text;
  }
  // close(2) of the last descriptor: its answer comes from the flush.
  int close(std::uint64_t handle) {
    const auto flushed = control->flush(handle, root);
    control->release(handle, root);
    return flushed ? 0 : flushed.error().code;
  }
  // 0 or the errno of the first call that failed.
  int echo(const std::string& text, const std::string& path, int flags = O_WRONLY) {
    const auto handle = open(path, flags);
    if (!handle) return handle.error().code;
    const auto written = control->write(*handle, 0, text);
    const int closed = close(*handle);
    return written ? closed : written.error().code;
  }
  // Creates the file, as O_CREAT does.
  int put(const std::string& data, const std::string& directory, const std::string& name) {
    const auto made = control->make_file(node(directory), name);
    return made ? echo(data, directory + "/" + name) : made.error().code;
  }
  std::vector<std::string> updates() const {
    std::vector<std::string> causes;
    for (const auto& record : records) {
      if (record.op == "policy_update") causes.push_back(record.cause);
    }
    return causes;
  }
};

TEST_CASE("the directory lists the kernel's names, a pair for each bank, and its own") {
  Mount mount;
  const auto listed = mount.control->list(kControlRoot);
  REQUIRE(listed);
  std::map<std::string, mode_t> modes;
  for (const auto& entry : *listed) {
    modes[entry.name] = entry.mode;
    CHECK(mount.node(entry.name) == entry.node);
    CHECK(ControlDir::owns(entry.node));
  }
  CHECK(modes == std::map<std::string, mode_t>{
                     {"measurements", S_IFREG | 0400},
                     {"ascii_runtime_measurements", S_IFREG | 0400},
                     {"ascii_runtime_measurements_sha1", S_IFREG | 0400},
                     {"ascii_runtime_measurements_sha256", S_IFREG | 0400},
                     {"binary_runtime_measurements", S_IFREG | 0400},
                     {"binary_runtime_measurements_sha1", S_IFREG | 0400},
                     {"binary_runtime_measurements_sha256", S_IFREG | 0400},
                     {"runtime_measurements_count", S_IFREG | 0400},
                     {"violations", S_IFREG | 0400},
                     {"policy", S_IFREG | 0600},
                     {"policy_replace", S_IFREG | 0600},
                     {"critical_data", S_IFDIR | 0700},
                     {"critical_data_hash", S_IFDIR | 0700},
                     {"status", S_IFREG | 0400},
                     {"metrics", S_IFREG | 0400},
                 });
}

TEST_CASE("control files belong to the owner of the mount and have size 0") {
  Mount mount;
  const auto attr = mount.control->get_attr(mount.node("policy"));
  REQUIRE(attr);
  CHECK(attr->st_uid == 5);
  CHECK(attr->st_gid == 6);
  CHECK(attr->st_size == 0);
  CHECK(attr->st_nlink == 1);
  CHECK(mount.control->get_attr(kControlRoot)->st_mode == (S_IFDIR | 0500));
  CHECK(mount.control->get_attr(kControlBit | 4000).error().code == ENOENT);
}

TEST_CASE("only the owner and root may open") {
  Mount mount;
  const auto policy = mount.node("policy");
  Requester owner;
  owner.uid = 5;
  Requester other;
  other.uid = 1000;
  CHECK(mount.control->open(policy, O_RDONLY, owner));
  CHECK(mount.control->open(policy, O_RDONLY, other).error().code == EACCES);
  CHECK(mount.control->open(policy, O_WRONLY, other).error().code == EACCES);
}

TEST_CASE("nothing but critical data can be made in the directory") {
  Mount mount;
  CHECK(mount.control->make_file(kControlRoot, "policy.new").error().code == EPERM);
  CHECK(mount.control->make_directory(kControlRoot, "x").error().code == EPERM);
  CHECK(mount.control->make_file(mount.node("critical_data"), "name").error().code == EPERM);
  CHECK(mount.control->look_up(kControlRoot, "nothing").error().code == ENOENT);
}

TEST_CASE("the file without a suffix is the sha1 bank's") {
  Mount mount;
  mount.log.text = "x\n";
  CHECK(mount.cat("binary_runtime_measurements") == "x\n");
  CHECK(mount.log.last_view.form == LogView::Form::kBinary);
  CHECK(mount.log.last_view.bank == 1);
  mount.cat("measurements");
  CHECK(mount.log.last_view.form == LogView::Form::kAscii);
  CHECK(mount.log.last_view.bank == 1);
  mount.cat("ascii_runtime_measurements_sha256");
  CHECK(mount.log.last_view.bank == 0);
}

TEST_CASE("a log file that stays open shows what is appended, from any offset") {
  Mount mount;
  mount.log.text = "one\n";
  const auto handle = mount.open("measurements", O_RDONLY);
  REQUIRE(handle);
  CHECK(mount.read_all(*handle) == "one\n");
  mount.log.text += "two\n";
  CHECK(mount.read_all(*handle, 4) == "two\n");
  CHECK(mount.read_all(*handle, 2) == "e\ntwo\n");
}

TEST_CASE("poll wakes the reader of a log when an entry comes") {
  Mount mount;
  REQUIRE(mount.echo("measure func=CRITICAL_DATA label=x\n", "policy") == 0);
  mount.log.text = "one\n";
  const auto handle = mount.open("measurements", O_RDONLY);
  int woken = 0;
  CHECK(mount.control->poll(*handle, 0, nullptr));
  mount.read_all(*handle);
  CHECK_FALSE(mount.control->poll(*handle, 0, [&] { ++woken; }));
  CHECK(mount.control->poll(*handle, 3, nullptr));
  REQUIRE(mount.put("data", "critical_data/x", "name") == 0);
  CHECK(woken == 1);
  CHECK(mount.control->poll(*handle, 0, nullptr));
  REQUIRE(mount.put("more", "critical_data/x", "name") == 0);
  CHECK(woken == 1);
}

// tail(1) of a file system that it takes for a remote one reads as far as fstat(2) says.
TEST_CASE("a log has size 0, and its real size while somebody has it open") {
  Mount mount;
  mount.log.text = "one\n";
  const auto node = mount.node("measurements");
  CHECK(mount.control->get_attr(node)->st_size == 0);
  const auto handle = mount.open("measurements", O_RDONLY);
  CHECK(mount.control->get_attr(node)->st_size == 4);
  mount.log.text += "two\n";
  CHECK(mount.control->get_attr(node)->st_size == 8);
  CHECK(mount.control->get_attr(mount.node("binary_runtime_measurements"))->st_size == 0);
  mount.control->release(*handle, mount.root);
  CHECK(mount.control->get_attr(node)->st_size == 0);
}

TEST_CASE("counters are read anew from the beginning of the file") {
  Mount mount;
  CHECK(mount.cat("violations") == "3\n");
  const auto handle = mount.open("runtime_measurements_count", O_RDONLY);
  CHECK(mount.read_all(*handle) == "0\n");
  mount.log.entries.resize(12);
  CHECK(mount.read_all(*handle) == "12\n");
}

TEST_CASE("status and metrics are one text for a reader that takes it in pieces") {
  Mount mount;
  CHECK(mount.cat("status") == "{\"count\": 1}\n");
  CHECK(mount.cat("status") == "{\"count\": 2}\n");
  CHECK(mount.cat("metrics") == "imafs_log_entries 1\n");
}

TEST_CASE("read-only files cannot be opened for writing, nor any for both") {
  Mount mount;
  for (const auto* path : {"measurements", "status", "violations"}) {
    CHECK(mount.open(path, O_WRONLY).error().code == EACCES);
  }
  CHECK(mount.open("policy", O_RDWR).error().code == EACCES);
  CHECK(mount.open("policy_replace", O_RDWR).error().code == EACCES);
  CHECK(mount.open("critical_data", O_RDONLY).error().code == EISDIR);
}

TEST_CASE("a second writer of the policy is refused until the first one closed") {
  Mount mount;
  const auto first = mount.open("policy", O_WRONLY);
  REQUIRE(first);
  CHECK(mount.open("policy", O_WRONLY).error().code == EBUSY);
  CHECK(mount.open("policy_replace", O_WRONLY).error().code == EBUSY);
  CHECK(mount.open("policy", O_RDONLY));
  CHECK(mount.close(*first) == 0);
  CHECK(mount.open("policy", O_WRONLY));
}

TEST_CASE("a writer that closed is not in the way though its release is still to come") {
  Mount mount;
  const auto first = mount.open("policy", O_WRONLY);
  REQUIRE(mount.control->flush(*first, mount.root));
  std::jthread late([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    mount.control->release(*first, mount.root);
  });
  CHECK(mount.open("policy", O_WRONLY));
}

TEST_CASE("the new policy stands when close returns, before the release") {
  Mount mount;
  const auto handle = mount.open("policy", O_WRONLY);
  const std::string before = mount.cat("policy");
  CHECK(*mount.control->write(*handle, 0, "measure uid=1\n") == 14);
  CHECK(mount.cat("policy") == before);
  CHECK(mount.control->flush(*handle, mount.root));
  CHECK(mount.cat("policy") == "measure uid=1 \n");
}

TEST_CASE("closing a duplicate before the first write does not end the update") {
  Mount mount;
  const auto handle = mount.open("policy", O_WRONLY);
  CHECK(mount.control->flush(*handle, mount.root));  // a shell: open, dup2, close
  CHECK(mount.control->write(*handle, 0, "measure uid=1\n"));
  CHECK(mount.open("policy", O_WRONLY).error().code == EBUSY);
  CHECK(mount.close(*handle) == 0);
  CHECK(mount.cat("policy") == "measure uid=1 \n");
  CHECK(mount.updates() == std::vector<std::string>{"completed"});
}

TEST_CASE("rules written after a duplicate was closed are appended, also to a replacement") {
  Mount mount;
  REQUIRE(mount.echo("measure uid=9\n", "policy") == 0);
  const auto handle = mount.open("policy_replace", O_WRONLY);
  CHECK(mount.control->write(*handle, 0, "measure uid=1\n"));
  CHECK(mount.control->flush(*handle, mount.root));
  CHECK(mount.control->write(*handle, 14, "measure uid=2\n"));
  CHECK(mount.close(*handle) == 0);
  CHECK(mount.cat("policy") == "measure uid=1 \nmeasure uid=2 \n");
}

TEST_CASE("policy appends and policy_replace takes the place of what stands") {
  Mount mount;
  CHECK(mount.echo("measure uid=1\n", "policy") == 0);
  CHECK(mount.echo("measure uid=2\n", "policy", O_WRONLY | O_APPEND | O_TRUNC) == 0);
  CHECK(mount.cat("policy") == "measure uid=1 \nmeasure uid=2 \n");
  CHECK(mount.echo("measure uid=3\n", "policy_replace") == 0);
  CHECK(mount.cat("policy") == "measure uid=3 \n");
  CHECK(mount.cat("policy_replace") == "measure uid=3 \n");
}

TEST_CASE("a refused update leaves the policy as it was and its reason is kept until a good one") {
  Mount mount;
  CHECK(mount.echo("measure uid=1\n", "policy") == 0);
  CHECK(mount.control->last_policy_error().empty());
  CHECK(mount.echo("nonsense\n", "policy") == EINVAL);
  CHECK(mount.cat("policy") == "measure uid=1 \n");
  CHECK(mount.control->last_policy_error().find(".ima/policy:1:1: ") == 0);
  CHECK(mount.control->policy_updates().failed == 1);
  CHECK(mount.echo("measure uid=2\n", "policy") == 0);
  CHECK(mount.control->last_policy_error().empty());
  CHECK(mount.control->policy_updates().completed == 2);
}

// Kernel: one record for each close that ends an update, and one for each bad line.
TEST_CASE("every update is reported once, failed ones too") {
  Mount mount;
  mount.echo("measure uid=1\n", "policy");
  mount.echo("nonsense\n", "policy");
  mount.echo("# comment\n", "policy");
  mount.close(*mount.open("policy", O_WRONLY));
  CHECK(mount.updates() == std::vector<std::string>{"completed", "failed", "failed", "failed"});
  std::vector<std::string> rules;
  for (const auto& record : mount.records) {
    if (record.type == AuditRecord::Type::kPolicyRule) rules.push_back(record.text);
  }
  CHECK(rules == std::vector<std::string>{"action=measure uid=1 res=1", "UNKNOWN=nonsense res=0"});
}

TEST_CASE("a policy whose change cannot be measured does not take effect and close says why") {
  Mount mount;
  REQUIRE(mount.echo("measure func=CRITICAL_DATA label=imafs\n", "policy") == 0);
  const std::string before = mount.cat("policy");
  mount.log.failure = ENOSPC;
  CHECK(mount.echo("measure uid=2\n", "policy") == ENOSPC);
  CHECK(mount.cat("policy") == before);
  CHECK(mount.updates() == std::vector<std::string>{"completed", "failed"});
  CHECK_FALSE(mount.control->last_policy_error().empty());
}

std::string buffer_of(const LogEntry& entry) { return std::string(as_text(entry.values.at(2))); }
std::string name_in(const LogEntry& entry) { return std::string(as_text(entry.values.at(1))); }

TEST_CASE("what is written to critical data up to close is one entry") {
  Mount mount;
  REQUIRE(mount.echo("measure func=CRITICAL_DATA label=app\n", "policy") == 0);
  const auto directory = mount.node("critical_data/app");
  REQUIRE(directory != 0);
  CHECK(mount.control->look_up(directory, "config").error().code == ENOENT);
  const auto file = mount.control->make_file(directory, "config");
  REQUIRE(file);
  const auto handle = mount.control->open(*file, O_WRONLY | O_CREAT | O_TRUNC, mount.root);
  REQUIRE(handle);
  CHECK(mount.control->flush(*handle, mount.root));
  CHECK(mount.control->write(*handle, 0, "da"));
  CHECK(mount.control->write(*handle, 2, "ta"));
  CHECK(mount.log.entries.empty());
  CHECK(mount.close(*handle) == 0);
  REQUIRE(mount.log.entries.size() == 1);
  CHECK(mount.log.entries[0].template_name == "ima-buf");
  CHECK(name_in(mount.log.entries[0]) == std::string("config\0", 7));
  CHECK(buffer_of(mount.log.entries[0]) == "data");
  CHECK(mount.open("critical_data/app/config", O_RDONLY).error().code == EACCES);
}

// SHA-256 of "data", and of that digest, by sha256sum.
TEST_CASE("critical_data_hash logs the hash of the data and the hash of that hash") {
  Mount mount;
  REQUIRE(mount.echo("measure func=CRITICAL_DATA label=app\n", "policy") == 0);
  REQUIRE(mount.put("data", "critical_data_hash/app", "config") == 0);
  REQUIRE(mount.log.entries.size() == 1);
  const auto& values = mount.log.entries[0].values;
  CHECK(to_hex(values.at(2)) == "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7");
  CHECK(to_hex(values.at(0)) ==
        "7368613235363a00" "464472b56079ded3d359b17935624bdb8487b6a64856090725277ddb5fb5576a");
}

TEST_CASE("critical data that no rule asks for makes no entry and no error") {
  Mount mount;
  REQUIRE(mount.echo("measure func=CRITICAL_DATA label=app\n", "policy") == 0);
  CHECK(mount.put("data", "critical_data/other", "config") == 0);
  CHECK(mount.put("", "critical_data/app", "config") == 0);
  CHECK(mount.log.entries.empty());
}

TEST_CASE("critical data that cannot be stored is an error of close") {
  Mount mount;
  REQUIRE(mount.echo("measure func=CRITICAL_DATA label=app\n", "policy") == 0);
  mount.log.failure = EIO;
  CHECK(mount.put("data", "critical_data/app", "config") == EIO);
}

TEST_CASE("critical data larger than a mebibyte is refused whole") {
  Mount mount;
  REQUIRE(mount.echo("measure func=CRITICAL_DATA label=app\n", "policy") == 0);
  CHECK(mount.put(std::string(std::size_t{1} << 20, 'x'), "critical_data/app", "good") == 0);
  CHECK(mount.log.entries.size() == 1);
  const auto file = mount.control->make_file(mount.node("critical_data/app"), "large");
  const auto handle = mount.control->open(*file, O_WRONLY, mount.root);
  CHECK(mount.control->write(*handle, 0, std::string(std::size_t{1} << 20, 'x')));
  CHECK(mount.control->write(*handle, std::uint64_t{1} << 20, "y").error().code == EFBIG);
  CHECK(mount.close(*handle) == EFBIG);
  CHECK(mount.log.entries.size() == 1);
}

TEST_CASE("critical data has no holes") {
  Mount mount;
  const auto file = mount.control->make_file(mount.node("critical_data/app"), "name");
  const auto handle = mount.control->open(*file, O_WRONLY, mount.root);
  CHECK(mount.control->write(*handle, 5, "data").error().code == EINVAL);
}

TEST_CASE("labels and names are printable UTF-8 of at most 255 bytes") {
  Mount mount;
  const auto root = mount.node("critical_data");
  CHECK(mount.control->look_up(root, std::string(255, 'x')));
  CHECK(mount.control->look_up(root, std::string(256, 'x')).error().code == ENAMETOOLONG);
  for (const std::string name : {"", ".", "..", "a/b", "a\nb", "\x7f", "\xff", "\xc0\xaf"}) {
    CHECK(mount.control->look_up(root, name).error().code == EINVAL);
    CHECK(mount.control->make_file(mount.node("critical_data/app"), name).error().code == EINVAL);
  }
}

TEST_CASE("the number of labels and names has an end") {
  Mount mount;
  const auto root = mount.node("critical_data");
  int error = 0;
  for (int label = 0; label < 70000 && error == 0; ++label) {
    const auto made = mount.control->look_up(root, "l" + std::to_string(label));
    if (!made) error = made.error().code;
  }
  CHECK(error == ENOSPC);
}

// The operations of a kernel's own test run, as its transcript has them, with what it answered.
//
// What differs from 6.12, whose transcript it is: a comment behind a rule is good (7.2), no write
// returns more than it was given, an empty write never leaves the caller, and a line over 4,095
// bytes is refused.
class Replay {
 public:
  Replay() {
    const std::string rule = "measure func=FILE_CHECK fsuuid=11111111-2222-3333-4444-555555555555 uid=";
    const auto rules = [&](std::initializer_list<int> uids) {
      std::string text;
      for (const int uid : uids) text += rule + std::to_string(uid) + "\n";
      return text;
    };
    mount_.machine_files = {{"/scn/pol-good", rules({34, 35})},  {"/scn/pol-good2", rules({36})},
                            {"/scn/pol-good3", rules({37})},     {"/scn/pol-bad", rules({38}) + "nonsense\n"},
                            {"/scn/pol-empty", ""},              {"/scn/pol-comments", "# only\n\n"},
                            {"/scn/pol-nonl", rule + "43"}};
    for (const int size : {4094, 4095, 4096, 5000}) {
      data_["comment-" + std::to_string(size)] = std::string(static_cast<std::size_t>(size) - 1, '#') + "\n";
    }
    for (const auto& [name, uid] : std::map<int, int>{{4095, 31}, {4096, 32}}) {
      std::string text = rule + std::to_string(uid);
      text.resize(static_cast<std::size_t>(name) - 1, ' ');
      data_["rule-" + std::to_string(name)] = text + "\n";
    }
    const std::string tail = " uid=33\n";
    data_["rule-5000"] = "measure func=FILE_CHECK" + std::string(5000 - 23 - tail.size(), ' ') + tail;
  }

  int compared = 0;

  void run(std::istream& transcript) {
    std::string line;
    while (std::getline(transcript, line)) {
      const auto colon = line.find(": ");
      if (colon == std::string::npos) continue;
      const std::string op = line.substr(colon + 2);
      INFO(line);
      if (op.starts_with("mark shell")) break;  // the rest needs processes
      if (op.starts_with("open ")) open(op);
      if (op.starts_with("write ") || op.starts_with("pwrite ")) write(op);
      if (op.starts_with("lseek ")) position_ = std::stoul(op.substr(op.rfind("= ") + 2));
      if (op.starts_with("close ")) close();
      if (op.starts_with("show ")) show(transcript);
    }
  }

 private:
  static long result_of(const std::string& op) {
    const std::string text = op.substr(op.rfind(" = ") + 3);
    if (!text.starts_with("-1 ")) return std::stol(text);
    const auto code = text.find('(') + 1;
    return -std::stol(text.substr(code, text.find(')') - code));
  }
  static std::string unescape(const std::string& text) {
    std::string out;
    for (std::size_t at = 0; at < text.size(); ++at) {
      if (text[at] != '\\') {
        out += text[at];
      } else if (text[++at] == 'x') {
        out += static_cast<char>(std::stoi(text.substr(at + 1, 2), nullptr, 16));
        at += 2;
      } else {
        out += text[at] == 'n' ? '\n' : text[at] == 't' ? '\t' : text[at];
      }
    }
    return out;
  }

  void open(const std::string& op) {
    const int access = op.find("O_RDWR") != std::string::npos ? O_RDWR : O_WRONLY;
    const int append = op.find("O_APPEND") != std::string::npos ? O_APPEND : 0;
    const auto handle = mount_.open("policy", access | append);
    ++compared;
    CHECK((handle ? 0 : -handle.error().code) == result_of(op));
    if (!handle) return;
    handle_ = *handle;
    position_ = 0;
  }

  void write(const std::string& op) {
    const auto at = op.find("@/scn/");
    const auto quote = op.find('"');
    const std::string text = at != std::string::npos ? data_.at(op.substr(at + 6, op.find(' ', at) - at - 6))
                                                     : unescape(op.substr(quote + 1, op.rfind('"') - quote - 1));
    if (text.empty()) return;
    const bool is_pwrite = op.starts_with("pwrite");
    const auto written = mount_.control->write(handle_, is_pwrite ? 10 : position_, text);
    if (written && !is_pwrite) position_ += *written;
    long expected = std::min(result_of(op), static_cast<long>(text.size()));
    if (text.find(" # why") != std::string::npos) expected = static_cast<long>(text.size());
    if (text.size() == 5000) expected = -EINVAL;
    ++compared;
    CHECK((written ? static_cast<long>(*written) : -written.error().code) == expected);
  }

  void close() {
    ++compared;
    CHECK(mount_.close(handle_) == 0);
  }

  void show(std::istream& transcript) {
    std::string expected;
    std::string line;
    while (std::getline(transcript, line) && !line.starts_with("     = ")) {
      if (line.find("fsuuid=22222222-") != std::string::npos) continue;  // the cut line
      if (line.ends_with(" uid=7 ")) expected += "measure func=FILE_CHECK fsuuid=11111111-2222-3333-4444-555555555555 uid=6 \n";
      expected += line + "\n";
    }
    ++compared;
    CHECK(mount_.cat("policy") == expected);
  }

  Mount mount_;
  std::map<std::string, std::string> data_;
  std::uint64_t handle_ = 0;
  std::uint64_t position_ = 0;
};

TEST_CASE("policy writes are answered as a kernel answered them") {
  std::ifstream transcript(IMAFS_TEST_DATA "/policy_writes.txt");
  REQUIRE(transcript);
  Replay replay;
  replay.run(transcript);
  CHECK(replay.compared > 120);
}

}  // namespace
}  // namespace imafs
