#include "imafs/attestation.h"

#include <sys/random.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <ctime>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "imafs/bytes.h"
#include "imafs/digest.h"
#include "imafs/manifest.h"

namespace imafs {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kMonitor = "urn:imafs:run:v1";

std::string time_text(std::int64_t seconds) {
  const std::time_t time = seconds;
  struct tm parts {};
  ::gmtime_r(&time, &parts);
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text.data();
}

// JSON has no bytes: such a name is shown with marks for what is no UTF-8, and exactly as a URI.
bool is_text(std::string_view name) {
  while (!name.empty()) {
    const std::size_t size = utf8_sequence(name);
    if (size == 0) return false;
    name.remove_prefix(size);
  }
  return true;
}

std::string percent_encoded(const std::string& name) {
  constexpr std::string_view digits = "0123456789ABCDEF", plain = "/-._~";
  std::string text;
  for (const char c : name) {
    const auto byte = static_cast<std::uint8_t>(c);
    if (byte < 0x80 && (std::isalnum(byte) != 0 || plain.find(c) != std::string_view::npos)) {
      text += c;
    } else {
      text += '%';
      text += digits[byte >> 4];
      text += digits[byte & 15];
    }
  }
  return text;
}

// For a comment: a name cannot end its line.
std::string in_one_line(const std::string& name) { return printable(name) == name ? name : "file://" + percent_encoded(name); }

std::string lines_of(const RunRecord& run) {
  std::string text;
  for (const FileDigest& file : run.read) text += sum_line({file.name, to_hex(file.digest)});
  return text;
}

std::string sha256_of(const std::string& text) { return to_hex(hash_of(HashAlgorithm::kSha256, as_bytes(text)).bytes()); }

Json descriptor(const FileDigest& file) {
  Json json{{"name", file.name}, {"digest", {{file.algorithm, to_hex(file.digest)}}}};
  if (!is_text(file.name)) json["uri"] = "file://" + percent_encoded(file.name);
  return json;
}

Json descriptors(const std::vector<FileDigest>& files) {
  Json list = Json::array();
  for (const FileDigest& file : files) list.push_back(descriptor(file));
  return list;
}

Json statement(const RunRecord& run, const char* predicate_type, Json predicate) {
  Json subject = descriptors(run.subjects);
  if (subject.empty()) subject.push_back({{"name", "the files that were read"}, {"digest", {{"sha256", sha256_of(lines_of(run))}}}});
  return {{"_type", "https://in-toto.io/Statement/v1"},
          {"subject", std::move(subject)},
          {"predicateType", predicate_type},
          {"predicate", std::move(predicate)}};
}

constexpr std::array kNotCovered{
    "network",
    "processes outside that are spoken to in other ways",
    "environment variables",
    "the clock",
    "descriptors 0 to 2, except standard input that is a file of the tree, still has its name and is open for reading only",
    "devices: those in the run's /dev, and for root any that mknod(2) or devtmpfs gives, disks and memory among them",
    "file systems that the command mounts itself",
    "/proc and /sys, and what they lead to: imafs's own program is process 1",
    "the private /tmp and /dev/shm"};

Json coverage(const RunRecord& run) {
  Json gone = Json::array();
  for (const FileDigest& file : run.gone) gone.push_back(file.algorithm + ":" + to_hex(file.digest));
  return {{"policy", run.policy},
          {"covers", "every file below the root that was opened for reading or run, with the digest of the bytes that were read"},
          {"notCovered", kNotCovered},
          {"goneAtTheEnd", std::move(gone)},
          {"changedWhileRead", run.violations}};
}

Json runtime_trace(const RunRecord& run) {
  std::string event;
  for (const std::string& word : run.command) event += (event.empty() ? "" : " ") + word;
  return statement(run, "https://in-toto.io/attestation/runtime-trace/v0.1",
                   {{"monitor", {{"type", kMonitor}, {"configSource", {{"name", "imafs"}, {"annotations", {{"version", run.version}}}}}, {"tracePolicy", coverage(run)}}},
                    {"monitoredProcess", {{"hostID", "urn:imafs:host:" + run.host}, {"type", "urn:imafs:command:v1"}, {"event", event}}},
                    {"monitorLog",
                     {{"process", Json::array({{{"arguments", run.command}, {"workingDirectory", run.directory}, {"exitCode", run.exit_code}}})},
                      {"fileAccess", descriptors(run.read)}}},
                    {"metadata", {{"buildStartedOn", time_text(run.started)}, {"buildFinishedOn", time_text(run.finished)}}}});
}

Json provenance(const RunRecord& run) {
  return statement(run, "https://slsa.dev/provenance/v1",
                   {{"buildDefinition",
                     {{"buildType", "urn:imafs:command:v1"},
                      {"externalParameters", {{"command", run.command}, {"workingDirectory", run.directory}}},
                      {"internalParameters", {{"coverage", coverage(run)}}},
                      {"resolvedDependencies", descriptors(run.read)}}},
                    {"runDetails",
                     {{"builder", {{"id", kMonitor}, {"version", {{"imafs", run.version}}}}},
                      {"metadata", {{"startedOn", time_text(run.started)}, {"finishedOn", time_text(run.finished)}}}}}});
}

// SPDX 2.3 names these; empty: it does not know the algorithm.
std::string spdx_algorithm(const std::string& algorithm) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 7> names{{{"sha1", "SHA1"}, {"sha224", "SHA224"}, {"sha256", "SHA256"}, {"sha384", "SHA384"},
                                                                                {"sha512", "SHA512"}, {"md5", "MD5"}, {"sha3-256", "SHA3-256"}}};
  for (const auto& [ours, theirs] : names) {
    if (algorithm == ours) return std::string(theirs);
  }
  return "";
}

std::string new_uuid() {
  std::array<std::uint8_t, 16> random{};
  (void)!::getrandom(random.data(), random.size(), 0);
  random[6] = static_cast<std::uint8_t>((random[6] & 0x0f) | 0x40);
  random[8] = static_cast<std::uint8_t>((random[8] & 0x3f) | 0x80);
  std::string text = to_hex(random);
  for (const std::size_t at : {20, 16, 12, 8}) text.insert(at, 1, '-');
  return text;
}

Json spdx(const RunRecord& run) {
  Json files = Json::array();
  Json relationships = Json::array();
  std::string comment = "Every file below the root that was opened for reading or run. Not covered:";
  for (const char* what : kNotCovered) comment += std::string(" ") + what + ";";
  for (const FileDigest& file : run.gone) comment += "\ngone at the end: " + file.algorithm + ":" + to_hex(file.digest);
  for (const std::string& name : run.violations) comment += "\nchanged while it was read: " + in_one_line(name);
  for (std::size_t i = 0; i < run.read.size(); ++i) {
    // A file needs a SHA1 to be one in SPDX; of a state that was overwritten there is none any more.
    if (run.read[i].sha1.empty()) {
      comment += "\nan earlier state: " + run.read[i].algorithm + ":" + to_hex(run.read[i].digest) + " " + in_one_line(run.read[i].name);
      continue;
    }
    const std::string id = "SPDXRef-File-" + std::to_string(i + 1);
    Json checksums = Json::array({{{"algorithm", "SHA1"}, {"checksumValue", to_hex(run.read[i].sha1)}}});
    const std::string algorithm = spdx_algorithm(run.read[i].algorithm);
    if (!algorithm.empty() && algorithm != "SHA1") checksums.push_back({{"algorithm", algorithm}, {"checksumValue", to_hex(run.read[i].digest)}});
    const bool readable = is_text(run.read[i].name);
    files.push_back({{"SPDXID", id},
                     {"fileName", "." + (readable ? run.read[i].name : percent_encoded(run.read[i].name))},
                     {"checksums", std::move(checksums)},
                     {"licenseConcluded", "NOASSERTION"},
                     {"copyrightText", "NOASSERTION"}});
    if (!readable) files.back()["comment"] = "fileName is percent-encoded: the name is not UTF-8";
    relationships.push_back({{"spdxElementId", "SPDXRef-DOCUMENT"}, {"relationshipType", "DESCRIBES"}, {"relatedSpdxElement", id}});
  }
  return {{"spdxVersion", "SPDX-2.3"},
          {"dataLicense", "CC0-1.0"},
          {"SPDXID", "SPDXRef-DOCUMENT"},
          {"name", "files read by " + (run.command.empty() ? std::string("nothing") : run.command[0])},
          {"documentNamespace", "urn:uuid:" + new_uuid()},  // one document each
          {"comment", std::move(comment)},
          {"creationInfo", {{"created", time_text(run.finished)}, {"creators", Json::array({"Tool: imafs-" + run.version})}}},
          {"files", std::move(files)},
          {"relationships", std::move(relationships)}};
}

}  // namespace

std::string attest(const RunRecord& run, const std::string& format) {
  if (format == "text") {
    std::string text;
    for (const FileDigest& file : run.read) {
      // What sha256sum(1) cannot check would fail the whole list.
      if (file.is_earlier) text += "# an earlier state: " + file.algorithm + ":" + to_hex(file.digest) + "  " + in_one_line(file.name) + "\n";
      else if (file.algorithm != "sha256") text += "# " + file.algorithm + ":" + to_hex(file.digest) + "  " + in_one_line(file.name) + "\n";
      else text += sum_line({file.name, to_hex(file.digest)});
    }
    for (const char* what : kNotCovered) text += std::string("# not covered: ") + what + "\n";
    for (const FileDigest& file : run.gone) text += "# gone at the end: " + to_hex(file.digest) + "\n";
    for (const std::string& name : run.violations) text += "# changed while it was read: " + in_one_line(name) + "\n";
    return text;
  }
  Json json;
  if (format == "in-toto") json = runtime_trace(run);
  else if (format == "slsa") json = provenance(run);
  else if (format == "spdx") json = spdx(run);
  else return "";
  return json.dump(1, ' ', true, Json::error_handler_t::replace) + "\n";
}

}  // namespace imafs
