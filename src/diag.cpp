#include "imafs/diag.h"

#include <spdlog/async.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/sinks/syslog_sink.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <syslog.h>
#define SD_JOURNAL_SUPPRESS_LOCATION 1  // where we write a message is of no interest to its reader
#include <systemd/sd-journal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <string_view>
#include <vector>

namespace imafs {
namespace {

constexpr std::size_t kQueueSize = 8192;  // messages; the oldest give way, an open never waits for a disk

constexpr char kFieldMark = '\x1e';  // no audit text holds it

// Whether standard error goes to the journal: then messages go there with fields (systemd.exec(5), $JOURNAL_STREAM).
bool runs_under_the_journal() {
  const char* const stream = ::getenv("JOURNAL_STREAM");
  struct stat attr {};
  return stream && ::fstat(STDERR_FILENO, &attr) == 0 && stream == std::to_string(attr.st_dev) + ":" + std::to_string(attr.st_ino);
}

// What follows the mark in a message are fields of the journal, "NAME=value", each ended by the mark.
class JournalSink final : public spdlog::sinks::base_sink<std::mutex> {
 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    std::vector<std::string> fields{"SYSLOG_IDENTIFIER=imafs", "PRIORITY=" + std::to_string(priority(message.level))};
    std::string_view rest(message.payload.data(), message.payload.size());
    const std::size_t end = rest.find(kFieldMark);
    fields.push_back("MESSAGE=" + std::string(rest.substr(0, end)));
    while (rest.find(kFieldMark) != std::string_view::npos) {
      rest.remove_prefix(rest.find(kFieldMark) + 1);
      if (!rest.empty()) fields.emplace_back(rest.substr(0, rest.find(kFieldMark)));
    }
    std::vector<struct iovec> parts;
    for (std::string& field : fields) parts.push_back({field.data(), field.size()});
    (void)::sd_journal_sendv(parts.data(), static_cast<int>(parts.size()));
  }
  void flush_() override {}

 private:
  static int priority(spdlog::level::level_enum level) {
    switch (level) {
      case spdlog::level::critical: return LOG_CRIT;
      case spdlog::level::err: return LOG_ERR;
      case spdlog::level::warn: return LOG_WARNING;
      case spdlog::level::info: return LOG_INFO;
      default: return LOG_DEBUG;
    }
  }
};

std::string without_fields(std::string message) {
  std::replace(message.begin(), message.end(), kFieldMark, '?');
  return message;
}

// Set before the first thread starts.
bool messages_have_fields = false;

spdlog::sink_ptr sink_for(const MountConfig& config) {
  if (!config.log_file.empty()) return std::make_shared<spdlog::sinks::basic_file_sink_mt>(config.log_file);
  messages_have_fields = runs_under_the_journal();
  if (messages_have_fields) return std::make_shared<JournalSink>();
  if (config.foreground) return std::make_shared<spdlog::sinks::stderr_sink_mt>();
  return std::make_shared<spdlog::sinks::syslog_sink_mt>("imafs", LOG_PID, LOG_DAEMON, false);
}

}  // namespace

tl::expected<void, Failure> start_messages(const MountConfig& config) {
  const auto level = spdlog::level::from_str(config.log_level);
  if (level == spdlog::level::off && config.log_level != "off") {
    return tl::unexpected<Failure>(Failure{ExitCode::kUsage, "--log-level takes trace, debug, info, warning, error, critical or off"});
  }
  try {
    spdlog::init_thread_pool(kQueueSize, 1);
    auto logger = std::make_shared<spdlog::async_logger>("imafs", sink_for(config), spdlog::thread_pool(),
                                                         spdlog::async_overflow_policy::overrun_oldest);
    logger->set_level(level);
    logger->set_pattern(config.log_file.empty() && !config.foreground ? "%v" : "%Y-%m-%d %H:%M:%S.%e imafs[%P] %v");
    logger->flush_on(spdlog::level::info);
    spdlog::set_default_logger(std::move(logger));
  } catch (const spdlog::spdlog_ex& error) {
    return tl::unexpected<Failure>(Failure{ExitCode::kUsage, "--log-file '" + config.log_file + "': " + error.what()});
  }
  return {};
}

void say(const std::string& message) { spdlog::info("{}", without_fields(message)); }
void warn(const std::string& message) { spdlog::warn("{}", without_fields(message)); }
void end_messages() { spdlog::shutdown(); }

AuditSink audit_messages() {
  return [](const AuditRecord& record) {
    // Accepted rules are many and of little interest; everything else is what the operator runs this for.
    const bool quiet = record.type == AuditRecord::Type::kPolicyRule && record.succeeded;
    std::string message = to_text(record);
    if (messages_have_fields) {
      const auto add = [&](const char* name, const std::string& value) {
        if (value.empty() || value.find(kFieldMark) != std::string::npos) return;
        message += kFieldMark + (name + ('=' + value));
      };
      add("IMAFS_OP", record.op);
      add("IMAFS_CAUSE", record.cause);
      add("IMAFS_NAME", record.name.value_or(""));
      add("IMAFS_COMM", record.comm);
      add("IMAFS_PID", std::to_string(record.pid));
      add("IMAFS_UID", std::to_string(record.uid));
      add("IMAFS_RESULT", record.succeeded ? "1" : "0");
      add("IMAFS_ERRNO", record.errno_value == 0 ? "" : std::to_string(record.errno_value));
    }
    spdlog::log(quiet ? spdlog::level::debug : spdlog::level::warn, "{}", message);
  };
}

}  // namespace imafs
