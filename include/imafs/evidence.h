// The judgement of evidence from another machine: a TPM's quote, and the log that has to explain it. Pure functions, thread-safe.
//
// The machine that is judged is the adversary. Nothing is believed that the key did not sign or the signed PCRs do not bind: no base,
// no PCR, no bank, no number of entries that the evidence gives itself. docs/ATTESTATION.md lists the points.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "imafs/manifest.h"
#include "imafs/quote.h"
#include "imafs/verifier.h"

namespace imafs {

// The files of a directory that `imafs quote` made, as they are. `ak_pem` and `ak_public` may be empty.
struct Evidence {
  std::string attest, signature, ak_pem, ak_public, log, pcrs;
};

// The key that a quote has to be from. Either part may be empty, not both.
struct TrustedKey {
  std::string pem;
  Bytes name;  // binds the attributes, too
  std::optional<KeyFacts> facts;  // if it was given as TPM2B_PUBLIC
};
// PEM, with a line "name: HEX" before it or without; that line alone; or a TPM2B_PUBLIC. EINVAL: none of these.
Result<TrustedKey> parse_trusted_key(std::string_view text);

// Where a verifier's last judgement of a machine ended, kept by the verifier.
struct EvidenceBase {
  std::string bank;
  std::map<std::uint32_t, Bytes> pcrs;
  std::uint64_t entries = 0;        // from the reset of the PCRs on
  std::string ak;                   // fingerprint_of() the key
  std::uint32_t reset_count = 0, restart_count = 0;
  bool files_checked = false;       // whether the entries before it were compared with a manifest
  bool operator==(const EvidenceBase&) const = default;
};
std::string to_text(const EvidenceBase& base);
// EINVAL: to_text() did not write it.
Result<EvidenceBase> parse_evidence_base(std::string_view text, const std::string& origin);

struct EvidenceDemands {
  std::optional<Bytes> nonce;
  std::optional<TrustedKey> key;
  const Manifest* manifest = nullptr;  // not owned; null: files are not compared
  std::optional<EvidenceBase> base;
  std::set<std::uint32_t> pcrs{10};    // have to be quoted, and explained by the log
  bool allow_sha1 = false;             // as a signature's hash, and padded with zeros in another bank
};

// One thing that was looked at. Nothing in `holds`: it could not be.
struct Point {
  std::string name;
  std::optional<bool> holds;
  std::string detail;
};

struct Judgement {
  Verdict verdict = Verdict::kNotChecked;  // kMismatch: a point does not hold; kNotChecked: one could not be looked at
  std::vector<Point> points;
  std::vector<std::string> not_accepted;   // a sentence for each file
  std::uint64_t entries = 0, violations = 0;
  std::optional<EvidenceBase> end;         // only of a verified one
};

Judgement judge(const Evidence& evidence, const EvidenceDemands& demands);

// A digest over PCR values in order, as TPM2_Quote makes it. REQUIRES: can_compute(algorithm)
Bytes composite_of(HashAlgorithm algorithm, const std::map<std::uint32_t, Bytes>& values);

}  // namespace imafs
