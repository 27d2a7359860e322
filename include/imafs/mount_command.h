// `imafs MOUNTPOINT --backing DIR`: from options to a mount that answers, to its end.
#pragma once

#include "imafs/config.h"

namespace imafs {

// Returns once the mount answers (a process of its own serves it), or when it has ended (--foreground).
// Errors before that are one sentence on stderr; nothing is left mounted or running.
ExitCode run_mount(MountConfig config);

}  // namespace imafs
