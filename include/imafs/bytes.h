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

// '?' for each control byte that is not in `kept`: what others have named shall not draw on a terminal, nor end a line.
std::string printable(std::string_view text, std::string_view kept = {});
void append_hex(std::string& out, ByteView bytes);
// Either case; nothing for an odd length or a character that is no hex digit.
std::optional<Bytes> from_hex(std::string_view text);

}  // namespace imafs
