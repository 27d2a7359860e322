// The command line: options to a MountConfig, subcommands to their functions.
#pragma once

#include "imafs/exit_code.h"

namespace imafs {

ExitCode run_command_line(int argc, char** argv);

}  // namespace imafs
