// Every worked entry of tests/data/vectors.json: fields to hashed bytes, template digests, what is extended, PCRs,
// text and binary forms, and back.
#include <catch2/catch_test_macros.hpp>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "imafs/digest.h"
#include "imafs/file_hasher.h"
#include "imafs/log_codec.h"
#include "imafs/log_entry.h"
#include "imafs/pcr_value.h"

namespace imafs {
namespace {

using Json = nlohmann::json;

const Json& vectors() {
  static const Json all = Json::parse(std::ifstream(std::string(IMAFS_TEST_DATA) + "/vectors.json"));
  return all;
}

FieldId field_named(const std::string& name) {
  for (unsigned i = 0; i <= static_cast<unsigned>(FieldId::kXattrValues); ++i) {
    if (name_of(static_cast<FieldId>(i)) == name) return static_cast<FieldId>(i);
  }
  FAIL("unknown field " << name);
  return FieldId::kD;
}

LogEntry entry_of(const Json& vector) {
  LogEntry entry;
  entry.pcr = vector.at("pcr");
  entry.template_name = vector.at("template");
  entry.is_violation = vector.at("violation");
  for (const Json& field : vector.at("fields")) {
    entry.fields.push_back(field_named(field.at("id")));
    Bytes value = *from_hex(field.at("hex").get<std::string>());
    // The legacy record and hash do without the NUL that we keep.
    if (entry.is_legacy() && entry.fields.back() == FieldId::kN && (value.empty() || value.back() != 0)) value.push_back(0);
    entry.values.push_back(std::move(value));
  }
  return entry;
}

Bank bank_named(const std::string& name) {
  if (name.starts_with("tpm_alg_")) return Bank{static_cast<std::uint16_t>(std::stoul(name.substr(8), nullptr, 16)), 32, std::nullopt};
  return Bank::of(*hash_algorithm_named(name));
}

// Whether the section keeps the entry out of its log: the duplicate.
bool is_logged(const Json& vector) { return vector.contains("banks"); }

void check_entry(const Json& vector, ByteOrder order, std::map<std::string, BankValues>& pcrs) {
  const LogEntry entry = entry_of(vector);
  CAPTURE(vector.at("label").get<std::string>());
  if (vector.at("hashed_bytes_hex").is_string()) {
    CHECK(to_hex(template_data(entry, order)) == vector.at("hashed_bytes_hex").get<std::string>());
  }
  for (const auto& [name, expected] : vector.at("banks").items()) {
    CAPTURE(name);
    const std::vector<Bank> bank{bank_named(name)};
    CHECK(name_of(bank[0]) == name);
    const Bytes digest = template_digests(entry, bank, order)[0];
    CHECK(to_hex(digest) == expected.at("template_hash").get<std::string>());
    const BankValues extended = extend_values(entry, bank, order);
    if (expected.contains("extend_value")) CHECK(to_hex(extended[0]) == expected.at("extend_value").get<std::string>());
    if (expected.contains("pcr_after")) {
      BankValues& value = pcrs.try_emplace(std::to_string(entry.pcr) + ":" + name, pcr_reset_values(bank, entry.pcr)).first->second;
      if (bank[0].hash) {
        extend_pcr(bank, value, extended);
      } else {
        // Only the TPM knows the algorithm of such a bank; OpenSSL has sha3-256 under the same number.
        Bytes joined = value[0];
        append(joined, extended[0]);
        const Digest next = hash_of(*hash_algorithm_of_tpm(bank[0].tpm_algorithm), joined);
        value[0].assign(next.bytes().begin(), next.bytes().end());
      }
      CHECK(to_hex(value[0]) == expected.at("pcr_after").get<std::string>());
    }
    if (!expected.contains("binary_hex")) continue;
    Bytes binary;
    append_binary(binary, entry, digest, order);
    CHECK(to_hex(binary) == expected.at("binary_hex").get<std::string>());
    std::string ascii;
    append_ascii(ascii, entry, digest, order);
    CHECK(to_hex(as_bytes(ascii)) == expected.at("ascii_hex").get<std::string>());
    const auto decoded = decode_record(binary, digest.size(), order);
    REQUIRE(decoded);
    CHECK(decoded->entry == entry);
    CHECK(decoded->size == binary.size());
    CHECK(decoded->template_digest == digest);
  }
}

}  // namespace

TEST_CASE("every worked entry has its bytes, digests and PCR values") {
  std::size_t entries = 0;
  for (const char* section : {"A_sha256_four_banks_le", "B_legacy_ima_sha1_tpm12", "B2_legacy_ima_md5", "C_no_tpm", "D_big_endian_native",
                              "E_unmapped_bank", "F_old_violation_bodies"}) {
    CAPTURE(section);
    const Json& part = vectors().at(section);
    const ByteOrder order = std::string(section).starts_with("D_") ? ByteOrder::kBig : ByteOrder::kLittle;
    std::map<std::string, BankValues> pcrs;
    for (const Json& vector : part.at("entries")) {
      // A duplicate is neither logged nor extended.
      if (!is_logged(vector)) continue;
      check_entry(vector, order, pcrs);
      ++entries;
    }
    if (!part.contains("final_pcrs")) continue;
    for (const auto& [name, value] : part.at("final_pcrs").items()) {
      REQUIRE(pcrs.contains(name));
      CHECK(to_hex(pcrs.at(name)[0]) == value.get<std::string>());
    }
  }
  CHECK(entries == 41);
}

TEST_CASE("whole logs have their SHA-256, in every bank") {
  const Json& part = vectors().at("A_sha256_four_banks_le");
  for (const auto& [name, expected] : part.at("file_sha256").items()) {
    CAPTURE(name);
    const std::vector<Bank> bank{bank_named(name)};
    Bytes binary;
    std::string ascii;
    for (const Json& vector : part.at("entries")) {
      if (!is_logged(vector)) continue;
      const LogEntry entry = entry_of(vector);
      const Bytes digest = template_digests(entry, bank)[0];
      append_binary(binary, entry, digest);
      append_ascii(ascii, entry, digest);
    }
    CHECK(to_hex(hash_of(HashAlgorithm::kSha256, binary).bytes()) == expected.at("binary_runtime_measurements").get<std::string>());
    CHECK(to_hex(hash_of(HashAlgorithm::kSha256, as_bytes(ascii)).bytes()) == expected.at("ascii_runtime_measurements").get<std::string>());
    const auto decoded = decode_log(binary, digest_size(*bank[0].hash));
    REQUIRE(decoded);
    CHECK(decoded->size() == expected.at("runtime_measurements_count").get<std::size_t>());
  }
}

TEST_CASE("the kexec blob holds the sha1 records without the legacy ones, and reads back") {
  const Json& part = vectors().at("kexec_blob");
  std::vector<LogEntry> entries;
  for (const Json& vector : vectors().at("A_sha256_four_banks_le").at("entries")) {
    const LogEntry entry = entry_of(vector);
    if (!entry.is_legacy() && is_logged(vector)) entries.push_back(entry);
  }
  const Bytes blob = encode_kexec_blob(entries);
  CHECK(blob.size() == part.at("size").get<std::size_t>());
  CHECK(to_hex(ByteView(blob).first(24)) == part.at("header_hex").get<std::string>());
  CHECK(to_hex(hash_of(HashAlgorithm::kSha256, blob).bytes()) == part.at("sha256").get<std::string>());
  const auto decoded = decode_kexec_blob(blob);
  REQUIRE(decoded);
  REQUIRE(decoded->size() == part.at("count").get<std::size_t>());
  for (std::size_t i = 0; i < entries.size(); ++i) CHECK((*decoded)[i].entry == entries[i]);

  Bytes wrong = blob;
  wrong[16] ^= 1;  // another count
  CHECK_FALSE(decode_kexec_blob(wrong));
}

TEST_CASE("entries are made from facts as the vectors have them") {
  const Json& all = vectors();
  const std::string path = all.at("inputs").at("path");
  const Digest digest = Digest::of_bytes(HashAlgorithm::kSha256, *from_hex(all.at("inputs").at("digests").at("sha256").get<std::string>()));
  std::map<std::string, LogEntry> expected;
  for (const Json& vector : all.at("A_sha256_four_banks_le").at("entries")) expected[vector.at("label")] = entry_of(vector);
  EntryFacts facts;
  facts.file_digest = digest;
  facts.name = path;
  facts.last_component = "hello";
  const auto form = [](const char* name) { return *find_builtin_template(name); };
  CHECK(make_entry(form("ima-ng"), 10, facts) == expected.at("ima-ng file"));
  CHECK(make_entry(form("ima-ng"), 11, facts) == expected.at("ima-ng same file, pcr=11"));
  CHECK(make_entry(form("ima-ngv2"), 10, facts) == expected.at("ima-ngv2"));
  CHECK(make_violation(form("ima-ng"), 10, HashAlgorithm::kSha256, facts) == expected.at("violation ima-ng (v5.19.. + full-length zeros)"));
  CHECK(make_violation(form("ima-ngv2"), 10, HashAlgorithm::kSha256, facts) == expected.at("ima-ngv2 violation"));
  CHECK(make_entry(form("ima-sig"), 10, facts) == expected.at("ima-sig, no signature"));
  facts.signature = *from_hex(all.at("inputs").at("sigv2_hex").get<std::string>());
  CHECK(make_entry(form("ima-sig"), 10, facts) == expected.at("ima-sig, v2 signature"));
  CHECK(make_violation(form("ima-sig"), 10, HashAlgorithm::kSha256, facts) == expected.at("violation ima-sig"));
}

TEST_CASE("security.ima names the hash of its file") {
  const Json& part = vectors().at("G_signatures");
  const auto algorithm = [&](const char* key) {
    return algorithm_of_xattr(*from_hex(part.at(key).get<std::string>()), HashAlgorithm::kSm3);
  };
  CHECK(algorithm("xattr_digest_sha1") == HashAlgorithm::kSha1);
  CHECK(algorithm("xattr_digest_ng_sha256") == HashAlgorithm::kSha256);
  CHECK(algorithm("xattr_digest_ng_sha512") == HashAlgorithm::kSha512);
}

TEST_CASE("log lines seen in public have the template digest this code computes") {
  for (const Json& anchor : vectors().at("Z_real_world_anchors")) {
    CAPTURE(anchor.at("label").get<std::string>());
    // The line is taken apart here, by blanks: the text form is not for reading back.
    std::vector<std::string> words;
    std::istringstream line(anchor.at("ascii").get<std::string>());
    for (std::string word; line >> word;) words.push_back(word);
    REQUIRE(words.size() >= 5);
    const Template* const form = find_builtin_template(words[2]);
    REQUIRE(form);
    EntryFacts facts;
    const std::size_t colon = words[3].find(':');
    const HashAlgorithm algorithm = colon == std::string::npos ? HashAlgorithm::kSha1 : *hash_algorithm_named(words[3].substr(0, colon));
    facts.file_digest = Digest::of_bytes(algorithm, *from_hex(colon == std::string::npos ? words[3] : words[3].substr(colon + 1)));
    facts.name = words[4];
    if (words.size() > 5 && form->has(FieldId::kSig)) facts.signature = *from_hex(words[5]);
    if (words.size() > 5 && form->has(FieldId::kBuf)) facts.buffer = *from_hex(words[5]);
    const Bank bank = bank_named(anchor.at("bank"));
    CHECK(to_hex(template_digests(make_entry(*form, 10, facts), {bank})[0]) == anchor.at("expected").get<std::string>());
  }
}

}  // namespace imafs
