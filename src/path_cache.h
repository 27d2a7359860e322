// O_PATH descriptors of the inodes used last, kept for speed: at most `limit` of them. Not thread-safe: the inode table's
// mutex guards it.
#pragma once

#include <cstddef>
#include <iterator>
#include <list>
#include <unordered_map>
#include <utility>

#include "imafs/inode_table.h"
#include "imafs/reaper.h"

namespace imafs {

class PathCache {
 public:
  // `reaper` outlives the cache.
  PathCache(std::size_t limit, Reaper& reaper) : limit_(limit), reaper_(reaper) {}

  bool contains(NodeId id) const { return places_.contains(id); }
  std::size_t size() const { return places_.size(); }

  // Null: there is none.
  PathFd use(NodeId id) {
    const auto kept = places_.find(id);
    if (kept == places_.end()) return nullptr;
    order_.splice(order_.end(), order_, kept->second);
    return kept->second->fd;
  }

  // Somebody else may have been quicker: then that one stays.
  void add(NodeId id, PathFd fd) {
    if (limit_ == 0 || contains(id)) return;
    order_.push_back({id, std::move(fd)});
    places_[id] = std::prev(order_.end());
    if (size() > limit_) drop(order_.front().id);
  }

  void drop(NodeId id) {
    const auto kept = places_.find(id);
    if (kept == places_.end()) return;
    close_later(std::move(kept->second->fd));
    order_.erase(kept->second);
    places_.erase(kept);
  }

  // Not here, under the mutex, and when nobody uses it any more.
  void close_later(PathFd fd) {
    reaper_.post([fd = std::move(fd)] {});
  }

 private:
  struct Kept {
    NodeId id;
    PathFd fd;
  };

  const std::size_t limit_;
  Reaper& reaper_;
  std::list<Kept> order_;  // the longest unused first
  std::unordered_map<NodeId, std::list<Kept>::iterator> places_;
};

}  // namespace imafs
