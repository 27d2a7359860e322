#include "imafs/policy_desk.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <fstream>
#include <thread>

#include "control_mount.h"

namespace imafs {
namespace {

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
  REQUIRE(rules.size() == 3);
  CHECK(rules[0] == "action=measure uid=1 res=1");
  CHECK(rules[1] == "UNKNOWN=nonsense res=0");
  CHECK(rules[2].starts_with("policy update refused: .ima/policy:1:1: "));
}

TEST_CASE("the reason of a refusal is one line of the messages, whatever was written") {
  Mount mount;
  mount.echo("/no\x1b[2J\x7f", "policy");
  REQUIRE_FALSE(mount.records.empty());
  CHECK(mount.records[0].text == "policy update refused: no /no?[2J?");
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

// The operations of a kernel's own test run, as its transcript has them, with what it answered.
//
// What differs from 6.12, whose transcript it is: a comment behind a rule is good (7.2), no write
// returns more than it was given, an empty write never leaves the caller, and a line over 4,095
// bytes is refused.
class Replay {
 public:
  Replay() {
    const std::string rule =
        "measure func=FILE_CHECK fsuuid=11111111-2222-3333-4444-555555555555 uid=";
    const auto rules = [&](std::initializer_list<int> uids) {
      std::string text;
      for (const int uid : uids) text += rule + std::to_string(uid) + "\n";
      return text;
    };
    mount_.machine_files = {{"/scn/pol-good", rules({34, 35})},
                            {"/scn/pol-good2", rules({36})},
                            {"/scn/pol-good3", rules({37})},
                            {"/scn/pol-bad", rules({38}) + "nonsense\n"},
                            {"/scn/pol-empty", ""},
                            {"/scn/pol-comments", "# only\n\n"},
                            {"/scn/pol-nonl", rule + "43"}};
    for (const int size : {4094, 4095, 4096, 5000}) {
      data_["comment-" + std::to_string(size)] =
          std::string(static_cast<std::size_t>(size) - 1, '#') + "\n";
    }
    for (const auto& [name, uid] : std::map<int, int>{{4095, 31}, {4096, 32}}) {
      std::string text = rule + std::to_string(uid);
      text.resize(static_cast<std::size_t>(name) - 1, ' ');
      data_["rule-" + std::to_string(name)] = text + "\n";
    }
    const std::string tail = " uid=33\n";
    data_["rule-5000"] =
        "measure func=FILE_CHECK" + std::string(5000 - 23 - tail.size(), ' ') + tail;
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
    const std::string text = at != std::string::npos
                                 ? data_.at(op.substr(at + 6, op.find(' ', at) - at - 6))
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
      if (line.ends_with(" uid=7 "))
        expected += "measure func=FILE_CHECK fsuuid=11111111-2222-3333-4444-555555555555 uid=6 \n";
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
