#include "imafs/policy_writer.h"

#include <catch2/catch_test_macros.hpp>
#include <cerrno>
#include <fstream>
#include <map>

namespace imafs {
namespace {

using Position = PolicyWriter::Position;

// A writer with its surroundings: the active policy, files by path, what it reported.
struct Desk {
  std::shared_ptr<Policy> active = std::make_shared<Policy>();
  std::map<std::string, std::string> files;
  std::vector<std::string> records;
  std::vector<std::string> refusals;
  PolicyWriter writer{
      {.active_policy = [this] { return std::shared_ptr<const Policy>(active); },
       .read_policy_file = [this](const std::string& path) -> Result<std::string> {
         if (path == "/directory") return fail(EISDIR, "it is a directory");
         if (!files.contains(path)) return fail(ENOENT, "no " + path);
         return files[path];
       },
       .report =
           [this](const AuditRecord& record) {
             records.push_back(record.text.empty() ? record.op + " " + record.cause : record.text);
           },
       .refused = [this](const std::string& reason) { refusals.push_back(reason); }}};

  // As write(2) of the kernel's file arrives: always at 0.
  long write(std::string_view text) {
    const auto consumed = writer.write(0, text);
    return consumed ? static_cast<long>(*consumed) : -consumed.error().code;
  }
  // As a tool does it: short writes are continued at the position that they moved to.
  bool write_all(std::string_view text, std::size_t buffer) {
    std::uint64_t position = 0;
    for (std::size_t begin = 0; begin < text.size(); begin += buffer) {
      std::string_view rest = text.substr(begin, buffer);
      while (!rest.empty()) {
        const auto consumed = writer.write(position, rest);
        if (!consumed) return false;
        position += *consumed;
        rest.remove_prefix(*consumed);
      }
    }
    return true;
  }
  std::string loaded() {
    std::string text;
    for (const Rule& rule : writer.close()) text += to_text(rule);
    return text;
  }
};

const std::string kTwoRules = "measure func=FILE_CHECK uid=8\nmeasure func=BPRM_CHECK uid=9\n";
const std::string kTwoRulesBack =
    "measure func=FILE_CHECK uid=8 \nmeasure func=BPRM_CHECK uid=9 \n";

TEST_CASE("a write takes the first line and says how long it was") {
  Desk desk;
  CHECK(desk.write(kTwoRules) == 30);
  CHECK(desk.loaded() == "measure func=FILE_CHECK uid=8 \n");
}

TEST_CASE("a rule without a newline is a rule, and no more bytes are taken than were offered") {
  Desk desk;
  CHECK(desk.write("measure uid=7") == 13);
  CHECK(desk.loaded() == "measure uid=7 \n");
}

TEST_CASE("a rule split over two writes is two lines, the second of them bad") {
  Desk desk;
  CHECK(desk.write("measure func=FILE_CHECK") == 23);
  CHECK(desk.write(" uid=12\n") == -EINVAL);
  CHECK(desk.loaded().empty());
}

TEST_CASE("a NUL ends the line and what follows it is left to the caller") {
  Desk desk;
  CHECK(desk.write(std::string_view("measure uid=13\0 nonsense\n", 25)) == 15);
  CHECK(desk.loaded() == "measure uid=13 \n");
}

TEST_CASE("after a bad rule good ones still succeed and none of them is loaded") {
  Desk desk;
  CHECK(desk.write("measure uid=2\n") == 14);
  CHECK(desk.write("nonsense\n") == -EINVAL);
  CHECK(desk.write("measure uid=3\n") == 14);
  CHECK(desk.writer.is_lost());
  CHECK(desk.loaded().empty());
  REQUIRE(desk.refusals.size() == 1);
  CHECK(desk.refusals[0].find(".ima/policy:2:1: ") == 0);
}

TEST_CASE("comments and blank lines are consumed and give no rule") {
  Desk desk;
  for (const std::string_view line : {"# c\n", "\n", "   # indented\n", "   \n"}) {
    CHECK(desk.write(line) == static_cast<long>(line.size()));
  }
  CHECK_FALSE(desk.writer.is_lost());
  CHECK(desk.loaded().empty());
}

TEST_CASE("a line of 4,095 bytes is taken and one of 4,096 is refused") {
  Desk desk;
  CHECK(desk.write("measure uid=1" + std::string(4095 - 13, ' ') + "\n") == 4096);
  CHECK_FALSE(desk.writer.is_lost());
  CHECK(desk.write("measure uid=1" + std::string(4096 - 13, ' ') + "\n") == -EINVAL);
  CHECK(desk.writer.is_lost());
}

TEST_CASE("an odd offset is refused and loses the update") {
  Desk desk;
  CHECK(desk.writer.write(10, "measure uid=1\n").error().code == EINVAL);
  CHECK(desk.write("measure uid=2\n") == 14);
  CHECK(desk.loaded().empty());
}

TEST_CASE("an offset where an earlier write ended is good, also after a write at the beginning") {
  Desk desk;
  CHECK(desk.writer.write(0, "measure uid=1\n"));
  CHECK(desk.writer.write(14, "measure uid=2\n"));
  CHECK(desk.writer.write(0, "measure uid=3\n"));
  CHECK(desk.writer.write(28, "measure uid=4\n"));
  CHECK(desk.loaded() == "measure uid=1 \nmeasure uid=2 \nmeasure uid=3 \nmeasure uid=4 \n");
}

TEST_CASE("with O_APPEND every offset is good") {
  Desk desk;
  CHECK(desk.writer.write(1234, "measure uid=1\n", Position::kAppending));
  CHECK(desk.loaded() == "measure uid=1 \n");
}

TEST_CASE("a policy arrives whole whatever the size of the writer's buffer") {
  std::string text, expected;
  for (int uid = 0; uid < 6000; ++uid) {
    const std::string rule = "measure func=FILE_CHECK uid=" + std::to_string(uid);
    text += rule + "\n";
    expected += rule + " \n";
  }
  for (const std::size_t buffer :
       {std::size_t{1}, std::size_t{512}, std::size_t{4096}, std::size_t{131072}, text.size()}) {
    INFO("buffer of " << buffer);
    Desk desk;
    CHECK(desk.write_all(text, buffer));
    CHECK(desk.loaded() == expected);
  }
}

TEST_CASE("the last line of a policy written byte by byte needs no newline") {
  Desk desk;
  CHECK(desk.write_all(kTwoRules.substr(0, kTwoRules.size() - 1), 1));
  CHECK(desk.loaded() == kTwoRulesBack);
}

TEST_CASE(
    "a bad last line without a newline that was kept for later loses the update at the close") {
  Desk desk;
  CHECK(desk.write_all("measure uid=1\nnonsense", 1));
  CHECK(desk.loaded().empty());
  CHECK(desk.writer.is_lost());
  CHECK(desk.refusals.size() == 1);
}

TEST_CASE("a line longer than 4,095 bytes is refused also when it comes byte by byte") {
  Desk desk;
  CHECK_FALSE(desk.write_all(std::string(5000, '#') + "\n", 1));
}

TEST_CASE("rules written after a close are a further batch of the same update") {
  Desk desk;
  CHECK(desk.write("measure uid=1\n") == 14);
  CHECK(desk.loaded() == "measure uid=1 \n");
  CHECK(desk.writer.write(14, "measure uid=2\n"));
  CHECK(desk.loaded() == "measure uid=2 \n");
}

TEST_CASE("a path loads the rules of its file, with and without a newline behind it") {
  Desk desk;
  desk.files["/pol"] = "# two\n" + kTwoRules;
  CHECK(desk.write("/pol") == 4);
  CHECK(desk.write("/pol\n") == 5);
  CHECK(desk.write("measure uid=40\n") == 15);
  CHECK(desk.loaded() == kTwoRulesBack + kTwoRulesBack + "measure uid=40 \n");
}

TEST_CASE("lines behind a path in the same write are swallowed unread") {
  Desk desk;
  desk.files["/pol"] = kTwoRules;
  CHECK(desk.write("/pol\nnonsense\n") == 14);
  CHECK(desk.loaded() == kTwoRulesBack);
}

TEST_CASE("a path written byte by byte is a path") {
  Desk desk;
  desk.files["/pol"] = kTwoRules;
  CHECK(desk.write_all("/pol\n", 1));
  CHECK(desk.loaded() == kTwoRulesBack);
}

TEST_CASE("a policy file must be there, regular, good in each line, and end in a newline") {
  const std::map<std::string, int> errors = {{"/missing", ENOENT},    {"/directory", EINVAL},
                                             {"/empty", EINVAL},      {"/bad", EINVAL},
                                             {"/no-newline", EINVAL}, {"/nul", EINVAL}};
  for (const auto& [path, code] : errors) {
    INFO(path);
    Desk desk;
    desk.files["/empty"] = "";
    desk.files["/bad"] = "measure uid=1\nnonsense\n";
    desk.files["/no-newline"] = "measure uid=1\nmeasure uid=2";
    desk.files["/nul"] = std::string("measure uid=1\0\n", 15);
    CHECK(desk.write(path + "\n") == -code);
    CHECK(desk.writer.is_lost());
    CHECK(desk.refusals.size() == 1);
  }
}

TEST_CASE("a refused line of a policy file is named with its file and line") {
  Desk desk;
  desk.files["/bad"] = "measure uid=1\nnonsense\n";
  CHECK(desk.write("/bad") == -EINVAL);
  REQUIRE(desk.refusals.size() == 1);
  CHECK(desk.refusals[0].find("/bad:2:1: ") == 0);
}

TEST_CASE("an indented or relative path is a bad rule") {
  Desk desk;
  desk.files["/pol"] = kTwoRules;
  CHECK(desk.write(" /pol\n") == -EINVAL);
  CHECK(desk.write("pol\n") == -EINVAL);
}

TEST_CASE("once signed policies are asked for neither rules nor unchecked files are taken") {
  Desk desk;
  Rule rule;
  rule.action = Action::kAppraise;
  rule.hook = Hook::kPolicyCheck;
  desk.active->rules.push_back(rule);
  desk.files["/pol"] = kTwoRules;
  CHECK(desk.write("measure uid=77\n") == -EACCES);
  CHECK(desk.write("/pol\n") == -EACCES);
  CHECK(desk.records == std::vector<std::string>{"policy_update signed policy required"});
}

// The texts on the right are the kernel's own audit records.
TEST_CASE("each rule is reported in the kernel's words") {
  Desk desk;
  desk.write("measure func=FILE_CHECK mask=MAY_READ uid=1\n");
  desk.write("# comment\n");
  desk.write("nonsense\n");
  desk.write("measure unknown=1 uid=0\n");
  desk.write("measure uid= 0\n");
  desk.write("measure func=FILE_CHECK func=BPRM_CHECK uid=0\n");
  desk.write("measure uid=0 permit_directio\n");
  desk.write("measure func=KEXEC_CMDLINE mask=MAY_READ\n");
  desk.write("measure dont_measure uid=0\n");
  CHECK(desk.records == std::vector<std::string>{
                            "action=measure func=FILE_CHECK mask=MAY_READ uid=1 res=1",
                            "UNKNOWN=nonsense res=0",
                            "update_policy invalid-policy",
                            "action=measure UNKNOWN=unknown=1 res=0",
                            "update_policy invalid-policy",
                            "action=measure UNKNOWN=uid= res=0",
                            "update_policy invalid-policy",
                            "action=measure func=FILE_CHECK func=BPRM_CHECK res=0",
                            "update_policy invalid-policy",
                            "action=measure uid=0 res=1",
                            "action=measure func=KEXEC_CMDLINE mask=MAY_READ res=0",
                            "update_policy invalid-policy",
                            "action=measure action=dont_measure res=0",
                            "update_policy invalid-policy",
                        });
}

// Lines of pairs: a rule, and the kernel's record of it. Left out is what a later kernel knows and
// that one did not (dont_audit, fs_subtype=, sigv3 for files, comments behind a rule).
TEST_CASE("the record of a rule is the kernel's, to the token where it stops") {
  std::ifstream pairs(IMAFS_TEST_DATA "/rule_records.txt");
  REQUIRE(pairs);
  int compared = 0;
  for (std::string rule, record; std::getline(pairs, rule) && std::getline(pairs, record);
       ++compared) {
    ParseContext context;
    context.builtin_policy_active = false;
    const auto parsed = parse_rule(rule, context);
    INFO(rule);
    CHECK(rule_record_text(rule, parsed ? nullptr : &parsed.error()) == record);
  }
  CHECK(compared > 200);
}

TEST_CASE("a record of a rule is one line whatever the rule holds") {
  const std::string text = rule_record_text("measure uid=6\r x\x1b[2J", nullptr);
  CHECK(text.find_first_of("\r\n\x1b") == std::string::npos);
}

}  // namespace
}  // namespace imafs
