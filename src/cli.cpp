#include "imafs/cli.h"

#include <poll.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "imafs/cli_attest.h"
#include "imafs/cli_log.h"
#include "imafs/cli_policy.h"
#include "imafs/cli_report.h"
#include "imafs/cli_run.h"
#include "imafs/cli_top.h"
#include "imafs/cli_verify.h"
#include "imafs/mount_command.h"
#include "imafs/result.h"
#include "imafs/version.h"

namespace imafs {
namespace {

constexpr const char* kFooter =
    "Exit status: 0 done, 1 mismatch (verify), 2 usage, incomplete or could not check, 3 mount point, 4 backing,\n"
    "5 policy, 6 TPM, 7 PCR, 8 state or PCR in use, 9 no swtpm, 10 log does not fit, 11 state directory, 12 mount failed.";

// -o OPT,...: ours are taken out, the rest goes to libfuse and mount(2).
bool take_mount_options(MountConfig& config, const std::vector<std::string>& given, std::string& problem) {
  for (const std::string& list : given) {
    std::istringstream words(list);
    std::string word;
    while (std::getline(words, word, ',')) {
      const std::size_t equals = word.find('=');
      const std::string key = word.substr(0, equals);
      const std::string value = equals == std::string::npos ? "" : word.substr(equals + 1);
      if (key == "backing") config.backing = value;
      else if (key == "policy") config.policy = value;
      else if (key == "tpm") config.tpm = value;
      else if (key == "hash") config.hash = value;
      else if (key == "template") config.template_name = value;
      else if (key == "state") config.state = value;
      else if (key == "path-prefix") config.path_prefix = value;
      else if (key == "show-control") config.show_control = true;
      else if (key == "read-only-control") config.read_only_control = true;
      else if (key == "require-policy") config.require_policy = true;
      else if (key == "ro") config.read_only = true;
      else if (key == "rw" || key == "defaults" || key == "allow_other" || key == "default_permissions" || key == "nofail" ||
               key == "auto" || key == "noauto" || key == "_netdev" || key == "suid" || key == "dev" || key == "exec") {
        continue;  // what we do anyway, or what is for mount(8) alone
      } else if (key == "nosuid" || key == "nodev" || key == "noexec" || key == "noatime" || key == "relatime" ||
                 key == "nodiratime" || key == "sync" || key == "dirsync" || key == "max_read" || key == "fsname" || key == "subtype") {
        config.mount_options.push_back(word);
      } else {
        problem = "unknown mount option '" + word + "'";
        return false;
      }
    }
  }
  return true;
}

void add_mount_options(CLI::App& app, MountConfig& config, std::vector<std::string>& mount_options) {
  app.add_option("MOUNTPOINT", config.mountpoint, "where the measured tree shows");
  app.add_option("--backing", config.backing, "the tree to show; / works");
  app.add_option("--policy", config.policy, "rules at start: a file, or builtin:NAME[+NAME]; without it /etc/imafs/default.policy, or builtin:default if there is none");
  app.add_flag("--require-policy", config.require_policy, "refuse to start without a rule");
  app.add_option("--tpm", config.tpm, "auto, none, swtpm, device[:PATH] or a TCTI string")->capture_default_str();
  app.add_option("--pcr", config.pcr, "the PCR to extend")->capture_default_str();
  app.add_flag("--force", config.force, "take a PCR of 16 to 23 all the same");
  app.add_option("--hash", config.hash, "digest of files")->capture_default_str();
  app.add_option("--template", config.template_name, "template of entries")->capture_default_str();
  app.add_option("--template-fmt", config.template_format, "fields of a template of your own, joined by |");
  app.add_option("--ima", config.ima, "on or off; off: a plain passthrough mount")->capture_default_str();
  app.add_option("--state", config.state, "journal, private TPM and lock live here");
  app.add_option("--tpm-error", config.tpm_error, "deny or continue, while an entry cannot be extended")->capture_default_str();
  app.add_option("--path-prefix", config.path_prefix, "put before paths in the log");
  app.add_flag("--show-control", config.show_control, "list .ima in the root");
  app.add_flag("--read-only-control", config.read_only_control, "nobody writes in .ima: no policy, no critical data, no trimming");
  app.add_flag("--one-file-system", config.one_file_system, "do not cross mounts of the backing tree");
  app.add_flag("--new-log", config.new_log, "archive a journal that does not fit the TPM, and start anew");
  app.add_flag("--no-dedupe", config.no_dedupe, "log also what the log has already");
  app.add_option("--timeout", config.timeout_seconds, "seconds the kernel may believe names and attributes")->capture_default_str()->check(CLI::NonNegativeNumber);
  app.add_flag("--io-uring", config.io_uring, "speak FUSE over io_uring where the kernel has it enabled");
  app.add_flag("--no-passthrough", config.no_passthrough, "serve all data through the daemon");
  app.add_flag("--no-watch", config.no_watch, "do not ask the kernel to tell of changes beside the mount: names and attributes age by --timeout");
  app.add_flag("--no-low-latency", config.no_low_latency, "let idle processors sleep also while requests follow each other quickly");
  app.add_flag("--no-leases", config.no_leases, "do not watch writers beside the mount");
  app.add_flag("--no-seccomp", config.no_seccomp, "do not end the daemon when it makes a system call that it has no reason for");
  app.add_option("-o", mount_options, "mount options, as mount(8) gives them")->take_all();
  app.add_flag("-f,--foreground", config.foreground, "stay, and write messages to stderr");
  app.add_option("--log-level", config.log_level, "trace, debug, info, warning, error, critical, off")->capture_default_str();
  app.add_option("--log-file", config.log_file, "messages go here instead of to syslog");
}

// The library takes "-5" for a very large number.
std::string not_negative(const std::string& word) { return word.starts_with('-') ? "a number is wanted, not '" + word + "'" : ""; }

ExitCode complain(const std::string& problem) {
  std::fprintf(stderr, "imafs: %s (imafs --help lists the options)\n", printable(problem).c_str());
  return ExitCode::kUsage;
}

// As mount(8) calls a helper: mount.imafs SOURCE TARGET [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]. In our words.
std::vector<std::string> words_of_helper(int argc, char** argv) {
  std::vector<std::string> words, places;
  bool fake = false;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "-o" && i + 1 < argc) {
      words.insert(words.end(), {"-o", argv[++i]});
    } else if ((word == "-t" || word == "-N") && i + 1 < argc) {
      ++i;
    } else if (word.starts_with("-")) {
      fake = fake || (word != "-o" && word.find('f') != std::string::npos);
    } else {
      places.push_back(word);
    }
  }
  if (fake) return {"--version"};
  if (!places.empty() && places[0] != "none" && places[0] != "imafs") words.insert(words.end(), {"--backing", places[0]});
  if (places.size() > 1) words.push_back(places[1]);
  return words;
}

}  // namespace

namespace {

ExitCode run_words(int argc, char** argv) {
  const std::string program = argc > 0 ? argv[0] : "";
  std::vector<std::string> words(argv + (argc > 0 ? 1 : 0), argv + argc);
  if (program.substr(program.rfind('/') + 1).starts_with("mount.")) words = words_of_helper(argc, argv);
  CLI::App app{"imafs: a mount that measures what is read through it, as the kernel's IMA does", "imafs"};
  app.set_version_flag("--version", std::string("imafs ") + kVersion);
  app.footer(kFooter);
  app.require_subcommand(0, 1);
  MountConfig config;
  std::vector<std::string> mount_options;
  add_mount_options(app, config, mount_options);

  VerifyOptions verify;
  auto* const verify_command = app.add_subcommand("verify", "replay a log and compare it with the PCRs");
  auto* const verify_target = verify_command->add_option("TARGET", verify.target, "a mount point, a binary log, or a kexec blob");
  verify_command->add_option("--state", verify.state, "or a state directory: all its archives, and the live log")->excludes(verify_target);
  VerifyQuoteOptions verify_quote;
  auto* const quoted = verify_command->add_option("--quote", verify_quote.directory, "or a directory that 'imafs quote' made; needs no TPM");
  quoted->excludes(verify_target);
  verify_command->add_option("--nonce", verify_quote.nonce, "the nonce that the quote must have")->needs(quoted);
  verify_command->add_option("--ak", verify_quote.ak, "the key (PEM) that the quote must be signed by")->needs(quoted);
  verify_command->add_option("--allow", verify_quote.manifest, "the files that may be in the log: sha256sum lines, or a Keylime runtime policy")->needs(quoted);
  verify_command->add_option("--base", verify_quote.base, "begin where an earlier verification ended, as --save-base kept it")->needs(quoted);
  verify_command->add_option("--save-base", verify_quote.save_base, "keep where this one ends, if it is verified")->needs(quoted);
  verify_command->add_option("--pcr", verify.pcrs, "a PCR that the log must be about (repeatable); 10, or the mount's own, without it")->take_all()->check(CLI::Range(0, 23));
  verify_command->add_flag("--allow-sha1", verify.allow_sha1, "accept SHA-1: as the signature's hash, and padded with zeros in other banks");
  verify_command->add_option("--tcti", verify.tcti, "the TPM of a mount that was given an unusual TCTI string");
  verify_command->add_option("--pcr-values", verify.pcr_values, "a file of PCR values to compare with");
  verify_command->add_flag("--json", verify.json, "the result as JSON");

  QuoteOptions quote;
  auto* const quote_command = app.add_subcommand("quote", "the TPM's signature over the PCRs, with the log, for a verifier elsewhere");
  quote_command->add_option("MOUNTPOINT", quote.mountpoint, "the mount")->required();
  quote_command->add_option("--nonce", quote.nonce, "the verifier's, hexadecimal")->required();
  quote_command->add_option("-o,--output", quote.directory, "a directory for the files")->required();
  quote_command->add_option("--ak", quote.ak_handle, "a persistent key's handle, instead of imafs's own key");
  quote_command->add_option("--bank", quote.bank, "the bank to quote; that of boot_aggregate, or the first there is, without it");
  quote_command->add_option("--tcti", quote.tcti, "the TPM of a mount that was given an unusual TCTI string");
  AkOptions ak;
  auto* const ak_command = app.add_subcommand("ak", "the key that quotes are signed with, and its name, for a verifier to keep");
  ak_command->add_option("MOUNTPOINT", ak.mountpoint, "the mount")->required();
  ak_command->add_option("--ak", ak.ak_handle, "a persistent key's handle, instead of imafs's own key");
  ak_command->add_option("-o,--output", ak.output, "a file for the key as the TPM has it (TPM2B_PUBLIC)");
  ak_command->add_option("--tcti", ak.tcti, "the TPM of a mount that was given an unusual TCTI string");
  ManifestOptions manifest;
  auto* const manifest_command = app.add_subcommand("manifest", "reference digests of the files below a directory");
  manifest_command->add_option("DIR", manifest.directory, "the directory, or a mount")->required();
  manifest_command->add_option("-o,--output", manifest.output, "a file; one that was interrupted goes on");
  manifest_command->add_option("--format", manifest.format, "sha256sum or keylime")->capture_default_str();
  manifest_command->add_option("--hash", manifest.hash, "the digest")->capture_default_str();
  manifest_command->add_option("--exclude", manifest.excludes, "leave out names that begin with a match of this regular expression")->take_all();
  manifest_command->add_option("--path-prefix", manifest.path_prefix, "put before paths, as the mount does");
  manifest_command->add_flag("--one-file-system", manifest.one_file_system, "do not cross mounts");
  manifest_command->add_option("--own-entries", manifest.own_entries, "a mount: add what it logs by itself, for keylime (DIR, if that is one)");
  manifest_command->add_flag("--relative", manifest.relative, "paths as seen from DIR, for sha256sum -c in it");

  ReportOptions report;
  auto* const report_command = app.add_subcommand("report", "a log as one HTML page");
  report_command->add_option("TARGET", report.target, "a mount point, a state or archive directory, or a binary log")->required();
  report_command->add_option("-o,--output", report.output, "the page")->required();
  report_command->add_option("--pcr-values", report.pcr_values, "compare with these instead of the TPM");
  report_command->add_option("--tcti", report.tcti, "the TPM of a mount that was given an unusual TCTI string");
  TopOptions top;
  auto* const top_command = app.add_subcommand("top", "a mount as it works, on a terminal; q ends it");
  top_command->add_option("MOUNTPOINT", top.mountpoint, "the mount")->required();
  top_command->add_option("--interval", top.seconds, "seconds between two looks")->capture_default_str()->check(CLI::PositiveNumber);
  RunOptions run;
  auto* const run_command = app.add_subcommand("run", "run a command on a measured view of the tree, and say what it read");
  run_command->add_option("--root", run.root, "the tree")->capture_default_str();
  run_command->add_option("--policy", run.policy, "rules, as for a mount");
  run_command->add_option("--attest", run.attestation, "write the attestation here; - is standard output");
  run_command->add_option("--format", run.format, "in-toto, slsa, spdx or text")->capture_default_str();
  run_command->add_option("--subject", run.subjects, "a file that the command makes, for the attestation");
  run_command->add_option("--tpm", run.tpm, "as for a mount")->capture_default_str();
  run_command->add_option("--state", run.state, "keep journal and TPM here");
  run_command->add_option("COMMAND", run.command, "the command and its arguments, after --")->required();
  run_command->positionals_at_end();

  auto* const log = app.add_subcommand("log", "show the log with who opened what and when; trim it");
  LogExportOptions log_export;
  log->add_option("TARGET", log_export.target, "a mount point, a state or archive directory, or a binary log");
  log->add_option("--format", log_export.format, "text, json, ndjson, csv or cel-json")->capture_default_str();
  log->add_option("--path", log_export.path, "only names that match this glob");
  log->add_option("--uid", log_export.uid, "only entries of this user");
  log->add_option("--comm", log_export.comm, "only entries of programs of this name");
  log->add_flag("--violations", log_export.violations, "only violations");
  log->add_option("--from", log_export.from, "the first entry to show")->check(not_negative);
  log->add_flag("--follow", log_export.follow, "go on as the log grows");
  LogTrimOptions log_trim;
  auto* const trim = log->add_subcommand("trim", "verify, then move old entries to the archive");
  trim->add_option("MOUNTPOINT", log_trim.mountpoint, "the mount")->required();
  trim->add_option("--keep", log_trim.keep, "how many of the newest entries stay")->capture_default_str()->check(not_negative);
  trim->add_option("--tcti", log_trim.tcti, "the TPM of a mount that was given an unusual TCTI string");

  auto* const policy = app.add_subcommand("policy", "check, show, load and explain policies");
  policy->require_subcommand(1);
  std::vector<std::string> files;
  auto* const check = policy->add_subcommand("check", "say what is wrong with policy files");
  check->add_option("FILE", files, "policy files, mount points or builtin:NAME (the default policy without any)");
  std::string source, load_mount, load_file;
  bool replace = false;
  auto* const show = policy->add_subcommand("show", "print rules in normal form");
  show->add_option("SOURCE", source, "a mount point, a file, or builtin:NAME (the default policy without it)");
  auto* const load = policy->add_subcommand("load", "load rules into a mount");
  load->add_option("MOUNTPOINT", load_mount, "the mount")->required();
  load->add_option("FILE", load_file, "the rules; standard input without it");
  load->add_flag("--replace", replace, "the rules take the place of all that stand");
  ExplainOptions explain;
  auto* const why = policy->add_subcommand("explain", "which rule decides");
  why->add_option("PATH", explain.paths, "paths inside the mount")->required();
  why->add_option("--policy", explain.source, "a mount point, a file, or builtin:NAME (the default policy without it)");
  why->add_option("--uid", explain.uid, "who opens")->capture_default_str();
  why->add_option("--mask", explain.mask, "MAY_READ, MAY_WRITE, MAY_APPEND or MAY_EXEC");
  why->add_option("--func", explain.hook, "the hook");

  try {
    std::reverse(words.begin(), words.end());  // as CLI11 takes a vector
    app.parse(std::move(words));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {
      app.exit(error);
      return ExitCode::kOk;
    }
    return complain(error.what());
  }
  if (verify_command->parsed()) {
    verify_quote.json = verify.json;
    verify_quote.pcrs = verify.pcrs;
    verify_quote.allow_sha1 = verify.allow_sha1;
    if (!verify_quote.directory.empty()) return run_verify_quote(verify_quote);
    return verify.target.empty() && verify.state.empty() ? complain("verify what? A TARGET, --quote DIR, or --state DIR") : run_verify(verify);
  }
  if (report_command->parsed()) return run_report(report);
  if (top_command->parsed()) return run_top(top);
  if (run_command->parsed()) return static_cast<ExitCode>(run_run(run));
  if (quote_command->parsed()) return run_quote(quote);
  if (ak_command->parsed()) return run_ak(ak);
  if (manifest_command->parsed()) return run_manifest(manifest);
  if (trim->parsed()) return run_log_trim(log_trim);
  if (log->parsed()) return log_export.target.empty() ? complain("the log of what? A TARGET is missing") : run_log_export(log_export);
  if (check->parsed()) return policy_check(files);
  if (show->parsed()) return policy_show(source);
  if (load->parsed()) return policy_load(load_mount, load_file, replace);
  if (why->parsed()) return policy_explain(explain);
  std::string problem;
  if (!take_mount_options(config, mount_options, problem)) {
    std::fprintf(stderr, "imafs: %s\n", printable(problem).c_str());
    return ExitCode::kUsage;
  }
  return run_mount(std::move(config));
}

}  // namespace

ExitCode run_command_line(int argc, char** argv) {
  const ExitCode code = run_words(argc, argv);
  // A script takes what stands on standard output for the whole result unless the exit status says otherwise.
  std::cout.flush();
  errno = 0;
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0 && std::cout) return code;
  const int problem = errno;
  struct pollfd output {STDOUT_FILENO, 0, 0};
  const bool reader_has_gone = problem == EPIPE || (::poll(&output, 1, 0) == 1 && (output.revents & POLLERR) != 0);
  if (!reader_has_gone) std::fprintf(stderr, "imafs: %s\n", error_of(problem != 0 ? problem : EIO, "cannot write the output").what.c_str());
  return code == ExitCode::kOk ? ExitCode::kUsage : code;
}

}  // namespace imafs
