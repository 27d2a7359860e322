// Operator messages: stderr in the foreground, syslog or a file else; the journal, with fields IMAFS_OP, _CAUSE, _NAME, _COMM,
// _PID, _UID, _RESULT and _ERRNO, where standard error is the journal's.
#pragma once

#include <string>

#include "imafs/audit.h"
#include "imafs/config.h"

namespace imafs {

// Called once, by the process that serves the mount, before its threads start.
tl::expected<void, Failure> start_messages(const MountConfig& config);
void say(const std::string& message);
void warn(const std::string& message);
// Flushes and ends the messages.
void end_messages();

// Prints audit records in the kernel's form, each beginning with "integrity:".
AuditSink audit_messages();

}  // namespace imafs
