#include "imafs/policy_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <optional>

#include "imafs/bytes.h"
#include "imafs/lsm_labels.h"
#include "imafs/policy_matcher.h"
#include "imafs/posix_file.h"
#include "imafs/unique_fd.h"

namespace imafs {
namespace {

constexpr std::size_t kMaxFile = std::size_t{16} << 20;

// Facts of a file beside the mount. Its file system's name and UUID are not looked for: of the
// conditions on file systems only fsmagic= can match.
class PolicyFileFacts final : public EventSource {
 public:
  PolicyFileFacts(std::string path, int fd, std::uint32_t tid) : path_(std::move(path)), fd_(fd), tid_(tid) {
    struct statfs facts {};
    if (::fstatfs(fd, &facts) == 0) file_system_.magic = static_cast<std::uint64_t>(facts.f_type);
  }
  std::optional<Credentials> credentials() override { return std::nullopt; }
  std::string_view path() override { return path_; }
  const FileSystem& file_system() override { return file_system_; }
  std::string object_label() override { return label_of_file(fd_); }
  std::string subject_label() override { return label_of_task(tid_); }

 private:
  const std::string path_;
  const int fd_;
  const std::uint32_t tid_;
  FileSystem file_system_;
};

std::optional<MeasureOrder> order_for(const MeasureGate& gate, const struct stat& attr,
                                      EventSource& source, const Requester& requester) {
  const auto policy = gate.policy();
  Event event;
  event.hook = Hook::kPolicyCheck;
  event.mask = kMayRead;
  event.uid = requester.uid;
  event.gid = requester.gid;
  event.fowner = attr.st_uid;
  event.fgroup = attr.st_gid;
  event.source = &source;
  const Decision decision = match(*policy, event);
  if (!gate.options().enabled || !decision.must_measure()) return std::nullopt;
  MeasureOrder order;
  order.hook = event.hook;
  order.pcr = decision.measure->pcr.value_or(gate.options().pcr);
  order.form = decision.measure->form ? decision.measure->form : gate.options().form;
  order.wants_verity = decision.measure->digest_is_verity;
  order.permits_directio = decision.measure->permit_directio;
  return order;
}

}  // namespace

Result<std::string> read_policy_file(MeasureGate& gate, const std::string& path,
                                     const Requester& requester) {
  // O_NONBLOCK: a FIFO must not hold up whoever names it.
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd) return fail(errno_error("open policy file '" + path + "'"));
  struct stat attr {};
  if (::fstat(fd.get(), &attr) != 0) return fail(errno_error("stat policy file '" + path + "'"));
  if (!S_ISREG(attr.st_mode))
    return fail(EINVAL, "policy file '" + path + "' is not a regular file");
  if (static_cast<std::size_t>(attr.st_size) > kMaxFile)
    return fail(EFBIG, "policy file '" + path + "' is too large");
  Bytes content(static_cast<std::size_t>(attr.st_size));
  const auto size = pread_full(fd.get(), content, 0);
  if (!size) return fail(size.error());
  content.resize(*size);

  PolicyFileFacts facts(path, fd.get(), requester.pid);
  if (const auto order = order_for(gate, attr, facts, requester)) {
    const auto collected = gate.collect_measurement(fd.get(), *order);
    if (!collected) return fail(collected.error());
    // What is logged must be what is loaded.
    if (!order->wants_verity &&
        hash_of(collected->digest.algorithm(), content) != collected->digest) {
      return fail(EINVAL, "policy file '" + path + "' changed while it was read");
    }
    const NamedFile named{fd.get(), path, attr.st_dev, attr.st_ino};
    if (const auto stored = gate.store_measurement(*order, *collected, named, requester); !stored) {
      return fail(stored.error());
    }
  }
  return std::string(as_text(content));
}

}  // namespace imafs
