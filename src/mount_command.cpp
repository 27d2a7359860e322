#include "imafs/mount_command.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "imafs/boundary.h"
#include "imafs/control_dir.h"
#include "imafs/default_policy.h"
#include "imafs/diag.h"
#include "imafs/fuse_session.h"
#include "imafs/lease_keeper.h"
#include "imafs/lsm_labels.h"
#include "imafs/launcher.h"
#include "imafs/pcr_value.h"
#include "imafs/policy_parser.h"
#include "imafs/posix_file.h"
#include "imafs/privileges.h"
#include "imafs/service_manager.h"
#include "imafs/status_report.h"
#include "imafs/tpm_selection.h"
#include "imafs/version.h"
#include "last_run.h"

namespace imafs {
namespace {

constexpr std::size_t kMaxPolicyFile = 64 << 20;
constexpr std::chrono::milliseconds kTpmLook{250};  // who reads status or metrics waits no longer for the TPM
constexpr std::size_t kMaxHeld = 1000;  // files of a dead mount that are named one by one
constexpr auto kEndOfOthers = std::chrono::seconds(3);  // how long an unmounted daemon may take to end

tl::unexpected<Failure> refuse(ExitCode code, std::string sentence) {
  return tl::unexpected<Failure>(Failure{code, std::move(sentence)});
}

Checked<Policy> initial_policy(const CheckedConfig& checked) {
  const MountConfig& config = checked.config;
  constexpr std::string_view builtin = "builtin:";
  Policy policy;
  if (config.policy.starts_with(builtin)) {
    auto named = builtin_policy(std::string_view(config.policy).substr(builtin.size()));
    if (!named) return refuse(ExitCode::kPolicy, named.error().what);
    policy = std::move(*named);
  } else {
    const auto text = read_file(config.policy, kMaxPolicyFile);
    if (!text) return refuse(ExitCode::kPolicy, "policy: " + text.error().what);
    ParseContext context;
    context.origin = config.policy;
    context.custom_template = checked.custom.get();
    context.labels_known = labels_are_known();
    auto rules = parse_policy(*text, context);
    if (!rules) {
      std::string sentence = rules.error().to_text();
      sentence.pop_back();
      return refuse(ExitCode::kPolicy, std::move(sentence));
    }
    policy.rules = std::move(*rules);
    policy.is_builtin = false;
  }
  if (config.require_policy && policy.rules.empty()) return refuse(ExitCode::kPolicy, "the policy has no rule, and --require-policy is set");
  return policy;
}

std::string kernel_release() {
  struct utsname name {};
  return ::uname(&name) == 0 ? name.release : "";
}

ExitCode code_of_log(int code) {
  if (code == EALREADY) return ExitCode::kStateInUse;
  if (code == EBADMSG) return ExitCode::kLogDoesNotFit;
  return code == EIO ? ExitCode::kTpm : ExitCode::kState;
}

// How who may not call umount(2) takes a mount away.
CommandLine unmount_command(const MountConfig& config) { return {"fusermount3", "-u", "-q", "-z", "--", config.mountpoint}; }

// What is asked of the mount from outside the daemon: its root, and a file that is always there.
CommandLine look_at_root(const MountConfig& config) { return {config.mountpoint, ""}; }
CommandLine look_at_status(const MountConfig& config) { return {config.mountpoint, "/.ima/status"}; }

// The processes that do what the daemon may not. One that looks at the mount waits for the daemon, which may wait for the other.
struct Helpers {
  std::unique_ptr<Launcher> launcher;  // null: there is nothing that it would have to run
  std::unique_ptr<Launcher> looker;
};

// A private TPM has its state on the disk, too: what is wrong there is said as it is.
ExitCode code_of_tpm(int code) {
  if (code == ENOENT) return ExitCode::kNoSwtpm;
  return code == ENOSPC || code == EDQUOT || code == EROFS || code == EACCES ? ExitCode::kState : ExitCode::kTpm;
}

// Everything a mount is made of, in the order it is built; it is taken down the other way round.
class Mount {
 public:
  Mount(CheckedConfig checked, Policy policy, Helpers helpers)
      : checked_(std::move(checked)), config_(checked_.config), policy_(std::move(policy)), helpers_(std::move(helpers)) {}

  tl::expected<void, Failure> build();
  tl::expected<void, Failure> serve(std::function<void()> ready);

 private:
  tl::expected<void, Failure> open_log();
  void give_up_system_calls();
  RunProgram programs() {
    return [this](const CommandLine& command) { return helpers_.launcher ? helpers_.launcher->run(command) : Result<int>(fail(EPERM, "no program may be run")); };
  }
  Result<std::vector<LogEntry>> opening_entries() const;
  tl::expected<void, Failure> measure_start();
  SessionOptions session_options();
  StatusReport report() const;
  std::vector<std::pair<std::string, std::string>> options_in_force() const;
  void measure_held_files();
  void end_private_tpm() {
    if (tpm_.process) tpm_.process->stop();
  }

  const CheckedConfig checked_;
  const MountConfig& config_;
  Policy policy_;  // moved into the gate
  const Helpers helpers_;
  std::string filter_ = "off";  // what status says of the filter of system calls
  const std::int64_t started_at_ = ::time(nullptr);
  std::shared_ptr<LogLock> state_lock_;  // given back last
  std::optional<LastRun> crashed_;       // the daemon before this one did not end cleanly
  SelectedTpm tpm_;
  std::unique_ptr<MeasurementLog> log_;
  std::unique_ptr<BackingTree> tree_;
  std::unique_ptr<MeasureGate> gate_;
  std::unique_ptr<ControlDir> control_;
  std::unique_ptr<FuseSession> session_;
};

tl::expected<void, Failure> Mount::open_log() {
  if (auto made = make_directories(config_.state, 0700); !made) return refuse(ExitCode::kState, "state directory: " + made.error().what);
  // The lock comes before the TPM: a private swtpm belongs to whoever holds the directory.
  auto lock = LogLock::of_directory(config_.state, kEndOfOthers);
  if (!lock) return refuse(lock.error().code == EALREADY ? ExitCode::kStateInUse : ExitCode::kState, lock.error().what);
  state_lock_ = std::make_shared<LogLock>(std::move(*lock));
  crashed_ = LastRun::of(config_.state);
  const auto is_ours = [&](PcrExtender& tpm) { return journal_fits(config_.state, tpm); };
  auto selected = select_tpm(config_.tpm, config_.pcr, config_.state + "/tpm", is_ours, programs());
  if (!selected) return refuse(code_of_tpm(selected.error().code), selected.error().what);
  tpm_ = std::move(*selected);

  LogOptions options;
  options.state_directory = config_.state;
  options.state_lock = state_lock_;
  options.default_pcr = config_.pcr;
  options.file_hash = checked_.file_hash;
  options.dedupe = !config_.no_dedupe;
  options.continue_on_tpm_error = config_.tpm_error == "continue";
  options.new_log = config_.new_log;
  options.mount_is_boot = tpm_.process && !tpm_.process->was_running();
  auto log = MeasurementLog::open(std::move(options), tpm_.extender.get());
  if (!log) {
    if (tpm_.process && !tpm_.process->was_running()) end_private_tpm();
    return refuse(code_of_log(log.error().code), log.error().what);
  }
  log_ = std::move(*log);
  say("TPM: " + tpm_.reason);
  say("log: " + log_->start().message);
  return {};
}

// What every log of this mount begins with: boot_aggregate, then what imafs says about itself if the policy asks for that.
Result<std::vector<LogEntry>> Mount::opening_entries() const {
  const auto aggregate = boot_aggregate(tpm_.extender.get(), checked_.file_hash);
  if (!aggregate) return fail(aggregate.error());
  std::optional<Digest> legacy;
  if (checked_.form->has(FieldId::kD)) {
    const auto sha1 = boot_aggregate(tpm_.extender.get(), HashAlgorithm::kSha1);
    if (sha1 && sha1->algorithm() == HashAlgorithm::kSha1) legacy = *sha1;
  }
  std::vector<LogEntry> entries{gate_->boot_aggregate_entry(*aggregate, legacy)};
  std::string start = std::string("imafs ") + kVersion;
  if (crashed_) start += ";after=crash";
  for (const auto& [key, value] : options_in_force()) start += ";" + key + "=" + value;
  for (const auto& [label, name, data] : {std::array<std::string, 3>{"kernel_info", "kernel_version", kernel_release()},
                                          std::array<std::string, 3>{"imafs", "start", start},
                                          std::array<std::string, 3>{"imafs", "policy", to_text(*gate_->policy())}}) {
    if (auto entry = gate_->own_data_entry(label, name, data)) entries.push_back(std::move(*entry));
  }
  return entries;
}

tl::expected<void, Failure> Mount::measure_start() {
  if (!gate_->options().enabled) return {};
  auto entries = opening_entries();
  if (!entries) return refuse(ExitCode::kTpm, entries.error().what);
  if (!log_->start().needs_boot_aggregate) entries->erase(entries->begin());
  for (const LogEntry& entry : *entries) {
    if (auto stored = log_->append(entry, own_origin); !stored) return refuse(code_of_log(stored.error().code), stored.error().what);
  }
  log_->begin_new_logs_with([this] { return opening_entries(); });
  if (crashed_) measure_held_files();
  return {};
}

// Who had a file of the dead daemon's mount open reads on from it, and nothing tells who writes to it meanwhile: each is a
// violation of its own.
void Mount::measure_held_files() {
  const auto held = crashed_->held_files(config_.mountpoint, kMaxHeld);
  for (const std::string& path : held) (void)gate_->store_violation(Violation::kToMToU, NamedFile{-1, path, 0, 0}, Requester{});
  say("the daemon before this one ended without being stopped; " + std::to_string(held.size()) + " files of its mount are still held open");
}

tl::expected<void, Failure> Mount::build() {
  say("policy: " + config_.policy + " (" + std::to_string(policy_.rules.size()) + " rules)");
  auto tree = BackingTree::open({config_.backing, config_.one_file_system});
  if (!tree) return refuse(ExitCode::kBacking, tree.error().what);
  tree_ = std::move(*tree);
  if (auto opened = open_log(); !opened) return opened;

  GateOptions options;
  options.enabled = config_.ima == "on";
  options.file_hash = checked_.file_hash;
  options.form = checked_.form;
  options.pcr = config_.pcr;
  options.path_prefix = config_.path_prefix;
  gate_ = std::make_unique<MeasureGate>(options, *log_, audit_messages(), std::move(policy_));
  auto built = measure_start();
  if (built) {
    ControlDir::Sources sources{*gate_, *log_, [this] { return to_json(report()); }, [this] { return to_prometheus(report()); },
                                {},     checked_.custom.get(), ::geteuid(), ::getegid(), config_.read_only_control};
    control_ = ControlDir::create(std::move(sources));
    auto session = FuseSession::mount(session_options(), *tree_, *gate_, *control_);
    if (!session) {
      built = refuse(session.error().code == EBUSY ? ExitCode::kMountpoint : ExitCode::kMountFailed, session.error().what);
    } else {
      session_ = std::move(*session);
      if (auto noted = LastRun::begin(config_.state, config_.mountpoint); !noted) warn(noted.error().what);
    }
  }
  if (!built) {
    log_.reset();
    end_private_tpm();
  }
  return built;
}

tl::expected<void, Failure> Mount::serve(std::function<void()> ready) {
  give_up_system_calls();
  const auto served = session_->run(std::move(ready));
  session_.reset();
  log_.reset();
  LastRun::end(config_.state);
  end_private_tpm();
  if (!served) return refuse(ExitCode::kMountFailed, served.error().what);
  return {};
}

// All that needs more than the daemon's everyday calls is done: mounting, and for a plain user the setuid program that mounts.
void Mount::give_up_system_calls() {
  if (config_.no_seccomp) return warn("system calls are not filtered: --no-seccomp");
  FilterOptions options;
  options.io_uring = config_.io_uring;
  options.programs = tpm_.tcti.starts_with("cmd:");
  const auto filtered = filter_system_calls(options);
  if (filtered) filter_ = "on";
  if (filtered) return;
  forbid_new_privileges();
  warn("system calls are not filtered: " + filtered.error().what);
}

// Programs that are wanted after the daemon has given up running any.
std::vector<CommandLine> later_programs(const MountConfig& config) {
  std::vector<CommandLine> commands;
  if (config.tpm == "auto" || config.tpm == "swtpm") {
    if (auto swtpm = SwtpmProcess::command_line(config.state + "/tpm")) commands.push_back(std::move(*swtpm));
  }
  if (::geteuid() != 0) commands.push_back(unmount_command(config));
  return commands;
}

SessionOptions Mount::session_options() {
  SessionOptions options;
  options.mountpoint = config_.mountpoint;
  options.backing = config_.backing;
  options.allow_other = ::geteuid() == 0;
  options.show_control = config_.show_control;
  options.timeout_seconds = config_.timeout_seconds;
  options.watch = !config_.no_watch;
  options.low_latency = !config_.no_low_latency;
  options.io_uring = config_.io_uring;
  options.passthrough = !config_.no_passthrough && ::geteuid() == 0;
  options.leases = !config_.no_leases;
  options.read_only = config_.read_only;
  if (::geteuid() != 0) options.unmount = [this] { (void)programs()(unmount_command(config_)); };
  options.look_at_root = [this] { (void)helpers_.looker->run(look_at_root(config_)); };
  options.extra_mount_options = config_.mount_options;
  // Now: later the mount may stand over them, and asking would be asking ourselves.
  for (const std::string& path : {config_.state, config_.log_file}) {
    struct stat attr {};
    if (!path.empty() && ::stat(path.c_str(), &attr) == 0) options.own_files.emplace_back(attr.st_dev, attr.st_ino);
  }
  return options;
}

std::vector<std::pair<std::string, std::string>> Mount::options_in_force() const {
  std::vector<std::pair<std::string, std::string>> options{
          {"hash", std::string(name_of(checked_.file_hash))},
          {"template", checked_.form->logged_name()},
          {"pcr", std::to_string(config_.pcr)},
          {"policy", config_.policy},
          {"ima", config_.ima},
          {"tpm", config_.tpm},
          {"tpm-error", config_.tpm_error},
          {"path-prefix", config_.path_prefix}};
  // Said only where it is set: what a start is logged as stays the same for all others.
  if (config_.read_only_control) options.emplace_back("read-only-control", "on");
  return options;
}

StatusReport Mount::report() const {
  StatusReport report;
  report.version = kVersion;
  report.mount_point = config_.mountpoint;
  report.backing = config_.backing;
  report.started_at = started_at_;
  report.options = options_in_force();
  report.options.emplace_back("state", config_.state);
  report.options.emplace_back("tcti", tpm_.tcti);
  report.options.emplace_back("base", log_->base());
  report.options.emplace_back("seccomp", filter_);
  report.policy = gate_->policy();
  report.last_policy_error = control_->last_policy_error();
  report.policy_updates_completed = control_->policy_updates().completed;
  report.policy_updates_failed = control_->policy_updates().failed;
  report.tpm.kind = !tpm_.extender ? "none" : tpm_.process ? "swtpm" : tpm_.tcti.starts_with("device:") ? "device" : "tcti";
  report.tpm.description = tpm_.extender ? tpm_.extender->description() : "none";
  report.tpm.why = tpm_.reason;
  if (tpm_.extender) {
    TpmReading reading = log_->look_at_tpm(kTpmLook);
    report.tpm.banks = tpm_.extender->banks();
    report.tpm.replayed = log_->replayed();
    report.tpm.read = std::move(reading.pcrs);
    report.tpm.read_error = std::move(reading.error);
    if (reading.late) report.tpm.read_error = "the TPM has not answered for " + std::to_string(kTpmLook.count()) + " ms: these are older values";
  }
  report.tpm.health = log_->tpm_health();
  report.room = log_->room();
  report.counters = {{"imafs_tpm_extends_total", "TPM2_PCR_Extend commands.", report.tpm.health.extends},
                     {"imafs_tpm_extend_microseconds_total", "Time these took.", report.tpm.health.extend_ns / 1000}};
  report.entries = log_->count();
  report.violations = log_->violations();
  report.log_start = log_->start().message;
  if (!session_) return report;
  const auto health = session_->health();
  if (health.files.leases_unsupported) report.degraded.push_back({"no-leases", "on a file system whose leases say nothing of its writers: each open hashes"});
  if (health.files.layers_unwatched) report.degraded.push_back({"layers", "overlayfs does not tell who writes to its layers: each open hashes"});
  if (health.files.writers_unreported) {
    report.degraded.push_back({"writers-unreported", "without fanotify a file is hashed again when nobody had it open for a second"});
  }
  if (health.files.owed_violations > 0) {
    report.degraded.push_back({"violations-owed", std::to_string(health.files.owed_violations) + " files are not opened until their violation is logged"});
  }
  if (health.files.passthrough_unsupported) report.degraded.push_back({"no-passthrough", "some files are read and written through the daemon"});
  if (!tree_->is_private()) report.degraded.push_back({"shared-view", "mounts made later in the backing tree show in the mount"});
  report.counters.insert(report.counters.end(), {
                     {"imafs_requests_total", "Requests of the kernel.", health.requests},
                     {"imafs_known_inodes", "Inodes the kernel knows.", health.known_inodes},
                     {"imafs_open_files", "Open handles of regular files.", health.files.open},
                     {"imafs_watched_files", "Files a lease watches.", health.files.leased},
                     {"imafs_changes_are_told", "1 if the kernel tells of changes beside the mount.", health.watched ? 1U : 0U},
                     {"imafs_measured_total", "Measurements handed to the log.", health.files.measured},
                     {"imafs_cache_hits_total", "Opens of files that were measured already.", health.files.cache_hits},
                     {"imafs_hashed_bytes_total", "Bytes hashed.", health.files.hashed_bytes},
                     {"imafs_inline_hashes", "Request threads that measure a file themselves, now.", health.files.inline_hashes}});
  return report;
}

ExitCode tell(const Failure& failure) {
  std::fprintf(stderr, "imafs: %s\n", failure.sentence.c_str());
  return failure.code;
}

// What the process that serves gives up before it has a thread. A plain user still has a setuid program to run, which mounts.
void give_up_privileges() {
  // No process of the same user may attach, or read the memory: what is measured is decided there.
  ::prctl(PR_SET_DUMPABLE, 0);
  keep_capabilities(daemon_capabilities());
  if (::geteuid() == 0) forbid_new_privileges();
}

Result<Helpers> start_helpers(const MountConfig& config) {
  const auto restrict_to = [](std::uint64_t capabilities) {
    return [capabilities] {
      ::prctl(PR_SET_DUMPABLE, 0);
      keep_capabilities(capabilities);
      if (::geteuid() == 0) forbid_new_privileges();
    };
  };
  Helpers helpers;
  if (auto programs = later_programs(config); !programs.empty()) {
    auto launcher = Launcher::start(std::move(programs), restrict_to(launcher_capabilities()));
    if (!launcher) return fail(launcher.error());
    helpers.launcher = std::move(*launcher);
  }
  auto looker = Launcher::start({look_at_root(config), look_at_status(config)}, restrict_to(looker_capabilities()), look_at_mount);
  if (!looker) return fail(looker.error());
  helpers.looker = std::move(*looker);
  return helpers;
}

tl::expected<void, Failure> serve_mount(CheckedConfig checked, Policy policy, const std::function<void()>& ready) {
  auto helpers = start_helpers(checked.config);
  if (!helpers) return refuse(ExitCode::kMountFailed, helpers.error().what);
  give_up_privileges();
  LeaseKeeper::block_signals();
  if (auto started = start_messages(checked.config); !started) return started;
  send_complaints_to([](const std::string& sentence) { warn(sentence); }, end_messages);
  if (const int given = descriptor_named(checked.config.log_file); given >= 0) ::close(given);  // opened anew
  const CommandLine status = look_at_status(checked.config);
  Launcher& looker = *helpers->looker;
  Mount mount(std::move(checked), std::move(policy), std::move(*helpers));
  auto result = mount.build();
  if (result) {
    // A request that comes back through the kernel shows that the mount still answers.
    const Watchdog watchdog([&] { return looker.run(status).has_value(); });
    result = mount.serve([&] {
      notify_service_manager("READY=1");
      ready();
    });
    notify_service_manager("STOPPING=1");
  }
  if (!result) warn(result.error().sentence);
  end_messages();
  return result;
}

// From the process that mounts to the one that was called: one byte of status, then a sentence. Ready is answered by a byte:
// without it the caller is gone (Ctrl-C), and nobody wants the mount any more.
constexpr char kReady = 0;

[[noreturn]] void serve_in_background(CheckedConfig checked, Policy policy, UniqueFd pipe) noexcept {
  ::setsid();
  bool told = false;
  const auto ready = [&] {
    told = true;
    char answer = 0;
    if (::send(pipe.get(), &kReady, 1, MSG_NOSIGNAL) != 1 || ::read(pipe.get(), &answer, 1) != 1) ::kill(::getpid(), SIGTERM);
    pipe.reset();
    const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    for (int fd = 0; fd < 3; ++fd) ::dup2(null.get(), fd);
    (void)!::chdir("/");
  };
  tl::expected<void, Failure> result;
  if (!contain("imafs gives up", [&] { result = serve_mount(std::move(checked), std::move(policy), ready); })) {
    result = refuse(ExitCode::kInternal, "out of memory, or a fault of imafs itself");
  }
  if (!result && !told) {
    const std::string text = std::string(1, static_cast<char>(result.error().code)) + result.error().sentence;
    (void)write_all(pipe.get(), as_bytes(text));
  }
  std::_Exit(result ? 0 : static_cast<int>(result.error().code));
}

ExitCode wait_for_background(UniqueFd pipe, pid_t child) {
  std::string text;
  std::array<char, 4096> part{};
  for (;;) {
    const ssize_t got = ::read(pipe.get(), part.data(), part.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    text.append(part.data(), static_cast<std::size_t>(got));
    if (text[0] == kReady) {
      sigset_t all;
      ::sigfillset(&all);
      ::sigprocmask(SIG_BLOCK, &all, nullptr);  // from here on it stands, and we say so
      (void)::send(pipe.get(), &kReady, 1, MSG_NOSIGNAL);
      return ExitCode::kOk;
    }
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  if (text.empty()) return tell({ExitCode::kMountFailed, "the mounting process ended without a word"});
  return tell({static_cast<ExitCode>(text[0]), text.substr(1)});
}

}  // namespace

ExitCode run_mount(MountConfig config) {
  auto checked = check_config(std::move(config));
  if (!checked) return tell(checked.error());
  for (const std::string& warning : checked->warnings) std::fprintf(stderr, "imafs: warning: %s\n", warning.c_str());
  // The rules may come through a descriptor of the caller's (<(...) in a shell), so they are read before those are closed.
  auto policy = initial_policy(*checked);
  if (!policy) return tell(policy.error());
  close_inherited_descriptors(descriptor_named(checked->config.log_file));
  if (checked->config.foreground) {
    const auto result = serve_mount(std::move(*checked), std::move(*policy), [] {});
    return result ? ExitCode::kOk : tell(result.error());
  }
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) return tell({ExitCode::kMountFailed, errno_error("socketpair").what});
  UniqueFd reader(ends[0]), writer(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) return tell({ExitCode::kMountFailed, errno_error("fork").what});
  if (child == 0) {
    reader.reset();
    serve_in_background(std::move(*checked), std::move(*policy), std::move(writer));
  }
  writer.reset();
  return wait_for_background(std::move(reader), child);
}

}  // namespace imafs
