// Rules back to text, in the kernel's normal form.
#include <array>
#include <cstdio>

#include "imafs/policy_parser.h"

namespace imafs {
namespace {

constexpr std::size_t kShownName = 63;  // the kernel prints file system names through a buffer of that size

std::string_view mask_name(unsigned mask) {
  switch (mask) {
    case kMayExec: return "MAY_EXEC";
    case kMayWrite: return "MAY_WRITE";
    case kMayRead: return "MAY_READ";
    default: return "MAY_APPEND";
  }
}

std::string joined(const std::vector<std::string>& items) {
  std::string text;
  for (const std::string& item : items) {
    if (!text.empty()) text += '|';
    text += item;
  }
  return text;
}

std::string uuid_text(const std::array<std::uint8_t, 16>& uuid) {
  std::string text;
  for (std::size_t i = 0; i < uuid.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    append_hex(text, ByteView(uuid).subspan(i, 1));
  }
  return text;
}

void add_id(std::string& text, const char* key, const std::optional<IdCondition>& condition) {
  if (!condition) return;
  text += key;
  text += static_cast<char>(condition->op);
  text += std::to_string(static_cast<std::int32_t>(condition->value)) + " ";  // signed, as the kernel's %d
}

void add_options(std::string& text, const Rule& rule) {
  if (rule.appraise_algos != 0) {
    text += "appraise_algos=";
    bool first = true;
    for (unsigned i = 0; i < kHashAlgorithmCount; ++i) {
      if ((rule.appraise_algos >> i & 1) == 0) continue;
      if (!first) text += ',';
      text += name_of(static_cast<HashAlgorithm>(i));
      first = false;
    }
    text += ' ';
  }
  for (std::size_t i = 0; i < kLsmKeys.size(); ++i) {
    if (rule.lsm[i]) text += std::string(kLsmKeys[i]) + "=" + *rule.lsm[i] + " ";
  }
  if (rule.form) text += "template=" + rule.form->name + " ";
  switch (rule.signature) {
    case Rule::Signature::kSigV3: text += "appraise_type=sigv3 "; break;
    case Rule::Signature::kImasigOrModsig: text += "appraise_type=imasig|modsig "; break;
    case Rule::Signature::kImasig: text += "appraise_type=imasig "; break;
    case Rule::Signature::kNone: break;
  }
  if (rule.digest_is_verity) text += "digest_type=verity ";
  if (rule.permit_directio) text += "permit_directio ";
}

}  // namespace

std::string to_text(const Rule& rule) {
  for (const auto& label : rule.lsm) {
    if (label && !rule.lsm_is_known) return "";
  }
  std::string text(name_of(rule.action));
  text += ' ';
  if (rule.hook != Hook::kNone) text += "func=" + std::string(name_of(rule.hook)) + " ";
  if (rule.mask) text += std::string("mask=") + (rule.mask_contains ? "^" : "") + std::string(mask_name(*rule.mask)) + " ";
  if (rule.fsmagic) {
    std::array<char, 32> magic{};
    std::snprintf(magic.data(), magic.size(), "fsmagic=0x%lx ", static_cast<unsigned long>(*rule.fsmagic));
    text += magic.data();
  }
  if (rule.fsname) text += "fsname=" + rule.fsname->substr(0, kShownName) + " ";
  if (rule.fs_subtype) text += "fs_subtype=" + rule.fs_subtype->substr(0, kShownName) + " ";
  if (!rule.keyrings.empty()) text += "keyrings=" + joined(rule.keyrings) + " ";
  if (!rule.labels.empty()) text += "label=" + joined(rule.labels) + " ";
  if (rule.pcr) text += "pcr=" + std::to_string(*rule.pcr) + " ";
  if (rule.fsuuid) text += "fsuuid=" + uuid_text(*rule.fsuuid) + " ";
  for (const std::string& path : rule.paths) text += "path=" + path + " ";  // IMA: our own condition
  add_id(text, rule.uid_is_euid ? "euid" : "uid", rule.uid);
  add_id(text, rule.gid_is_egid ? "egid" : "gid", rule.gid);
  add_id(text, "fowner", rule.fowner);
  add_id(text, "fgroup", rule.fgroup);
  add_options(text, rule);
  return text + "\n";
}

std::string to_text(const Policy& policy) {
  std::string text;
  for (const Rule& rule : policy.rules) text += to_text(rule);
  return text;
}

}  // namespace imafs
