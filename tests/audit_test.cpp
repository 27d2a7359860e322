#include "imafs/audit.h"

#include <catch2/catch_test_macros.hpp>

using namespace imafs;

TEST_CASE("a record has the kernel's words in the kernel's order") {
  AuditRecord record;
  record.pid = 7;
  record.uid = 1000;
  record.op = "invalid_pcr";
  record.cause = "ToMToU";
  record.comm = "cat";
  record.name = "/etc/passwd";
  record.device = "vda1";
  record.inode = 12;
  CHECK(to_text(record) ==
        "integrity: pid=7 uid=1000 auid=4294967295 ses=4294967295 op=invalid_pcr cause=ToMToU comm=\"cat\" name=\"/etc/passwd\" dev=\"vda1\" ino=12 res=1 errno=0");
  record.name.reset();
  record.device.clear();
  record.succeeded = false;
  record.errno_value = -5;
  CHECK(to_text(record) ==
        "integrity: pid=7 uid=1000 auid=4294967295 ses=4294967295 op=invalid_pcr cause=ToMToU comm=\"cat\" res=0 errno=-5");
}

TEST_CASE("text that somebody else chose cannot forge a record") {
  AuditRecord record;
  for (const char* name : {"a b", "a\"b", "a\nintegrity: op=x", "\x7f", "\xc3\xa4"}) {
    record.name = name;
    const std::string text = to_text(record);
    const std::size_t at = text.find(" name=") + 6;
    CHECK(text.substr(at, text.find(' ', at) - at).find_first_not_of("0123456789ABCDEF") == std::string::npos);
    CHECK(text.find('\n') == std::string::npos);
  }
  record.name = "a b";
  CHECK(to_text(record).find(" name=612062 ") != std::string::npos);
}

TEST_CASE("rules are printed as they are") {
  AuditRecord record;
  record.type = AuditRecord::Type::kPolicyRule;
  record.text = "action=measure func=FILE_CHECK res=1";
  CHECK(to_text(record) == "integrity: action=measure func=FILE_CHECK res=1");
}
