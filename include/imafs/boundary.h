// Where exceptions end. The code returns errors (result.h); what may still throw is the standard library, for want of memory above all.
// Nothing of that may leave a thread, a callback of C code, or main: here it becomes an errno value and a sentence, or the end of the process.
#pragma once

#include <cerrno>
#include <string>
#include <utility>

#include "imafs/result.h"

namespace imafs {

// Where the sentences go, and what writes those that are queued. Standard error, until somebody says otherwise. Set before threads start.
void send_complaints_to(void (*sink)(const std::string& sentence), void (*flush)());

// An exception that nobody catches, in a thread or in what is noexcept, ends the process with a sentence and this exit status.
// For the beginning of main.
void end_with_words_when_nobody_catches(int status);

// Says what was thrown in `where`; ENOMEM for want of memory, else EIO. REQUIRES: an exception is being handled.
int note_exception(const char* where) noexcept;

// Runs `call`; false if it threw.
template <class Call>
bool contain(const char* where, Call&& call) noexcept {
  try {
    std::forward<Call>(call)();
    return true;
  } catch (...) {
    note_exception(where);
    return false;
  }
}

// The status that `call` returns, or that of what it threw.
template <class Call>
Status contained_status(const char* where, Call&& call) noexcept {
  int code = EIO;
  try {
    return std::forward<Call>(call)();
  } catch (...) {
    code = note_exception(where);
  }
  return fail(code, std::string());  // an empty string needs no memory
}

}  // namespace imafs
