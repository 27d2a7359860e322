// A line on stderr that says how far a long job is; only on a terminal. Thread-safe.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>

namespace imafs {

class Progress {
 public:
  // `unit`: "files". `total`: 0 if not known.
  Progress(std::string unit, std::uint64_t total);
  ~Progress();  // wipes the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void add(std::uint64_t items, std::uint64_t bytes);

 private:
  void draw();

  const std::string unit_;
  const std::uint64_t total_;
  const bool shown_;
  std::mutex mutex_;
  std::uint64_t items_ = 0, bytes_ = 0;
  std::int64_t drawn_ns_ = 0;
};

}  // namespace imafs
