// `imafs quote`, `imafs verify --quote` and `imafs manifest`: evidence for another machine, and the judgement there.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "imafs/exit_code.h"

namespace imafs {

struct QuoteOptions {
  std::string mountpoint;
  std::string nonce;      // hexadecimal
  std::string directory;  // made; gets quote.msg, quote.sig, ak.pem, ak.pub, pcrs, pcrs.bin, log, about.json
  std::uint32_t ak_handle = 0;
  std::string bank;       // empty: that of boot_aggregate if the TPM has it and it is not sha1, else the first of sha256, sha384, sha512, sha1
  std::string tcti;       // of the mount's TPM, where the mount's own string may not be opened unasked
};
// kTpm: the TPM says no. kUsage: also for a key that is no attestation key.
ExitCode run_quote(const QuoteOptions& options);

struct AkOptions {
  std::string mountpoint;
  std::uint32_t ak_handle = 0;
  std::string output;  // the TPM2B_PUBLIC goes to this file, if there is one; name and PEM to stdout
  std::string tcti;
};
// The key that run_quote() signs with, for a verifier to keep.
ExitCode run_ak(const AkOptions& options);

struct VerifyQuoteOptions {
  std::string directory;
  std::optional<std::string> nonce;  // what it must be
  std::string ak;         // the key it must be from: a file that run_ak() wrote, or a PEM
  std::string manifest;   // what every file must be in; empty: not compared
  std::string base;       // where an earlier verification ended; empty: the PCRs begin as a reset leaves them
  std::string save_base;  // where to keep where this one ends, if it is verified
  std::vector<std::uint32_t> pcrs;  // that the log must be about; empty: 10
  bool allow_sha1 = false;
  bool json = false;
};
// kOk: every point holds. kMismatch: one does not. kUsage: incomplete, or something could not be read.
ExitCode run_verify_quote(const VerifyQuoteOptions& options);

struct ManifestOptions {
  std::string directory;
  std::string output;  // empty: stdout
  std::string format = "sha256sum";
  std::string hash = "sha256";
  std::string path_prefix;
  std::vector<std::string> excludes;  // regular expressions, for names as logged
  bool one_file_system = false;
  std::string own_entries;  // a mount whose own entries go into a Keylime policy; empty: `directory`, if it is one
  bool relative = false;  // paths as seen from the directory, for `cd DIR && sha256sum -c`
};
ExitCode run_manifest(const ManifestOptions& options);

}  // namespace imafs
