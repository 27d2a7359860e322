#include <string_view>

#include "imafs/boundary.h"
#include "imafs/cli.h"
#include "imafs/exit_code.h"
#include "imafs/privileges.h"

int main(int argc, char** argv) {
  // "Could not check" is what scripts expect of verify.
  const bool verifies = argc > 1 && std::string_view(argv[1]) == "verify";
  const int given_up = static_cast<int>(verifies ? imafs::ExitCode::kUsage : imafs::ExitCode::kInternal);
  imafs::end_with_words_when_nobody_catches(given_up);
  imafs::fill_standard_descriptors();
  // What is thrown comes here, so that all that was begun is taken down on the way.
  try {
    return static_cast<int>(imafs::run_command_line(argc, argv));
  } catch (...) {
    imafs::note_exception("imafs gives up");
  }
  return given_up;
}
