// How a function says that the world said no: a value or an Error, never an exception.
#pragma once

#include <cerrno>
#include <string>
#include <system_error>
#include <tl/expected.hpp>
#include <utility>

namespace imafs {

struct Error {
  int code;          // an errno value (positive), ready for fuse_reply_err()
  std::string what;  // what we were doing, with the names involved
};

// Reads errno first, before anything can change it.
inline Error errno_error(std::string doing) {
  const int code = errno;
  return Error{code, std::move(doing) + ": " + std::generic_category().message(code)};
}

inline Error error_of(int code, std::string doing) {
  return Error{code, std::move(doing) + ": " + std::generic_category().message(code)};
}

// One alias, so that std::expected can take its place the day every compiler in use has it.
template <class T>
using Result = tl::expected<T, Error>;
using Status = Result<void>;

inline tl::unexpected<Error> fail(Error error) { return tl::unexpected<Error>(std::move(error)); }
inline tl::unexpected<Error> fail(int code, std::string what) {
  return tl::unexpected<Error>(Error{code, std::move(what)});
}

}  // namespace imafs
