#include "imafs/bytes.h"

#include <catch2/catch_test_macros.hpp>

using namespace imafs;

TEST_CASE("integers come back as they were appended, in their order") {
  Bytes bytes;
  append_le16(bytes, 0x1234);
  append_le32(bytes, 0x89abcdef);
  append_le64(bytes, 0x0123456789abcdef);
  append_be32(bytes, 0x89abcdef);
  CHECK(to_hex(bytes) == "3412" "efcdab89" "efcdab8967452301" "89abcdef");
  CHECK(load_le16(bytes) == 0x1234);
  CHECK(load_le32(ByteView(bytes).subspan(2)) == 0x89abcdef);
  CHECK(load_le64(ByteView(bytes).subspan(6)) == 0x0123456789abcdef);
  CHECK(load_be32(ByteView(bytes).subspan(14)) == 0x89abcdef);
}

TEST_CASE("hexadecimal: either case is read, lower case is written, halves and strangers are refused") {
  CHECK(from_hex("00ffAbcD") == Bytes{0x00, 0xff, 0xab, 0xcd});
  CHECK(from_hex("") == Bytes{});
  for (const char* text : {"0", "0g", "0x00", " 00", "00\n"}) CHECK_FALSE(from_hex(text));
  CHECK(to_hex(Bytes{0x00, 0xff, 0xab}) == "00ffab");
}

// RFC 4648, section 10.
TEST_CASE("base64 is the RFC's") {
  CHECK(to_base64(as_bytes("")) == "");
  CHECK(to_base64(as_bytes("f")) == "Zg==");
  CHECK(to_base64(as_bytes("fo")) == "Zm8=");
  CHECK(to_base64(as_bytes("foo")) == "Zm9v");
  CHECK(to_base64(as_bytes("foobar")) == "Zm9vYmFy");
}
