#include "imafs/cli_report.h"

#include <chrono>
#include <cstdio>

#include "imafs/cli_verify.h"
#include "imafs/log_source.h"
#include "imafs/mount_info.h"
#include "imafs/posix_file.h"
#include "imafs/report.h"

namespace imafs {
namespace {

constexpr std::size_t kMaxPolicy = std::size_t{64} << 20;

ExitCode complain(const Error& error) {
  std::fprintf(stderr, "imafs: %s\n", printable(error.what).c_str());
  return error.code == EBADMSG || error.code == ENODATA ? ExitCode::kMismatch : ExitCode::kUsage;
}

}  // namespace

ExitCode run_report(const ReportOptions& options) {
  ReportSource source;
  source.target = options.target;
  source.made_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  if (const auto files = ControlFiles::open(options.target)) {
    if (const auto mount = read_mount_info(*files)) source.backing = mount->backing;
    if (auto policy = files->read("policy", kMaxPolicy)) source.policy = std::move(*policy);
  }
  auto log = read_log(options.target);
  if (!log) return complain(log.error());
  source.log = std::move(*log);
  VerifyOptions verify;
  verify.target = options.target;
  verify.pcr_values = options.pcr_values;
  verify.tcti = options.tcti;
  auto verification = verify_target(verify);
  if (!verification) return complain(verification.error());
  source.verification = std::move(*verification);
  const std::string page = report_page(source);
  if (auto written = write_file_atomically(options.output, page, 0644); !written) return complain(written.error());
  return ExitCode::kOk;
}

}  // namespace imafs
