#include "imafs/digest.h"

#include <openssl/evp.h>
#include <openssl/provider.h>

#include <algorithm>

#include "imafs/check.h"

namespace imafs {
namespace {

struct Info {
  std::string_view name;     // the kernel's
  std::size_t size;          // bytes
  std::uint16_t tpm;         // TPM_ALG_ID; 0: none
  const char* openssl;       // name for EVP_MD_fetch; null: OpenSSL 3 has none
};

// In the order of the ids. TPM_ALG_IDs from the TCG Algorithm Registry.
constexpr std::array<Info, kHashAlgorithmCount> kInfo{{
    {"md4", 16, 0, "MD4"},
    {"md5", 16, 0, "MD5"},
    {"sha1", 20, 0x0004, "SHA1"},
    {"rmd160", 20, 0, "RIPEMD160"},
    {"sha256", 32, 0x000b, "SHA256"},
    {"sha384", 48, 0x000c, "SHA384"},
    {"sha512", 64, 0x000d, "SHA512"},
    {"sha224", 28, 0, "SHA224"},
    {"rmd128", 16, 0, nullptr},
    {"rmd256", 32, 0, nullptr},
    {"rmd320", 40, 0, nullptr},
    {"wp256", 32, 0, nullptr},
    {"wp384", 48, 0, nullptr},
    {"wp512", 64, 0, "WHIRLPOOL"},
    {"tgr128", 16, 0, nullptr},
    {"tgr160", 20, 0, nullptr},
    {"tgr192", 24, 0, nullptr},
    {"sm3", 32, 0x0012, "SM3"},
    {"streebog256", 32, 0, nullptr},
    {"streebog512", 64, 0, nullptr},
    {"sha3-256", 32, 0x0027, "SHA3-256"},
    {"sha3-384", 48, 0x0028, "SHA3-384"},
    {"sha3-512", 64, 0x0029, "SHA3-512"},
}};

const Info& info_of(HashAlgorithm algorithm) { return kInfo[static_cast<std::size_t>(algorithm)]; }

// Fetched once: EVP_DigestInit_ex with a fetched method is several times as fast as by name.
const std::array<EVP_MD*, kHashAlgorithmCount>& methods() {
  static const auto fetched = [] {
    std::array<EVP_MD*, kHashAlgorithmCount> all{};
    // The kernel still has hashes that OpenSSL keeps in its legacy provider: looked for there, in a
    // context of its own, so that nothing else of the process changes.
    OSSL_LIB_CTX* const legacy = ::OSSL_LIB_CTX_new();
    ::OSSL_PROVIDER_load(legacy, "legacy");
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (!kInfo[i].openssl) continue;
      EVP_MD* method = ::EVP_MD_fetch(nullptr, kInfo[i].openssl, nullptr);
      if (!method) method = ::EVP_MD_fetch(legacy, kInfo[i].openssl, nullptr);
      if (method && static_cast<std::size_t>(::EVP_MD_get_size(method)) == kInfo[i].size) all[i] = method;
    }
    return all;
  }();
  return fetched;
}

EVP_MD* method_of(HashAlgorithm algorithm) { return methods()[static_cast<std::size_t>(algorithm)]; }

}  // namespace

std::string_view name_of(HashAlgorithm algorithm) { return info_of(algorithm).name; }
std::size_t digest_size(HashAlgorithm algorithm) { return info_of(algorithm).size; }

std::optional<HashAlgorithm> hash_algorithm_named(std::string_view name) {
  if (name == "sm3-256") return HashAlgorithm::kSm3;  // the kernel's name before 5.18
  for (std::size_t i = 0; i < kInfo.size(); ++i) {
    if (kInfo[i].name == name) return static_cast<HashAlgorithm>(i);
  }
  return std::nullopt;
}

std::optional<HashAlgorithm> hash_algorithm_of_id(std::uint8_t id) {
  if (id >= kHashAlgorithmCount) return std::nullopt;
  return static_cast<HashAlgorithm>(id);
}

std::optional<std::uint16_t> tpm_algorithm_of(HashAlgorithm algorithm) {
  if (info_of(algorithm).tpm == 0) return std::nullopt;
  return info_of(algorithm).tpm;
}

std::optional<HashAlgorithm> hash_algorithm_of_tpm(std::uint16_t tpm_algorithm) {
  for (std::size_t i = 0; i < kInfo.size(); ++i) {
    if (tpm_algorithm != 0 && kInfo[i].tpm == tpm_algorithm) return static_cast<HashAlgorithm>(i);
  }
  return std::nullopt;
}

bool can_compute(HashAlgorithm algorithm) { return method_of(algorithm) != nullptr; }

Digest Digest::of_bytes(HashAlgorithm algorithm, ByteView bytes) {
  IMAFS_CHECK(bytes.size() == digest_size(algorithm));
  Digest digest(algorithm);
  std::copy(bytes.begin(), bytes.end(), digest.bytes_.begin());
  return digest;
}

void Hasher::Free::operator()(evp_md_ctx_st* context) const noexcept { ::EVP_MD_CTX_free(context); }

Hasher::Hasher(HashAlgorithm algorithm) : algorithm_(algorithm), context_(::EVP_MD_CTX_new()) {
  IMAFS_CHECK(can_compute(algorithm) && context_);
  IMAFS_CHECK(::EVP_DigestInit_ex2(context_.get(), method_of(algorithm), nullptr) == 1);
}

void Hasher::update(ByteView bytes) {
  IMAFS_CHECK(::EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()) == 1);
}

Digest Hasher::finish() {
  Digest digest(algorithm_);
  unsigned size = 0;
  IMAFS_CHECK(::EVP_DigestFinal_ex(context_.get(), digest.bytes_.data(), &size) == 1);
  IMAFS_CHECK(size == digest.size());
  IMAFS_CHECK(::EVP_DigestInit_ex2(context_.get(), nullptr, nullptr) == 1);
  return digest;
}

Digest hash_of(HashAlgorithm algorithm, ByteView bytes) {
  thread_local std::array<std::unique_ptr<Hasher>, kHashAlgorithmCount> hashers;
  auto& hasher = hashers[static_cast<std::size_t>(algorithm)];
  if (!hasher) hasher = std::make_unique<Hasher>(algorithm);
  hasher->update(bytes);
  return hasher->finish();
}

std::string file_name_for(std::string_view what) {
  return to_hex(hash_of(HashAlgorithm::kSha256, as_bytes(what)).bytes()).substr(0, 24);
}

}  // namespace imafs
