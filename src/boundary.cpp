#include "imafs/boundary.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>

#include "imafs/bytes.h"

namespace imafs {
namespace {

constexpr unsigned kSecondsForLastWords = 2;

void to_standard_error(const std::string& sentence) { std::fprintf(stderr, "imafs: %s\n", printable(sentence).c_str()); }
void nothing_to_flush() {}

std::atomic<void (*)(const std::string&)> complaints_go_to{to_standard_error};
std::atomic<void (*)()> flush_complaints{nothing_to_flush};

int status_at_the_end = 1;  // set at the beginning of main

void complain(const char* where, const char* what) noexcept {
  try {
    complaints_go_to.load()(std::string(where) + ": " + what);
  } catch (...) {  // not even a sentence: there is no memory for one
  }
}

// What nobody may catch half way ends the process. Whatever lock the thread holds, the last words do not wait for it for long.
[[noreturn]] void end_with_words() {
  if (!std::current_exception()) std::abort();
  sigset_t alarm_only;
  ::sigemptyset(&alarm_only);
  ::sigaddset(&alarm_only, SIGALRM);
  ::signal(SIGALRM, SIG_DFL);
  ::pthread_sigmask(SIG_UNBLOCK, &alarm_only, nullptr);
  ::alarm(kSecondsForLastWords);
  note_exception("imafs ends");
  try {
    flush_complaints.load()();
  } catch (...) {
  }
  std::_Exit(status_at_the_end);
}

}  // namespace

void send_complaints_to(void (*sink)(const std::string& sentence), void (*flush)()) {
  flush_complaints = flush;
  complaints_go_to = sink;
}

void end_with_words_when_nobody_catches(int status) {
  status_at_the_end = status;
  std::set_terminate(end_with_words);
}

int note_exception(const char* where) noexcept {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    complain(where, "out of memory");
    return ENOMEM;
  } catch (const std::exception& error) {
    complain(where, error.what());
  } catch (...) {
    complain(where, "an exception of no known kind");
  }
  return EIO;
}

}  // namespace imafs
