// Any bytes are evidence, a base and a key: a verdict comes back, verified only if all that was demanded was looked at and holds.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <string>

#include "imafs/evidence.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  imafs::ByteView rest(data, size);
  const auto part = [&] {
    if (rest.size() < 2) return std::string();
    const std::size_t length = std::min<std::size_t>(imafs::load_le16(rest), rest.size() - 2);
    const std::string text(imafs::as_text(rest.subspan(2, length)));
    rest = rest.subspan(2 + length);
    return text;
  };
  imafs::Evidence evidence;
  evidence.attest = part();
  evidence.signature = part();
  evidence.ak_public = part();
  evidence.pcrs = part();
  const std::string base_text = part(), key_text = part();
  evidence.log = imafs::as_text(rest);
  imafs::Manifest manifest;
  imafs::EvidenceDemands demands;
  demands.manifest = &manifest;
  demands.pcrs = {10, 11};
  demands.nonce = imafs::Bytes{0};
  demands.allow_sha1 = size % 2 == 1;
  if (auto key = imafs::parse_trusted_key(key_text)) demands.key = std::move(*key);
  if (auto base = imafs::parse_evidence_base(base_text, "base")) {
    const auto again = imafs::parse_evidence_base(imafs::to_text(*base), "base");
    if (!again || !(*again == *base)) std::abort();
    demands.base = std::move(*base);
  }
  const imafs::Judgement judgement = imafs::judge(evidence, demands);
  const bool all = std::all_of(judgement.points.begin(), judgement.points.end(), [](const imafs::Point& point) { return point.holds == true; });
  if ((judgement.verdict == imafs::Verdict::kVerified) != all || judgement.points.size() < 3) std::abort();
  if (judgement.verdict == imafs::Verdict::kVerified && (!demands.key || judgement.violations > 0)) std::abort();
  if (judgement.end.has_value() != all) std::abort();
  return 0;
}
