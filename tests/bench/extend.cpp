// extend COUNT: seconds that one TPM2_PCR_Extend of a swtpm takes, by the extender that imafs uses.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "imafs/swtpm_process.h"
#include "imafs/tpm_connection.h"

int main(int, char** words) {
  const long count = std::atol(words[1]);
  char directory[] = "/tmp/imafs-extend-XXXXXX";
  if (!::mkdtemp(directory)) return 1;
  auto swtpm = imafs::SwtpmProcess::find_or_start(directory);
  auto tpm = swtpm ? imafs::open_pcr_extender((*swtpm)->tcti()) : tl::unexpected(swtpm.error());
  if (!tpm) {
    std::fprintf(stderr, "%s\n", tpm.error().what.c_str());
    return 1;
  }
  imafs::BankValues values;
  for (const imafs::Bank& bank : (*tpm)->banks()) values.emplace_back(bank.size, 1);
  const auto start = std::chrono::steady_clock::now();
  for (long i = 0; i < count; ++i) {
    if (!(*tpm)->extend(10, values)) return 1;
  }
  std::printf("%.9f\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / static_cast<double>(count));
  (*swtpm)->stop();
  std::filesystem::remove_all(directory);
}
