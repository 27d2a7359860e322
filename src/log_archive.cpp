// Archives: logs that are over, or parts of one, each with the PCR values that it ends in.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "imafs/journal_reader.h"
#include "imafs/posix_file.h"
#include "measurement_log_impl.h"

namespace imafs {

// The directory for the next archive, which does not exist yet. One that was taken away leaves its number free for ever:
// the numbers are the order.
Result<std::string> Log::next_archive() const {
  const std::string parent = options_.state_directory + "/archive";
  if (auto made = make_directories(parent, 0700); !made) return fail(made.error());
  if (::chmod(parent.c_str(), 0700) != 0) return fail(errno_error("cannot use '" + parent + "'"));
  const auto numbers = archive_numbers(options_.state_directory);
  if (!numbers) return fail(numbers.error());
  return parent + "/" + std::to_string(numbers->empty() ? 1 : numbers->back() + 1);
}

Status Log::write_end_pcrs(const std::string& directory, const std::string& why, const std::vector<Bank>& banks, const PcrMap& values) const {
  std::string text = "# " + why + "\n";
  for (const auto& [pcr, of_pcr] : values) {
    for (std::size_t i = 0; i < banks.size(); ++i) {
      text += name_of(banks[i]) + ":" + std::to_string(pcr) + ": " + to_hex(of_pcr[i]) + "\n";
    }
  }
  const std::string path = directory + "/end-pcrs";
  if (auto written = write_file_atomically(path, text); !written) return written;
  (void)!::chmod(path.c_str(), 0600);  // whatever the umask of the thread
  return {};
}

// What the log replays to. In the banks of the TPM that it is of: where that is not the one at hand, in those of the digests
// that it keeps.
PcrMap Log::end_values(std::vector<Bank>& banks) const {
  if (tpm_ && header_.tpm == tpm_->identity()) {
    banks = banks_;
    return pcrs_;
  }
  banks.clear();
  if (header_.tpm.empty()) return {};
  for (const HashAlgorithm algorithm : header_.digests) {
    if (tpm_algorithm_of(algorithm)) banks.push_back(Bank::of(algorithm));
  }
  PcrMap values;
  const auto slot = [&](std::uint32_t pcr) -> BankValues& {
    const auto found = values.find(pcr);
    if (found != values.end()) return found->second;
    BankValues first = pcr_reset_values(banks, pcr);
    for (std::size_t i = 0; i < banks.size(); ++i) {
      const auto bank = header_.base.find(name_of(banks[i]));
      if (bank != header_.base.end() && bank->second.contains(pcr)) first[i] = bank->second.at(pcr);
    }
    return values.emplace(pcr, std::move(first)).first->second;
  };
  (void)each_extension(banks, [&](std::uint32_t pcr, const BankValues& extended) -> Status {
    extend_pcr(banks, slot(pcr), extended);
    return {};
  });
  return values;
}

// Moves the journal aside, with the PCR values it ends in.
Status Log::archive(const std::string& why) {
  const auto target = next_archive();
  if (!target) return fail(target.error());
  if (journal_) {
    if (auto cut = cut_torn(); !cut) return cut;
    start_.message.clear();
    journal_->give_back_room();
  }
  // Of one that is damaged nobody knows the end.
  if (journal_) {
    std::vector<Bank> banks;
    const PcrMap values = end_values(banks);
    if (auto written = write_end_pcrs(journal_directory(), why, banks, values); !written) return written;
  }
  if (::rename(journal_directory().c_str(), target->c_str()) != 0) return fail(errno_error("cannot archive the log in '" + *target + "'"));
  const std::unique_lock lock(index_mutex_);
  journal_.reset();
  return {};
}

Status Log::archive_and_begin(LogStart::Kind kind, const std::string& why) {
  if (auto kept = archive(why); !kept) return kept;
  start_.kind = kind;
  if (auto created = create_new(); !created) return created;
  start_.message += " (" + why + ")";
  return {};
}

}  // namespace imafs
