// A violated IMAFS_CHECK is a bug of ours: the daemon says where and aborts, also in a release build.
#pragma once

#include <cstdio>
#include <cstdlib>

#define IMAFS_CHECK(condition)                                                             \
  do {                                                                                     \
    if (!(condition)) {                                                                    \
      std::fprintf(stderr, "imafs: bug: %s (%s:%d)\n", #condition, __FILE__, __LINE__);    \
      std::abort();                                                                        \
    }                                                                                      \
  } while (false)
