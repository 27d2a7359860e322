// Any bytes are a log or an error; what decodes encodes to the same bytes.
#include <algorithm>
#include <cstdlib>

#include "imafs/log_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const imafs::ByteView log(data, size);
  (void)imafs::guess_digest_size(log);
  for (const std::size_t digest : {20, 32}) {
    const auto records = imafs::decode_log(log, digest);
    if (!records) continue;
    imafs::Bytes again;
    std::string text;
    for (const imafs::DecodedRecord& record : *records) {
      imafs::append_binary(again, record.entry, record.template_digest);
      imafs::append_ascii(text, record.entry, record.template_digest);
      (void)imafs::template_data(record.entry);
    }
    if (!std::ranges::equal(again, log)) std::abort();
  }
  if (imafs::is_kexec_blob(log)) (void)imafs::decode_kexec_blob(log);
  return 0;
}
