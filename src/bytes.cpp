#include "imafs/bytes.h"

#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <string_view>

namespace imafs {
namespace {

template <int kWidth, class T>
void append_le(Bytes& out, T value) {
  for (int i = 0; i < kWidth; ++i) out.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
}

template <class T>
T load_le(ByteView bytes) {
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) value = static_cast<T>(value | static_cast<T>(bytes[i]) << (8 * i));
  return value;
}

// The two digits of each byte.
constexpr auto kHexOfByte = [] {
  constexpr std::string_view digits = "0123456789abcdef";
  std::array<std::array<char, 2>, 256> table{};
  for (std::size_t byte = 0; byte < table.size(); ++byte) table[byte] = {digits[byte >> 4], digits[byte & 15]};
  return table;
}();

int digit_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// Characters that change the direction of the text around them.
bool turns_text(std::string_view sequence) {
  return sequence == "\u061c" || sequence == "\u200e" || sequence == "\u200f" || (sequence >= "\u202a" && sequence <= "\u202e") ||
         (sequence >= "\u2066" && sequence <= "\u2069");
}

}  // namespace

void append_le16(Bytes& out, std::uint16_t value) { append_le<2>(out, value); }
void append_le32(Bytes& out, std::uint32_t value) { append_le<4>(out, value); }
void append_le64(Bytes& out, std::uint64_t value) { append_le<8>(out, value); }

void append_be32(Bytes& out, std::uint32_t value) {
  for (int i = 3; i >= 0; --i) out.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
}

std::uint16_t load_le16(ByteView bytes) { return load_le<std::uint16_t>(bytes); }
std::uint32_t load_le32(ByteView bytes) { return load_le<std::uint32_t>(bytes); }
std::uint64_t load_le64(ByteView bytes) { return load_le<std::uint64_t>(bytes); }

std::uint32_t load_be32(ByteView bytes) {
  return std::uint32_t{bytes[0]} << 24 | std::uint32_t{bytes[1]} << 16 | std::uint32_t{bytes[2]} << 8 | bytes[3];
}

void append_hex(std::string& out, ByteView bytes) {
  const std::size_t at = out.size();
  out.resize(at + 2 * bytes.size());
  char* to = out.data() + at;
  for (const std::uint8_t byte : bytes) to = std::copy_n(kHexOfByte[byte].begin(), 2, to);
}

std::string to_hex(ByteView bytes) {
  std::string out;
  append_hex(out, bytes);
  return out;
}

std::optional<Bytes> from_hex(std::string_view text) {
  if (text.size() % 2 != 0) return std::nullopt;
  Bytes out;
  out.reserve(text.size() / 2);
  for (std::size_t i = 0; i < text.size(); i += 2) {
    const int high = digit_value(text[i]);
    const int low = digit_value(text[i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    out.push_back(static_cast<std::uint8_t>(high << 4 | low));
  }
  return out;
}

std::size_t utf8_sequence(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t first = byte(0);
  if (first < 0x80) return 1;
  const std::size_t size = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < size) return 0;
  for (std::size_t i = 1; i < size; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const std::uint8_t second = byte(1);
  // Overlong forms, surrogates, and what lies beyond U+10FFFF.
  if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f)) return 0;
  if ((first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f)) return 0;
  return size;
}

bool is_control(std::string_view sequence) {
  const auto first = static_cast<std::uint8_t>(sequence[0]);
  if (sequence.size() == 1) return first < 0x20 || first == 0x7f;
  if (sequence.size() == 2) return first == 0xc2 && static_cast<std::uint8_t>(sequence[1]) < 0xa0;
  return sequence == "\u2028" || sequence == "\u2029";
}

std::string printable(std::string_view text, std::string_view kept) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const std::size_t size = utf8_sequence(text);
    const std::string_view sequence = text.substr(0, std::max<std::size_t>(1, size));
    text.remove_prefix(sequence.size());
    const bool is_kept = sequence.size() == 1 && kept.find(sequence[0]) != std::string_view::npos;
    if (is_kept || (size != 0 && !is_control(sequence) && !turns_text(sequence))) {
      out.append(sequence);
    } else {
      out += '?';
    }
  }
  return out;
}

std::string to_base64(ByteView bytes) {
  std::string text((bytes.size() + 2) / 3 * 4 + 1, '\0');
  const int size = ::EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()), bytes.data(), static_cast<int>(bytes.size()));
  text.resize(static_cast<std::size_t>(size));
  return text;
}

}  // namespace imafs
