#include <catch2/catch_test_macros.hpp>
#include <random>

#include "imafs/policy_matcher.h"
#include "imafs/policy_parser.h"
#include "imafs/posix_file.h"

namespace imafs {
namespace {

Policy policy_of(std::string_view text) {
  ParseContext context;
  context.origin = "test";
  auto rules = parse_policy(text, context);
  REQUIRE(rules);
  Policy policy;
  policy.rules = std::move(*rules);
  return policy;
}

PolicyError error_of(std::string_view text) {
  ParseContext context;
  context.origin = "my.policy";
  auto rules = parse_policy(text, context);
  REQUIRE_FALSE(rules);
  return rules.error();
}

class File final : public EventSource {
 public:
  std::optional<Credentials> credentials() override { return ids; }
  std::string_view path() override { return name; }
  const FileSystem& file_system() override { return system; }
  std::optional<Credentials> ids = Credentials{};
  std::string name = "/usr/bin/env";
  std::string object_label() override { return object; }
  std::string subject_label() override { return subject; }
  std::string object, subject;
  FileSystem system{0xef53, "ext4", "", std::nullopt};
};

}  // namespace

TEST_CASE("an error names file, line and column, points at the word and says what would be valid") {
  const PolicyError error = error_of("# fine\nmeasure func=FILE_CHEK\n");
  CHECK(error.to_text() ==
        "my.policy:2:14: 'FILE_CHEK' is no value of 'func'\n"
        "  measure func=FILE_CHEK\n"
        "               ^\n"
        "  hooks: FILE_CHECK MMAP_CHECK MMAP_CHECK_REQPROT BPRM_CHECK CREDS_CHECK MODULE_CHECK FIRMWARE_CHECK "
        "KEXEC_KERNEL_CHECK KEXEC_INITRAMFS_CHECK POLICY_CHECK KEXEC_CMDLINE KEY_CHECK CRITICAL_DATA SETXATTR_CHECK\n");
  CHECK(error_of("measure uid>=5").message == "'=5' is no value of 'uid'");
  CHECK(error_of("measure fsmagic=0x123456789abcdef01").code == ERANGE);
  CHECK(error_of("func=FILE_CHECK").message == "no action");
  CHECK(error_of("measure audit").message == "a second action");
  CHECK(error_of("measure " + std::string(5000, 'x')).column == 4096);
}

TEST_CASE("numbers are read as the kernel reads them") {
  CHECK(error_of("measure uid=99999999999999999999x").code == ERANGE);
  CHECK(error_of("measure uid=4294967296").code == EINVAL);
  CHECK(error_of("measure fsmagic=0x123456789abcdef01g").code == ERANGE);
  CHECK(error_of("measure pcr=99999999999999999999").code == EINVAL);
  CHECK(error_of("measure pcr=-1").code == EINVAL);
  CHECK(error_of("measure uid=-0").code == EINVAL);
  CHECK(to_text(policy_of("measure pcr=-0\n")) == "measure pcr=0 \n");
  CHECK(to_text(policy_of("measure uid=+7 fsmagic=+0X1F\n")) == "measure fsmagic=0x1f uid=7 \n");
}

TEST_CASE("what counts as given twice, and what does not go together") {
  const std::string none = "fsuuid=00000000-0000-0000-0000-000000000000", some = "fsuuid=11111111-2222-3333-4444-555555555555";
  CHECK(to_text(policy_of("measure " + none + " " + some + "\n")) == "measure " + some + " \n");
  CHECK(error_of("measure " + some + " " + none).message == "'fsuuid' is given twice");
  CHECK(to_text(policy_of("measure fsmagic=0 fsmagic=1\n")) == "measure fsmagic=0x1 \n");
  CHECK(error_of("appraise appraise_type=imasig|modsig appraise_type=sigv3").message == "an appended signature does not go with sigv3");
  CHECK(error_of("appraise appraise_type=sigv3 appraise_type=imasig|modsig").message == "an appended signature does not go with sigv3");
}

TEST_CASE("the default policy in the program is conf/default.policy, line by line") {
  const auto text = read_file(IMAFS_SOURCE "/conf/default.policy", 1 << 20);
  REQUIRE(text);
  const Policy file = policy_of(*text);
  const auto built_in = builtin_policy("default");
  REQUIRE(built_in);
  CHECK(to_text(*built_in) == to_text(file));
  REQUIRE(built_in->rules.size() == file.rules.size());
  for (std::size_t i = 0; i < file.rules.size(); ++i) {
    CHECK(built_in->rules[i].line == file.rules[i].line);
    CHECK(built_in->rules[i].origin == "builtin:default");
  }
  // What is loaded later adds to it: the rules that measure everything are not lost to one line of an administrator.
  CHECK_FALSE(built_in->is_builtin);
  CHECK(builtin_policy("tcb")->is_builtin);
  CHECK(builtin_policy("default+critical_data")->rules.size() == file.rules.size() + 1);
  CHECK_FALSE(builtin_policy("critical_data+default")->is_builtin);
}

TEST_CASE("the default policy parses, prints in normal form, and measures what it says") {
  const auto text = read_file(IMAFS_SOURCE "/conf/default.policy", 1 << 20);
  REQUIRE(text);
  const Policy policy = policy_of(*text);
  CHECK(to_text(policy) ==
        "measure func=BPRM_CHECK mask=MAY_EXEC \n"
        "measure func=MMAP_CHECK mask=MAY_EXEC \n"
        "measure func=FILE_CHECK mask=^MAY_READ \n"
        "measure func=CRITICAL_DATA label=imafs \n");
  File file;
  Event event;
  event.source = &file;
  event.mask = kMayRead | kMayWrite;
  CHECK(match(policy, event).must_measure());
  event.mask = kMayWrite;
  CHECK_FALSE(match(policy, event).must_measure());
}

TEST_CASE("globs: one star and the question mark stop at a slash, two stars do not") {
  CHECK(glob_matches("/usr/**", "/usr/bin/env"));
  CHECK(glob_matches("/usr/*/env", "/usr/bin/env"));
  CHECK_FALSE(glob_matches("/usr/*", "/usr/bin/env"));
  CHECK_FALSE(glob_matches("/usr/**", "/usr"));
  CHECK(glob_matches("/**/*.so", "/a/b/c.so"));
  CHECK(glob_matches("/a?c", "/abc"));
  CHECK_FALSE(glob_matches("/a?c", "/a/c"));
  CHECK(glob_matches("/etc/*.conf", "/etc/x.conf"));
  CHECK_FALSE(glob_matches("/etc/*.conf", "/etc/x.conf.old"));
  CHECK(glob_matches("/**b**c", "/xxbyy/zzc"));
}

TEST_CASE("the first matching rule of a class decides it") {
  const Policy policy = policy_of(
      "dont_measure path=/var/** path=/tmp/*\n"
      "audit uid=5\n"
      "measure func=FILE_CHECK mask=MAY_READ pcr=11\n"
      "measure\n");
  File file;
  Event event;
  event.source = &file;
  event.mask = kMayRead;
  CHECK(match(policy, event).measure->pcr == 11);
  event.uid = 5;
  CHECK(match(policy, event).audit != nullptr);
  file.name = "/tmp/x";
  CHECK_FALSE(match(policy, event).must_measure());
  file.name = "/tmp/x/y";
  CHECK(match(policy, event).must_measure());
}

TEST_CASE("an appraise rule takes back a hash rule before it, and no later one comes in its place") {
  const Policy policy = policy_of("hash uid=0\nappraise fowner=0\nhash fowner=0\n");
  File file;
  Event event;
  event.source = &file;
  event.mask = kMayRead;
  CHECK(match(policy, event).appraise == &policy.rules[1]);
  CHECK(match(policy, event).hash == nullptr);
  event.uid = 1;
  CHECK(match(policy, event).hash == &policy.rules[2]);
}

TEST_CASE("effective ids look at saved and real ones only with the capability") {
  const Policy policy = policy_of("measure euid=7");
  File file;
  Event event;
  event.source = &file;
  file.ids->suid = 7;
  CHECK_FALSE(match(policy, event).must_measure());
  file.ids->can_setuid = true;
  CHECK(match(policy, event).must_measure());
  file.ids.reset();  // the requester is gone: measured, to be on the safe side
  CHECK(match(policy, event).must_measure());
  CHECK_FALSE(match(policy_of("dont_measure euid=7\n"), event).measure);
}

TEST_CASE("with SELinux, conditions on labels are looked at and printed; without it they are refused or never match") {
  const std::string line = "dont_measure obj_type=var_log_t\n";
  CHECK(error_of(line).message == "no LSM knows the label 'var_log_t'");
  ParseContext context;
  context.builtin_policy_active = false;
  Policy deaf;
  deaf.rules = *parse_policy(line + "measure\n", context);
  CHECK(to_text(deaf) == "measure \n");

  context.builtin_policy_active = true;
  context.labels_known = true;
  Policy policy;
  policy.rules = *parse_policy("measure subj_role=staff_r template=ima-sig obj_user=user_u pcr=11\n" + line + "measure subj_type=init_t\n", context);
  CHECK(to_text(policy) == "measure pcr=11 obj_user=user_u subj_role=staff_r template=ima-sig \n"
                           "dont_measure obj_type=var_log_t \nmeasure subj_type=init_t \n");
  CHECK_FALSE(parse_rule("measure obj_type=a_t obj_type=b_t", context));
  File file;
  Event event;
  event.source = &file;
  event.mask = kMayRead;
  file.object = "system_u:object_r:var_log_t:s0";
  file.subject = "system_u:system_r:init_t:s0-s15:c0.c1023";
  const CompiledPolicy compiled(policy);
  CHECK(compiled.match(event).measure == &compiled.policy().rules[1]);
  file.object = "system_u:object_r:etc_t:s0";
  CHECK(compiled.match(event).measure == &compiled.policy().rules[2]);
  file.object = "user_u:object_r:etc_t:s0";
  file.subject = "staff_u:staff_r:staff_t";
  CHECK(compiled.match(event).measure == &compiled.policy().rules[0]);
  file.object = "";
  CHECK(compiled.match(event).measure == nullptr);
  file.subject = "";  // gone: measured, to be on the safe side
  CHECK(compiled.match(event).measure == &compiled.policy().rules[2]);
  file.object = "system_u:object_r:var_log_t:s0";
  CHECK(match(deaf, event).measure == &deaf.rules[1]);
}

TEST_CASE("critical data and keys look at their list, never at rules without func") {
  const Policy policy = policy_of("measure\nmeasure func=CRITICAL_DATA label=a|b\n");
  Event event;
  event.hook = Hook::kCriticalData;
  event.label = "b";
  CHECK(match(policy, event).must_measure());
  event.label = "c";
  CHECK_FALSE(match(policy, event).must_measure());
}

TEST_CASE("a compiled policy decides as the plain one, for any event") {
  std::mt19937 random(1);
  const auto pick = [&](std::initializer_list<const char*> words) { return std::string(*(words.begin() + random() % words.size())); };
  for (int round = 0; round < 300; ++round) {
    std::string text;
    const unsigned size = random() % 4 == 0 ? 600 : 1 + static_cast<unsigned>(random() % 150);
    for (unsigned i = 0; i < size; ++i) {
      const bool measures = random() % 3 != 0;
      text += measures ? "measure " : pick({"dont_measure ", "audit ", "hash ", "dont_hash ", "appraise "});
      text += pick({"", "func=FILE_CHECK ", "func=MMAP_CHECK ", "func=BPRM_CHECK "});
      text += pick({"", "mask=MAY_READ ", "mask=^MAY_READ ", "mask=MAY_EXEC ", "mask=^MAY_WRITE "});
      for (const auto& keys : {std::initializer_list<const char*>{"uid", "euid"}, {"gid", "egid"}, {"fowner"}, {"fgroup"}}) {
        if (random() % 3 == 0) text += pick(keys) + pick({"=", "<", ">"}) + std::to_string(random() % 6) + " ";
      }
      text += pick({"", "", "", "fsmagic=0xef53 ", "fsmagic=0x9fa0 ", "fsname=ext4 ", "fsname=xfs ", "fs_subtype=sub "});
      text += pick({"", "", "", "fsuuid=01000000-0000-0000-0000-000000000000 ", "fsuuid=02000000-0000-0000-0000-000000000000 "});
      if (random() % 40 == 0) text += "\nmeasure func=CRITICAL_DATA label=" + pick({"a", "b"}) + pick({"", " uid=1", " uid>3"}) + "\ndont_audit ";
      text += pick({"", "", "path=/usr/** ", "path=/usr/bin/* path=/usr/lib/** ", "path=/?sr/** ", "path=/home/user/x "}) + "\n";
    }
    const CompiledPolicy compiled(policy_of(text));
    for (int i = 0; i < 50; ++i) {
      File file;
      file.name = pick({"/usr/bin/env", "/usr/lib/a/b", "/home/user/x", "/u", "/"});
      const auto id = [&] { return static_cast<std::uint32_t>(random() % 6); };
      file.ids = EventSource::Credentials{id(), id(), id(), id(), id(), id(), random() % 2 == 0, random() % 2 == 0};
      if (random() % 8 == 0) file.ids.reset();
      file.system.subtype = pick({"", "sub", "other"});
      if (random() % 2 == 0) file.system.uuid = std::array<std::uint8_t, 16>{static_cast<std::uint8_t>(random() % 3)};
      Event event;
      event.source = &file;
      event.hook = random() % 9 == 0 ? Hook::kCriticalData : static_cast<Hook>(1 + random() % 5);
      event.label = "b";
      event.mask = static_cast<unsigned>(random() % 16);
      event.uid = id();
      event.gid = id();
      event.fowner = id();
      event.fgroup = id();
      const Decision plain = match(compiled.policy(), event);
      const Decision fast = compiled.match(event);
      REQUIRE(plain.measure == fast.measure);
      REQUIRE(plain.appraise == fast.appraise);
      REQUIRE(plain.audit == fast.audit);
      REQUIRE(plain.hash == fast.hash);
    }
  }
}

TEST_CASE("the built-in policies are the kernel's, and unknown words are refused") {
  const auto tcb = builtin_policy("tcb+critical_data");
  REQUIRE(tcb);
  CHECK(tcb->rules.size() == 21);
  CHECK(tcb->is_builtin);
  CHECK(builtin_policy("none")->rules.empty());
  CHECK_FALSE(builtin_policy("tbc"));
}

}  // namespace imafs
