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
  std::string directory;  // made; gets quote.msg, quote.sig, ak.pem, pcrs, pcrs.bin, log, about.json
  std::uint32_t ak_handle = 0;
  std::string bank = "sha256";
};
// kTpm: the TPM says no.
ExitCode run_quote(const QuoteOptions& options);

struct VerifyQuoteOptions {
  std::string directory;
  std::optional<std::string> nonce;  // what it must be; nothing: not checked, and said so
  std::string ak;        // the key it must be from (PEM); empty: the one beside the quote
  std::string manifest;  // what every file must be in; empty: not checked
  bool json = false;
};
// kOk: every check holds. kMismatch: one does not. kUsage: something could not be read.
ExitCode run_verify_quote(const VerifyQuoteOptions& options);

struct ManifestOptions {
  std::string directory;
  std::string output;  // empty: stdout
  std::string format = "sha256sum";
  std::string hash = "sha256";
  std::string path_prefix;
  std::vector<std::string> excludes;  // regular expressions, for names as logged
  bool one_file_system = false;
  bool relative = false;  // paths as seen from the directory, for `cd DIR && sha256sum -c`
};
ExitCode run_manifest(const ManifestOptions& options);

}  // namespace imafs
