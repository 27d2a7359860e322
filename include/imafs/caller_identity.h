// Makes what this thread creates belong to the caller: file system ids, groups and umask, for the life
// of one object. Other threads are not touched.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string_view>

namespace imafs {

struct Caller {
  std::uint32_t pid = 0;  // the thread's id
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  mode_t umask = 0;
};

// Whether the caller is in `group`, supplementary groups included.
bool is_in_group(const Caller& caller, std::uint32_t group);

// The effective capabilities in the text of /proc/TID/status, a bit each; none if it does not say.
std::uint64_t effective_capabilities(std::string_view status);

// Whether the caller is root and has the capability (CAP_...). Others count as without: of those that have it most have it in
// a user namespace only.
bool is_root_with(const Caller& caller, unsigned capability);

// Whether the thread is about to be killed, or gone: then it cannot see how a call ends that it waits for. A signal that it
// handles or ignores is no such thing: an open on a local disk does not end because of one. /proc/TID/status says it.
bool is_dying(std::uint32_t tid);
// The same for its text.
bool says_dying(std::string_view status);

class ActAs {
 public:
  // `with_groups`: take the caller's supplementary groups too (where a setgid bit depends on them).
  ActAs(const Caller& caller, bool with_groups);
  ~ActAs();
  ActAs(const ActAs&) = delete;
  ActAs& operator=(const ActAs&) = delete;

 private:
  bool changed_ids_ = false;
  bool changed_groups_ = false;
};

}  // namespace imafs
