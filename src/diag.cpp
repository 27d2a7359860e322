#include "imafs/diag.h"

#include <spdlog/async.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/sinks/syslog_sink.h>
#include <spdlog/spdlog.h>
#include <syslog.h>

namespace imafs {
namespace {

constexpr std::size_t kQueueSize = 8192;  // messages; the oldest give way, an open never waits for a disk

spdlog::sink_ptr sink_for(const MountConfig& config) {
  if (!config.log_file.empty()) return std::make_shared<spdlog::sinks::basic_file_sink_mt>(config.log_file);
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

void say(const std::string& message) { spdlog::info("{}", message); }
void warn(const std::string& message) { spdlog::warn("{}", message); }
void end_messages() { spdlog::shutdown(); }

AuditSink audit_messages() {
  return [](const AuditRecord& record) {
    // Accepted rules are many and of little interest; everything else is what the operator runs this for.
    const bool quiet = record.type == AuditRecord::Type::kPolicyRule && record.succeeded;
    spdlog::log(quiet ? spdlog::level::debug : spdlog::level::warn, "{}", to_text(record));
  };
}

}  // namespace imafs
