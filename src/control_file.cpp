#include "imafs/control_file.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstring>
#include <mutex>
#include <utility>

namespace imafs {
namespace {

std::size_t copy_out(std::string_view text, std::uint64_t offset, std::span<char> out) {
  if (offset >= text.size()) return 0;
  const std::string_view rest = text.substr(offset);
  const std::size_t size = std::min(rest.size(), out.size());
  std::memcpy(out.data(), rest.data(), size);
  return size;
}

class LogViewFile final : public ControlFile {
 public:
  LogViewFile(const MeasurementLog& log, LogView view) : log_(log), view_(view) {}

  Result<std::size_t> read(std::uint64_t offset, std::span<char> out) override {
    auto size = log_.read_view(view_, offset, out);
    if (size) read_end_ = offset + *size;
    return size;
  }
  std::optional<std::uint64_t> growing_size() const override { return log_.view_size(view_); }
  std::uint64_t read_end() const override { return read_end_; }

 private:
  const MeasurementLog& log_;
  const LogView view_;
  std::atomic<std::uint64_t> read_end_ = 0;
};

class TextFile final : public ControlFile {
 public:
  explicit TextFile(std::function<std::string()> make) : make_(std::move(make)) {}

  Result<std::size_t> read(std::uint64_t offset, std::span<char> out) override {
    const std::lock_guard lock(mutex_);
    if (offset == 0 || !text_) text_ = make_();
    return copy_out(*text_, offset, out);
  }

 private:
  const std::function<std::string()> make_;
  std::mutex mutex_;  // reads that follow one another see one text
  std::optional<std::string> text_;
};

class SnapshotFile final : public ControlFile {
 public:
  explicit SnapshotFile(std::string text) : text_(std::move(text)) {}

  Result<std::size_t> read(std::uint64_t offset, std::span<char> out) override {
    return copy_out(text_, offset, out);
  }

 private:
  const std::string text_;
};

class TrimFile final : public ControlFile {
 public:
  explicit TrimFile(MeasurementLog& log) : log_(log) {}

  Result<std::size_t> write(std::uint64_t, std::string_view text) override {
    std::uint64_t entries = 0;
    const std::string_view digits = text.substr(0, text.find('\n'));
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), entries);
    if (digits.empty() || parsed.ec != std::errc() || parsed.ptr != digits.data() + digits.size()) {
      return fail(EINVAL, "'" + std::string(digits) + "' is no number of entries");
    }
    if (auto trimmed = log_.trim(entries); !trimmed) return fail(trimmed.error());
    return text.size();
  }

 private:
  MeasurementLog& log_;
};

// What is written between two closes is one entry, made before the close returns so that its error
// reaches the writer.
class CriticalDataFile final : public ControlFile {
 public:
  CriticalDataFile(MeasureGate& gate, CriticalData what, const Requester& opener)
      : gate_(gate), what_(std::move(what)), opener_(opener) {}

  Result<std::size_t> write(std::uint64_t offset, std::string_view text) override {
    const std::lock_guard lock(mutex_);
    if (lost_) return fail(*lost_);
    // A shell's `>` on a group of commands closes once for each of them; the next one's data goes
    // on at the offset where the last one ended, and is an entry of its own.
    if (data_.empty() && offset == 0) base_ = 0;
    const std::uint64_t end = base_ + data_.size();
    if (!what_.appending && (offset < base_ || offset > end)) {
      return lose(EINVAL, "critical data has no holes: write at offset " + std::to_string(offset) +
                              ", not " + std::to_string(end));
    }
    const std::size_t at =
        what_.appending ? data_.size() : static_cast<std::size_t>(offset - base_);
    if (text.size() > kMaxCriticalData - std::min(at, kMaxCriticalData)) {
      return lose(EFBIG, "critical data '" + what_.label + "/" + what_.name + "' is larger than " +
                             std::to_string(kMaxCriticalData) + " bytes");
    }
    data_.resize(std::max(data_.size(), at + text.size()));
    std::copy(text.begin(), text.end(), data_.begin() + static_cast<std::ptrdiff_t>(at));
    return text.size();
  }

  Status flush(const Requester& requester) override {
    const std::lock_guard lock(mutex_);
    // A part of the data must not pass for the whole of it.
    if (lost_) return fail(*lost_);
    if (data_.empty()) return {};
    const std::string data = std::exchange(data_, {});
    base_ += data.size();
    const auto measured = gate_.measure_critical_data(what_.label, what_.name, as_bytes(data),
                                                      what_.hashed, requester);
    if (!measured) return fail(measured.error());
    return {};
  }

  void release(const Requester&) override { (void)flush(opener_); }

 private:
  tl::unexpected<Error> lose(int code, std::string reason) {
    lost_ = Error{code, std::move(reason)};
    data_.clear();
    return fail(*lost_);
  }

  MeasureGate& gate_;
  const CriticalData what_;
  const Requester opener_;
  std::mutex mutex_;  // data_ holds every byte that was accepted since the last flush, in place
  std::string data_;
  std::uint64_t base_ = 0;  // the offset of data_'s first byte
  std::optional<Error> lost_;
};

}  // namespace

Result<std::size_t> ControlFile::read(std::uint64_t, std::span<char>) {
  return fail(EBADF, "the file is open for writing only");
}

Result<std::size_t> ControlFile::write(std::uint64_t, std::string_view) {
  return fail(EBADF, "the file is open for reading only");
}

Status ControlFile::flush(const Requester&) { return {}; }

void ControlFile::release(const Requester&) {}

std::unique_ptr<ControlFile> open_log_view(const MeasurementLog& log, LogView view) {
  return std::make_unique<LogViewFile>(log, view);
}

std::unique_ptr<ControlFile> open_text(std::function<std::string()> make) {
  return std::make_unique<TextFile>(std::move(make));
}

std::unique_ptr<ControlFile> open_snapshot(std::string text) {
  return std::make_unique<SnapshotFile>(std::move(text));
}

std::unique_ptr<ControlFile> open_trim(MeasurementLog& log) {
  return std::make_unique<TrimFile>(log);
}

std::unique_ptr<ControlFile> open_critical_data(MeasureGate& gate, CriticalData what,
                                                const Requester& opener) {
  return std::make_unique<CriticalDataFile>(gate, std::move(what), opener);
}

}  // namespace imafs
