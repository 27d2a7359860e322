// Any text is the status of a mount, a line of mountinfo, a TCTI string, or an error; what is believed is what imafs writes.
#include <cstdlib>
#include <string_view>

#include "imafs/mount_info.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto info = imafs::parse_mount_status(text)) {
    if (!info->state.starts_with('/') || info->pcr >= 24) std::abort();
    const auto tcti = imafs::tcti_of(*info, "");
    if (tcti && !imafs::is_plain_tcti(*tcti)) std::abort();
  }
  if (imafs::is_plain_tcti(text) && !text.starts_with("swtpm:") && !text.starts_with("device:/")) std::abort();
  if (imafs::is_imafs_mount(text, 1000) && text.find(" - fuse.imafs ") == std::string_view::npos) {
    // Blanks of any number part the fields.
    if (text.find("fuse.imafs") == std::string_view::npos || text.find("user_id=") == std::string_view::npos) std::abort();
  }
  return 0;
}
