#include "imafs/report.h"

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "imafs/digest.h"
#include "imafs/entry_view.h"
#include "imafs/verification_text.h"
#include "imafs/version.h"

extern "C" {
extern const char imafs_report_page[], imafs_report_page_end[];
extern const char imafs_report_style[], imafs_report_style_end[];
extern const char imafs_report_script[], imafs_report_script_end[];
extern const char imafs_report_echarts[], imafs_report_echarts_end[];
extern const char imafs_report_licence[], imafs_report_licence_end[];
extern const char imafs_report_notice[], imafs_report_notice_end[];
}

namespace imafs {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kBuckets = 120;          // bars of the time line
constexpr std::size_t kMaxDirectories = 1500;  // of the tree map; smaller ones are counted with the one above them
constexpr std::size_t kMaxViolations = 1000;   // rows

std::string_view text_between(const char* begin, const char* end) { return {begin, static_cast<std::size_t>(end - begin)}; }

std::int64_t ms_of(std::int64_t time_ns) { return time_ns / 1'000'000; }

// Numbers for the texts that repeat.
class Dictionary {
 public:
  std::size_t operator[](const std::string& text) {
    const auto [place, is_new] = numbers_.emplace(text, numbers_.size());
    if (is_new) texts_.push_back(text);
    return place->second;
  }
  const Json& texts() const { return texts_; }

 private:
  std::unordered_map<std::string, std::size_t> numbers_;
  Json texts_ = Json::array();
};

Json about_entry(const JournalEntryRead& entry, std::uint64_t index) {
  return {{"index", index}, {"time", ms_of(entry.origin.time_ns)}, {"pid", entry.origin.pid}, {"uid", entry.origin.uid}, {"comm", printable(entry.origin.comm)}};
}

// What the whole log comes to, however long it is.
class Summary {
 public:
  explicit Summary(const JournalRead& log) : log_(log) {
    for (const JournalEntryRead& entry : log.entries) {
      if (entry.origin.time_ns == 0) continue;
      if (start_ == 0 || entry.origin.time_ns < start_) start_ = entry.origin.time_ns;
      end_ = std::max(end_, entry.origin.time_ns);
    }
    step_ = std::max<std::int64_t>(1'000'000, (end_ - start_) / static_cast<std::int64_t>(kBuckets) + 1);
    measured_.resize(kBuckets);
    violated_.resize(kBuckets);
    for (std::size_t i = 0; i < log.entries.size(); ++i) add(log.entries[i], log.trimmed + i);
  }

  std::int64_t start_ms() const { return ms_of(start_); }

  void write(Json& json) {
    json["totals"] = {{"entries", log_.entries.size()}, {"names", names_.size()}, {"bytes", bytes_}, {"violations", violations_}};
    if (start_ != 0) {
      json["timeline"] = {{"start", ms_of(start_)}, {"step", ms_of(step_)}, {"entries", measured_}, {"violations", violated_}};
    } else {
      json["timeline"] = nullptr;
    }
    json["violations"] = std::move(violation_rows_);
    json["policies"] = std::move(policies_);
    json["directories"] = directories();
  }

 private:
  struct Weight {
    std::uint64_t bytes = 0, entries = 0;
  };

  void add(const JournalEntryRead& entry, std::uint64_t index) {
    EntryView view = view_of(entry.entry);
    view.name = printable(view.name);
    if (entry.origin.time_ns != 0) {
      const auto bucket = std::min(kBuckets - 1, static_cast<std::size_t>((entry.origin.time_ns - start_) / step_));
      ++(entry.entry.is_violation ? violated_ : measured_)[bucket];
    }
    if (entry.entry.is_violation) {
      ++violations_;
      if (violation_rows_.size() < kMaxViolations) {
        violation_rows_.push_back(about_entry(entry, index));
        violation_rows_.back()["name"] = view.name;
      }
    }
    if (view.name == "policy" && !view.data.empty()) {
      policies_.push_back(about_entry(entry, index));
      policies_.back()["text"] = printable(as_text(view.data), "\n\t");
    }
    if (!view.is_file(index)) return;
    names_.insert(view.name);
    bytes_ += entry.origin.size;
    const std::size_t slash = view.name.rfind('/');
    Weight& weight = directories_[slash == std::string::npos || slash == 0 ? "/" : view.name.substr(0, slash)];
    weight.bytes += entry.origin.size;
    ++weight.entries;
  }

  // [[path, bytes, entries]...]: the heaviest, the others with the nearest of these above them.
  Json directories() {
    std::vector<std::pair<std::uint64_t, std::string>> heaviest;
    for (const auto& [path, weight] : directories_) heaviest.emplace_back(bytes_ > 0 ? weight.bytes : weight.entries, path);
    std::sort(heaviest.rbegin(), heaviest.rend());
    if (heaviest.size() > kMaxDirectories) heaviest.resize(kMaxDirectories);
    std::map<std::string, Weight> kept{{"/", {}}};
    for (const auto& [weight, path] : heaviest) kept[path] = {};
    for (const auto& [path, weight] : directories_) {
      std::string place = path;
      while (!kept.contains(place)) {
        const std::size_t slash = place.rfind('/');
        place = slash == std::string::npos || slash == 0 ? "/" : place.substr(0, slash);
      }
      kept[place].bytes += weight.bytes;
      kept[place].entries += weight.entries;
    }
    Json list = Json::array();
    for (const auto& [path, weight] : kept) list.push_back({path, weight.bytes, weight.entries});
    return list;
  }

  const JournalRead& log_;
  std::int64_t start_ = 0, end_ = 0, step_ = 1;  // ns
  std::uint64_t bytes_ = 0, violations_ = 0;
  std::vector<std::uint64_t> measured_, violated_;
  std::unordered_set<std::string> names_;
  std::map<std::string, Weight> directories_;
  Json violation_rows_ = Json::array(), policies_ = Json::array();
};

// The table, a column at a time, which is smaller and quicker to parse than a row at a time.
Json table_of(const JournalRead& log, std::int64_t start_ms) {
  const std::size_t first = log.entries.size() - std::min(log.entries.size(), kReportTableEntries);
  Json names = Json::array(), times = Json::array(), pids = Json::array(), uids = Json::array(), comm = Json::array(), sizes = Json::array(),
       pcrs = Json::array(), templates = Json::array(), algorithm = Json::array(), violations = Json::array(), algorithms = Json::array();
  Dictionary comms, forms, digests;
  Bytes digest_bytes;
  for (std::size_t i = first; i < log.entries.size(); ++i) {
    const JournalEntryRead& entry = log.entries[i];
    const EntryView view = view_of(entry.entry);
    names.push_back(printable(view.name));
    pcrs.push_back(entry.entry.pcr);
    templates.push_back(forms[entry.entry.template_name]);
    algorithm.push_back(digests[view.algorithm + ' ' + std::to_string(view.digest.size())]);
    if (algorithm.back() == algorithms.size()) algorithms.push_back({view.algorithm, view.digest.size()});
    append(digest_bytes, view.digest);
    if (entry.entry.is_violation) violations.push_back(i - first);
    if (start_ms == 0) continue;
    times.push_back(ms_of(entry.origin.time_ns) - start_ms);
    pids.push_back(entry.origin.pid);
    uids.push_back(entry.origin.uid);
    comm.push_back(comms[printable(entry.origin.comm)]);
    sizes.push_back(entry.origin.size);
  }
  return {{"first", log.trimmed + first}, {"name", std::move(names)}, {"time", std::move(times)}, {"pid", std::move(pids)},
          {"uid", std::move(uids)}, {"comm", std::move(comm)}, {"comms", comms.texts()}, {"size", std::move(sizes)}, {"pcr", std::move(pcrs)},
          {"template", std::move(templates)}, {"templates", forms.texts()}, {"algorithm", std::move(algorithm)},
          {"algorithms", std::move(algorithms)}, {"violations", std::move(violations)}, {"digests", to_base64(digest_bytes)}};
}

Json verification_of(const Verification& result) {
  Json pcrs = Json::array();
  for (const BankReplay& bank : result.banks) {
    for (const auto& [pcr, value] : bank.replayed) {
      const auto& expected = bank.expected.at(pcr);
      pcrs.push_back({{"bank", name_of(bank.bank)}, {"pcr", pcr}, {"replayed", to_hex(value)}, {"expected", expected ? Json(to_hex(*expected)) : Json()}});
    }
  }
  return {{"verdict", to_json(result)["verdict"]}, {"message", result.message}, {"pcrs", std::move(pcrs)}};
}

// JSON that can stand inside <script>: what a file was named must not end the element.
std::string embeddable(const Json& json) {
  std::string text;
  for (const char c : json.dump(-1, ' ', true, Json::error_handler_t::replace)) {
    if (c == '<') text += "\\u003c";
    else text += c;
  }
  return text;
}

std::string source_hash(std::string_view script) {
  return "'sha256-" + to_base64(hash_of(HashAlgorithm::kSha256, as_bytes(script)).bytes()) + "'";
}

}  // namespace

std::string report_page(const ReportSource& source) {
  Json data{{"target", source.target},
            {"backing", source.backing},
            {"made", ms_of(source.made_ns)},
            {"trimmed", source.log.trimmed},
            {"policy", source.policy ? Json(*source.policy) : Json()},
            {"verification", verification_of(source.verification)}};
  Summary summary(source.log);
  summary.write(data);
  data["start"] = summary.start_ms();
  data["entries"] = table_of(source.log, summary.start_ms());

  const std::string_view script = text_between(imafs_report_script, imafs_report_script_end);
  const std::string_view echarts = text_between(imafs_report_echarts, imafs_report_echarts_end);
  const std::map<std::string_view, std::string> parts{
      {"policy", "default-src 'none'; script-src " + source_hash(echarts) + " " + source_hash(script) + "; style-src 'unsafe-inline'; img-src data:"},
      {"style", std::string(text_between(imafs_report_style, imafs_report_style_end))},
      {"version", kVersion},
      {"data", embeddable(data)},
      {"echarts", std::string(echarts)},
      {"script", std::string(script)},
      {"licence", std::string(text_between(imafs_report_notice, imafs_report_notice_end)) + '\n' +
                      std::string(text_between(imafs_report_licence, imafs_report_licence_end))}};
  std::string page;
  std::string_view rest = text_between(imafs_report_page, imafs_report_page_end);
  while (!rest.empty()) {
    const std::size_t mark = rest.find('@');
    page += rest.substr(0, mark);
    if (mark == std::string_view::npos) break;
    const std::size_t end = rest.find('@', mark + 1);
    page += parts.at(rest.substr(mark + 1, end - mark - 1));
    rest.remove_prefix(end + 1);
  }
  return page;
}

}  // namespace imafs
