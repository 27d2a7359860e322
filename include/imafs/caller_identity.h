// Who sent a request, and how a thread does what is asked as that caller, so that the file system below judges it by what is
// true at that moment. Other threads are not touched.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <initializer_list>
#include <string_view>

#include "imafs/result.h"

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

// Whether the caller has the capability (CAP_...) in the user namespace of this process.
bool has_capability(const Caller& caller, unsigned capability);

// Whether the thread is about to be killed, or gone: then it cannot see how a call ends that it waits for. A signal that it
// handles or ignores is no such thing: an open on a local disk does not end because of one. /proc/TID/status says it.
bool is_dying(std::uint32_t tid);
// The same for its text.
bool says_dying(std::string_view status);

// While one of these lives this thread is the caller for the file system below: file system ids, supplementary groups, umask,
// and no capability that the caller has not. Root with every capability needs no change.
//
// Capabilities that the caller has in another user namespace count if that has ids for the owner and the group of every
// object, as in the kernel; of them only those that the kernel grants for single files.
class ActAs {
 public:
  struct Object {
    int fd = -1;             // any descriptor, also of O_PATH
    const char* name = "";   // a name in that directory; empty: the descriptor's own file
  };
  enum class Groups { kIfTheyMatter, kAlways };

  // `objects`: what the call is about. Groups do not matter to the owner of all of them (kAlways: where they do, as for
  // setgid bits and chown).
  ActAs(const Caller& caller, std::initializer_list<Object> objects, Groups groups = Groups::kIfTheyMatter);
  ~ActAs();
  ActAs(const ActAs&) = delete;
  ActAs& operator=(const ActAs&) = delete;

  // Not so: the thread could not become the caller, is itself again, and the request must fail.
  explicit operator bool() const { return valid_; }
  // Whether the thread is what it was before, because the caller may do all that we may.
  bool is_unchanged() const { return !changed_ids_; }

 private:
  void restore();

  mode_t umask_ = 0;
  bool valid_ = true;
  bool own_umask_ = false;
  bool changed_ids_ = false;
  bool changed_groups_ = false;
  std::uint64_t capabilities_ = 0;  // effective before
};

// Whether the caller may open the object in this way (R_OK, W_OK, X_OK), by its attributes of now.
Status may_access(const Caller& caller, int fd, int mask);

}  // namespace imafs
