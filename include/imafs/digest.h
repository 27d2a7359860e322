// Hash algorithms, under the kernel's ids and names, and digests computed by OpenSSL.
//
// Source of ids, names and sizes: the kernel's hash_info table, which is also what security.ima
// stores in its algorithm byte.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "imafs/bytes.h"
#include "imafs/result.h"

struct evp_md_ctx_st;

namespace imafs {

// The value is the kernel's id, as stored in security.ima.
enum class HashAlgorithm : std::uint8_t {
  kMd4 = 0,
  kMd5 = 1,
  kSha1 = 2,
  kRmd160 = 3,
  kSha256 = 4,
  kSha384 = 5,
  kSha512 = 6,
  kSha224 = 7,
  kRmd128 = 8,
  kRmd256 = 9,
  kRmd320 = 10,
  kWp256 = 11,
  kWp384 = 12,
  kWp512 = 13,
  kTgr128 = 14,
  kTgr160 = 15,
  kTgr192 = 16,
  kSm3 = 17,
  kStreebog256 = 18,
  kStreebog512 = 19,
  kSha3_256 = 20,
  kSha3_384 = 21,
  kSha3_512 = 22,
};
inline constexpr std::size_t kHashAlgorithmCount = 23;
inline constexpr std::size_t kMaxDigestSize = 64;

std::string_view name_of(HashAlgorithm algorithm);     // "sha256"
std::size_t digest_size(HashAlgorithm algorithm);      // bytes
std::optional<HashAlgorithm> hash_algorithm_named(std::string_view name);  // also "sm3-256"
std::optional<HashAlgorithm> hash_algorithm_of_id(std::uint8_t id);

// TPM_ALG_ID of the algorithm, as the TCG registry has it; nothing for those the TPM does not know.
std::optional<std::uint16_t> tpm_algorithm_of(HashAlgorithm algorithm);
std::optional<HashAlgorithm> hash_algorithm_of_tpm(std::uint16_t tpm_algorithm);

// Whether this OpenSSL provides the algorithm. Constant for the life of the process.
bool can_compute(HashAlgorithm algorithm);

class Digest {
 public:
  // All zeros, as the kernel logs for violations and for files it could not hash.
  static Digest zero(HashAlgorithm algorithm) { return Digest(algorithm); }
  // REQUIRES: bytes.size() == digest_size(algorithm)
  static Digest of_bytes(HashAlgorithm algorithm, ByteView bytes);

  HashAlgorithm algorithm() const { return algorithm_; }
  std::size_t size() const { return digest_size(algorithm_); }
  ByteView bytes() const { return {bytes_.data(), size()}; }
  bool operator==(const Digest& other) const = default;

 private:
  friend class Hasher;
  explicit Digest(HashAlgorithm algorithm) : algorithm_(algorithm) {}
  HashAlgorithm algorithm_;
  std::array<std::uint8_t, kMaxDigestSize> bytes_{};  // zero beyond size()
};

// An incremental hash. Not thread-safe; one hasher hashes one stream at a time and can be reused.
class Hasher {
 public:
  // REQUIRES: can_compute(algorithm)
  explicit Hasher(HashAlgorithm algorithm);

  void update(ByteView bytes);
  // Ends the stream; the hasher is ready for the next one.
  Digest finish();

 private:
  struct Free {
    void operator()(evp_md_ctx_st* context) const noexcept;
  };
  HashAlgorithm algorithm_;
  std::unique_ptr<evp_md_ctx_st, Free> context_;
};

// REQUIRES: can_compute(algorithm)
Digest hash_of(HashAlgorithm algorithm, ByteView bytes);

// A file name for something of any length (a path, what a TPM is called): 24 hexadecimal digits of its SHA-256.
std::string file_name_for(std::string_view what);

}  // namespace imafs
