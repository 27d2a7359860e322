// Byte strings, and the fixed-width integers inside them. All integers are unsigned;
// "le" is little-endian, "be" big-endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace imafs {

using Bytes = std::vector<std::uint8_t>;
using ByteView = std::span<const std::uint8_t>;

inline ByteView as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}
inline std::string_view as_text(ByteView bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline void append(Bytes& out, ByteView bytes) { out.insert(out.end(), bytes.begin(), bytes.end()); }

void append_le16(Bytes& out, std::uint16_t value);
void append_le32(Bytes& out, std::uint32_t value);
void append_le64(Bytes& out, std::uint64_t value);
void append_be32(Bytes& out, std::uint32_t value);

// REQUIRES: bytes holds at least the width of the integer.
std::uint16_t load_le16(ByteView bytes);
std::uint32_t load_le32(ByteView bytes);
std::uint64_t load_le64(ByteView bytes);
std::uint32_t load_be32(ByteView bytes);

// Lower-case hexadecimal, two digits a byte.
std::string to_hex(ByteView bytes);
std::string to_base64(ByteView bytes);

// The length of the well-formed UTF-8 sequence at the start of `text`, 1 to 4; 0: there is none. REQUIRES: text is not empty
std::size_t utf8_sequence(std::string_view text);
// Whether a well-formed sequence is a control character or ends a line for some reader: U+0000 to U+001F, U+007F to
// U+009F, U+2028, U+2029.
bool is_control(std::string_view sequence);
// '?' for each control character that is not in `kept`, for each one that changes the direction of the text around it
// (U+202A to U+202E, U+2066 to U+2069, the marks U+061C, U+200E, U+200F), and for each byte that is no UTF-8: what others
// have named neither draws on a terminal nor ends a line. The result is well-formed UTF-8.
std::string printable(std::string_view text, std::string_view kept = {});
void append_hex(std::string& out, ByteView bytes);
// Either case; nothing for an odd length or a character that is no hex digit.
std::optional<Bytes> from_hex(std::string_view text);

}  // namespace imafs
