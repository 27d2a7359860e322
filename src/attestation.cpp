#include "imafs/attestation.h"

#include <array>
#include <ctime>
#include <nlohmann/json.hpp>

#include "imafs/digest.h"

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

std::string lines_of(const RunRecord& run) {
  std::string text;
  for (const FileDigest& file : run.read) text += to_hex(file.digest) + "  " + file.name + "\n";
  return text;
}

std::string sha256_of(const std::string& text) { return to_hex(hash_of(HashAlgorithm::kSha256, as_bytes(text)).bytes()); }

Json descriptor(const FileDigest& file) { return {{"name", file.name}, {"digest", {{file.algorithm, to_hex(file.digest)}}}}; }

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

constexpr std::array kNotCovered{"network", "environment variables", "the clock", "/proc, /sys, /dev and the private /tmp", "standard input"};

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
  return statement(run, "https://in-toto.io/attestation/runtime-trace/v0.2",
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

Json spdx(const RunRecord& run) {
  Json files = Json::array();
  Json relationships = Json::array();
  std::string comment = "Every file below the root that was opened for reading or run. Not covered:";
  for (const char* what : kNotCovered) comment += std::string(" ") + what + ";";
  for (const FileDigest& file : run.gone) comment += "\ngone at the end: " + file.algorithm + ":" + to_hex(file.digest);
  for (const std::string& name : run.violations) comment += "\nchanged while it was read: " + name;
  for (std::size_t i = 0; i < run.read.size(); ++i) {
    // A file needs a SHA1 to be one in SPDX; of a state that was overwritten there is none any more.
    if (run.read[i].sha1.empty()) {
      comment += "\nan earlier state: " + run.read[i].algorithm + ":" + to_hex(run.read[i].digest) + " " + run.read[i].name;
      continue;
    }
    const std::string id = "SPDXRef-File-" + std::to_string(i + 1);
    files.push_back({{"SPDXID", id},
                     {"fileName", "." + run.read[i].name},
                     {"checksums", Json::array({{{"algorithm", "SHA1"}, {"checksumValue", to_hex(run.read[i].sha1)}},
                                                {{"algorithm", "SHA256"}, {"checksumValue", to_hex(run.read[i].digest)}}})},
                     {"licenseConcluded", "NOASSERTION"},
                     {"copyrightText", "NOASSERTION"}});
    relationships.push_back({{"spdxElementId", "SPDXRef-DOCUMENT"}, {"relationshipType", "DESCRIBES"}, {"relatedSpdxElement", id}});
  }
  return {{"spdxVersion", "SPDX-2.3"},
          {"dataLicense", "CC0-1.0"},
          {"SPDXID", "SPDXRef-DOCUMENT"},
          {"name", "files read by " + (run.command.empty() ? std::string("nothing") : run.command[0])},
          {"documentNamespace", "urn:imafs:spdx:" + sha256_of(lines_of(run))},
          {"comment", std::move(comment)},
          {"creationInfo", {{"created", time_text(run.finished)}, {"creators", Json::array({"Tool: imafs-" + run.version})}}},
          {"files", std::move(files)},
          {"relationships", std::move(relationships)}};
}

}  // namespace

std::string attest(const RunRecord& run, const std::string& format) {
  if (format == "text") {
    std::string text = lines_of(run);
    for (const char* what : kNotCovered) text += std::string("# not covered: ") + what + "\n";
    for (const FileDigest& file : run.gone) text += "# gone at the end: " + to_hex(file.digest) + "\n";
    for (const std::string& name : run.violations) text += "# changed while it was read: " + name + "\n";
    return text;
  }
  Json json;
  if (format == "in-toto") json = runtime_trace(run);
  else if (format == "slsa") json = provenance(run);
  else if (format == "spdx") json = spdx(run);
  else return "";
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace imafs
