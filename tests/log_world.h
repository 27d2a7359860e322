// A TPM and a state directory that outlive the daemons which use them: what tests of the log play in.
#pragma once

#include <stdlib.h>

#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "faulty_pcr_extender.h"
#include "imafs/log_codec.h"
#include "imafs/measurement_log.h"
#include "imafs/verifier.h"

namespace imafs {

class Scratch {
 public:
  Scratch() {
    std::string name = (std::filesystem::temp_directory_path() / "imafs-log-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~Scratch() { std::filesystem::remove_all(path_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline LogEntry entry_for(const std::string& name, std::uint32_t pcr = 10) {
  EntryFacts facts;
  facts.file_digest = hash_of(HashAlgorithm::kSha256, as_bytes(name));
  facts.name = "/" + name;
  return make_entry(*find_builtin_template("ima-ng"), pcr, facts);
}

inline LogEntry violation_for(const std::string& name) {
  EntryFacts facts;
  facts.name = "/" + name;
  return make_violation(*find_builtin_template("ima-ng"), 10, HashAlgorithm::kSha256, facts);
}

// Each world has its own TPM identity.
struct World {
  Scratch state;
  std::shared_ptr<SoftwareTpm> tpm = std::make_shared<SoftwareTpm>();
  std::unique_ptr<FaultyPcrExtender> extender;
  std::unique_ptr<MeasurementLog> log;

  World() { tpm->name = state.path(); }

  Status start(const std::function<void(LogOptions&)>& change = {}) {
    log.reset();
    extender = std::make_unique<FaultyPcrExtender>(tpm);
    LogOptions options;
    options.state_directory = state.path();
    if (change) change(options);
    auto opened = MeasurementLog::open(options, extender.get());
    if (!opened) return fail(opened.error());
    log = std::move(*opened);
    return {};
  }
  Status start_without_tpm() {
    log.reset();
    LogOptions options;
    options.state_directory = state.path();
    auto opened = MeasurementLog::open(options, nullptr);
    if (!opened) return fail(opened.error());
    log = std::move(*opened);
    return {};
  }
  Result<Appended> append(const std::string& name) { return log->append(entry_for(name), own_origin); }
  Result<Appended> violate(const std::string& name) { return log->append(violation_for(name), own_origin); }

  std::string view(LogView::Form form, std::size_t bank) const {
    std::string text;
    std::vector<char> part(777);
    for (;;) {
      const auto got = log->read_view({form, bank}, text.size(), part);
      REQUIRE(got);
      if (*got == 0) return text;
      text.append(part.data(), *got);
    }
  }
  // Those of violations begin with '!'.
  std::vector<std::string> marked_names() const {
    std::vector<std::string> found;
    const auto records = decode_log(as_bytes(view(LogView::Form::kBinary, 0)), 20);
    REQUIRE(records);
    for (const DecodedRecord& record : *records) {
      std::string name(as_text(record.entry.values[1]).substr(1));
      name.pop_back();
      found.push_back((record.entry.is_violation ? "!" : "") + name);
    }
    return found;
  }
  std::vector<std::string> names() const {
    auto found = marked_names();
    for (std::string& name : found) {
      if (name[0] == '!') name.erase(0, 1);
    }
    return found;
  }
  // The judge: the log as its readers see it, folded by the verifier, against the PCR.
  bool replays() const {
    ExpectedPcrs pcrs;
    for (const auto& [index, values] : tpm->pcrs) {
      for (std::size_t i = 0; i < tpm->banks.size(); ++i) pcrs[name_of(tpm->banks[i])][index] = values[i];
    }
    const auto records = decode_log(as_bytes(view(LogView::Form::kBinary, 0)), 20);
    REQUIRE(records);
    const auto base = parse_pcr_values(log->base(), "base");
    REQUIRE(base);
    return verify_log(*records, 20, tpm->banks, pcrs, *base).verdict == Verdict::kVerified;
  }
  std::string journal() const { return state.path() + "/journal/journal.000001"; }
};

}  // namespace imafs
