// Any bytes are an entry of a journal, a header of one, or an error; what decodes can be shown in every form, and encodes to the same.
#include <algorithm>
#include <cstdlib>

#include "log_header.h"
#include "log_index.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const imafs::ByteView payload(data, size);
  if (const auto header = imafs::parse_log_header(imafs::as_text(payload))) {
    const auto again = imafs::parse_log_header(imafs::to_text(*header));
    if (!again || imafs::to_text(*again) != imafs::to_text(*header)) std::abort();
  }
  const auto decoded = imafs::decode_journal_entry(payload);
  if (!decoded) return 0;
  const imafs::ViewSizes sizes = imafs::view_sizes_of(decoded->entry);
  (void)imafs::template_data(decoded->entry);
  (void)imafs::template_digests(decoded->entry, {imafs::Bank::of(imafs::HashAlgorithm::kSha256)});
  if (decoded->origin.comm.size() > 15) return 0;  // is cut when it is encoded
  const imafs::Bytes digests(decoded->digests.begin(), decoded->digests.end());
  const imafs::Bytes encoded = imafs::encode_journal_entry(decoded->entry, decoded->origin, {digests});
  const auto again = imafs::decode_journal_entry(encoded);
  if (!again || !(again->entry == decoded->entry) || again->sizes.ascii != sizes.ascii || again->sizes.binary != sizes.binary) std::abort();
  if (!std::ranges::equal(again->digests, digests)) std::abort();
  return 0;
}
