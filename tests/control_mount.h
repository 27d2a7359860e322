// A control directory without a mount, for tests: over a log that only remembers.
#pragma once

#include <fcntl.h>

#include <array>
#include <cerrno>
#include <functional>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "imafs/control_dir.h"

namespace imafs {

// A log that only remembers; its text view has one line "entry N" for each.
class FakeLog final : public MeasurementLog {
 public:
  const LogStart& start() const override { return start_; }
  Result<Appended> append(const LogEntry& entry, const AskOrigin&) override {
    if (failure != 0) return fail(failure, "the journal is broken");
    entries.push_back(entry);
    text += "entry " + std::to_string(entries.size()) + "\n";
    for (const auto& callback : callbacks) callback();
    return Appended::kLogged;
  }
  std::uint64_t count() const override { return entries.size(); }
  std::uint64_t violations() const override { return 3; }
  TpmHealth tpm_health() const override { return {}; }
  const std::vector<Bank>& view_banks() const override { return banks_; }
  bool has_tpm() const override { return true; }
  std::uint64_t view_size(LogView) const override { return text.size(); }
  Result<std::size_t> read_view(LogView view, std::uint64_t offset,
                                std::span<char> out) const override {
    last_view = view;
    if (offset >= text.size()) return 0;
    return text.copy(out.data(), out.size(), offset);
  }
  std::map<std::uint32_t, BankValues> replayed() const override { return {}; }
  std::string base() const override { return ""; }
  Status store_owed() override { return {}; }
  Status check_tpm() override { return {}; }
  TpmReading look_at_tpm(std::chrono::milliseconds) override { return {}; }
  LogRoom room() const override { return {}; }
  void begin_new_logs_with(Opening) override {}
  std::uint32_t generation() const override { return 0; }
  Result<std::string> trim(std::uint64_t count) override {
    if (count > entries.size()) return fail(EINVAL, "there are not as many");
    entries.erase(entries.begin(), entries.begin() + static_cast<std::ptrdiff_t>(count));
    return std::string("archive/1");
  }
  void on_growth(std::function<void()> callback) override {
    callbacks.push_back(std::move(callback));
  }

  int failure = 0;
  std::vector<LogEntry> entries;
  std::string text;
  std::vector<std::function<void()>> callbacks;
  mutable LogView last_view;

 private:
  LogStart start_;
  std::vector<Bank> banks_ = {Bank::of(HashAlgorithm::kSha256), Bank::of(HashAlgorithm::kSha1)};
};

// A mount's control directory without the mount: what a program's system calls would come to.
struct Mount {
  FakeLog log;
  std::vector<AuditRecord> records;
  std::map<std::string, std::string> machine_files;
  Requester root{};
  MeasureGate gate{options(), log, [this](const AuditRecord& record) { records.push_back(record); },
                   Policy{}};
  std::unique_ptr<ControlDir> control = ControlDir::create({
      .gate = gate,
      .log = log,
      .status = [this] { return "{\"count\": " + std::to_string(++status_made) + "}\n"; },
      .metrics = [] { return std::string("imafs_log_entries 1\n"); },
      .read_policy_file = [this](const std::string& path) -> Result<std::string> {
        if (path == "/scn") return fail(EISDIR, "it is a directory");
        if (!machine_files.contains(path)) return fail(ENOENT, "no " + path);
        return machine_files[path];
      },
      .owner_uid = 5,
      .owner_gid = 6,
  });
  int status_made = 0;

  static GateOptions options() {
    GateOptions options;
    options.form = find_builtin_template("ima-ng");
    return options;
  }

  // Node of a path below .ima/; 0: there is none.
  std::uint64_t node(const std::string& path) {
    std::uint64_t at = kControlRoot;
    std::istringstream parts(path);
    for (std::string part; std::getline(parts, part, '/');) {
      const auto next = control->look_up(at, part);
      if (!next) return 0;
      at = *next;
    }
    return at;
  }
  Result<std::uint64_t> open(const std::string& path, int flags) {
    return control->open(node(path), flags, root);
  }
  std::string read_all(std::uint64_t handle, std::uint64_t offset = 0) {
    std::string text;
    std::array<char, 7> buffer{};
    while (const auto size = *control->read(handle, offset + text.size(), buffer))
      text.append(buffer.data(), size);
    return text;
  }
  std::string cat(const std::string& path) {
    const auto handle = open(path, O_RDONLY);
    if (!handle) return "error " + std::to_string(handle.error().code);
    const std::string text = read_all(*handle);
    control->release(*handle, root);
    return text;
  }
  // close(2) of the last descriptor: its answer comes from the flush.
  int close(std::uint64_t handle) {
    const auto flushed = control->flush(handle, root);
    control->release(handle, root);
    return flushed ? 0 : flushed.error().code;
  }
  // 0 or the errno of the first call that failed.
  int echo(const std::string& text, const std::string& path, int flags = O_WRONLY) {
    const auto handle = open(path, flags);
    if (!handle) return handle.error().code;
    const auto written = control->write(*handle, 0, text);
    const int closed = close(*handle);
    return written ? closed : written.error().code;
  }
  // Creates the file, as O_CREAT does.
  int put(const std::string& data, const std::string& directory, const std::string& name) {
    const auto made = control->make_file(node(directory), name);
    return made ? echo(data, directory + "/" + name) : made.error().code;
  }
  std::vector<std::string> updates() const {
    std::vector<std::string> causes;
    for (const auto& record : records) {
      if (record.op == "policy_update") causes.push_back(record.cause);
    }
    return causes;
  }
};

}  // namespace imafs
