#include "imafs/entry_view.h"

#include <algorithm>

namespace imafs {
namespace {

// "sha256:" NUL digest, or "ima:sha256:" NUL digest.
void take_digest(EntryView& view, ByteView value) {
  const auto colon = std::find(value.begin(), value.end(), std::uint8_t{0});
  std::string_view head = as_text(value.first(static_cast<std::size_t>(colon - value.begin())));
  if (head.size() + 1 > value.size()) return;
  view.digest.assign(colon + 1, value.end());
  if (!head.empty()) head.remove_suffix(1);
  const std::size_t prefix = head.find(':');
  view.is_verity = prefix != std::string_view::npos && head.substr(0, prefix) == "verity";
  view.algorithm = prefix == std::string_view::npos ? head : head.substr(prefix + 1);
}

}  // namespace

EntryView view_of(const LogEntry& entry) {
  EntryView view;
  for (std::size_t i = 0; i < entry.fields.size(); ++i) {
    const Bytes& value = entry.values[i];
    switch (entry.fields[i]) {
      case FieldId::kN:
      case FieldId::kNNg: view.name = std::string(value.begin(), std::find(value.begin(), value.end(), std::uint8_t{0})); break;
      case FieldId::kDNg:
      case FieldId::kDNgV2: take_digest(view, value); break;
      case FieldId::kD:
        if (!view.digest.empty()) break;
        view.digest = value;
        view.algorithm = value.size() == digest_size(HashAlgorithm::kMd5) ? "md5" : "sha1";
        break;
      case FieldId::kSig: view.signature = value; break;
      case FieldId::kBuf: view.data = value; break;
      default: break;
    }
  }
  return view;
}

}  // namespace imafs
