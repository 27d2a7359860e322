// The digest of a whole file. Thread-safe.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <optional>

#include "imafs/digest.h"
#include "imafs/result.h"

namespace imafs {

// Called between parts of a file that is large, with the bytes done so far; an error ends the hashing with it.
using HashPause = std::function<Status(std::uint64_t done)>;

// Reads `fd` from its start by pread, as many bytes as it has when asked (bytes appended meanwhile do
// not count, as in the kernel). EINVAL: the file shrank while it was read. Otherwise the read's error.
// REQUIRES: can_compute(algorithm)
Result<Digest> hash_file(int fd, HashAlgorithm algorithm, const HashPause& pause = {});

// The fs-verity digest of `fd`. ENODATA: the file (or its file system) has none.
Result<Digest> verity_digest(int fd);

// The algorithm that a security.ima value asks for; `configured` when it asks for none.
HashAlgorithm algorithm_of_xattr(ByteView security_ima, HashAlgorithm configured);

// The value of an extended attribute of an open file; empty when there is none.
Bytes xattr_of(int fd, const char* name);
// Nothing: there is none. An attribute may be empty.
std::optional<Bytes> find_xattr(int fd, const char* name);

}  // namespace imafs
