// Any text is a manifest or an error, and any name can be asked for: nothing throws, nothing recurses.
#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>

#include "imafs/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto manifest = imafs::parse_manifest(text, "manifest");
  if (!manifest) {
    if (manifest.error().what.empty()) std::abort();
    return 0;
  }
  for (const auto& [name, digests] : manifest->digests) {
    const auto answer = manifest->ask(name, digests.front());
    if (answer != imafs::Manifest::Answer::kAllowed && answer != imafs::Manifest::Answer::kExcluded) std::abort();
  }
  const std::string long_name = "/tmp/" + std::string(20'000, 'a');
  (void)manifest->ask(long_name, {});
  (void)manifest->ask(std::string(text), {});
  return 0;
}
