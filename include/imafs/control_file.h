// An open file of .ima/: one object for one open(2). What each kind of file does with reads, writes
// and closes; names and permissions are control_dir's.
//
// Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "imafs/measure_gate.h"
#include "imafs/measurement_log.h"
#include "imafs/result.h"

namespace imafs {

// One entry of critical data; more is EFBIG. (The ASCII log prints it in hexadecimal, on one line.)
inline constexpr std::size_t kMaxCriticalData = std::size_t{1} << 20;

class ControlFile {
 public:
  virtual ~ControlFile() = default;
  ControlFile() = default;
  ControlFile(const ControlFile&) = delete;
  ControlFile& operator=(const ControlFile&) = delete;

  virtual Result<std::size_t> read(std::uint64_t offset, std::span<char> out);
  virtual Result<std::size_t> write(std::uint64_t offset, std::string_view text);
  // A close(2) of a descriptor of this file, not necessarily of the last one.
  virtual Status flush(const Requester& requester);
  // No descriptor is left.
  virtual void release(const Requester& requester);
  // Bytes that can be read now, where that grows; nothing: the file is always ready.
  virtual std::optional<std::uint64_t> growing_size() const { return std::nullopt; }
  // Where the last read ended.
  virtual std::uint64_t read_end() const { return 0; }
};

// One form of the log. Streams; never holds the text.
std::unique_ptr<ControlFile> open_log_view(const MeasurementLog& log, LogView view);
// A text that is made anew by each read from offset 0 (and by the first read), as the kernel's
// counters are.
std::unique_ptr<ControlFile> open_text(std::function<std::string()> make);
// A text as it stood at the open.
std::unique_ptr<ControlFile> open_snapshot(std::string text);

// Takes one decimal number, and trims that many entries before the write returns.
std::unique_ptr<ControlFile> open_trim(MeasurementLog& log);

struct CriticalData {
  std::string label;
  std::string name;
  bool hashed = false;     // the hash of the data is logged instead of the data
  bool appending = false;  // O_APPEND: offsets mean nothing
};
std::unique_ptr<ControlFile> open_critical_data(MeasureGate& gate, CriticalData what,
                                                const Requester& opener);

}  // namespace imafs
