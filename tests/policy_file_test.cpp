#include "imafs/policy_file.h"

#include <sys/stat.h>

#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <fstream>

#include "control_mount.h"
#include "imafs/policy_parser.h"

namespace imafs {
namespace {

// A directory of policy files beside a mount.
class PolicyFiles {
 public:
  PolicyFiles() {
    std::string name = (std::filesystem::temp_directory_path() / "imafs-policy-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    directory_ = name;
  }
  ~PolicyFiles() { std::filesystem::remove_all(directory_); }
  PolicyFiles(const PolicyFiles&) = delete;
  PolicyFiles& operator=(const PolicyFiles&) = delete;

  std::string path(const std::string& name) const { return directory_ + "/" + name; }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path(name)) << text;
    return path(name);
  }
  const std::string& directory() const { return directory_; }

 private:
  std::string directory_;
};

void activate(Mount& mount, const std::string& rules) {
  auto parsed = parse_policy(rules, {});
  REQUIRE(parsed);
  REQUIRE(mount.gate.load_policy(std::move(*parsed), PolicyLoad::kReplace, mount.root));
}

TEST_CASE("a policy file is read, and nothing is logged if no rule asks") {
  Mount mount;
  const PolicyFiles files;
  activate(mount, "measure func=FILE_CHECK\n");
  const auto text =
      read_policy_file(mount.gate, files.write("good", "measure uid=1\n"), mount.root);
  REQUIRE(text);
  CHECK(*text == "measure uid=1\n");
  CHECK(mount.log.entries.empty());
}

// SHA-256 of "measure uid=1\n" by sha256sum.
TEST_CASE("a policy file is measured as POLICY_CHECK before its rules are looked at") {
  Mount mount;
  const PolicyFiles files;
  activate(mount, "measure func=POLICY_CHECK mask=MAY_READ uid=0 template=ima-ng pcr=11\n");
  const std::string path = files.write("good", "measure uid=1\n");
  REQUIRE(read_policy_file(mount.gate, path, mount.root));
  REQUIRE(mount.log.entries.size() == 1);
  const LogEntry& entry = mount.log.entries[0];
  CHECK(entry.pcr == 11);
  CHECK(to_hex(entry.values.at(0)) ==
        "7368613235363a00"
        "7507a06339a2af265c8ea79eabdbfd1c81b38eae311269a60cca5202a34aa953");
  CHECK(as_text(entry.values.at(1)) == path + std::string(1, '\0'));
}

TEST_CASE("a policy file whose entry cannot be stored is not given out") {
  Mount mount;
  const PolicyFiles files;
  activate(mount, "measure func=POLICY_CHECK\n");
  mount.log.failure = ENOSPC;
  const auto text =
      read_policy_file(mount.gate, files.write("good", "measure uid=1\n"), mount.root);
  REQUIRE_FALSE(text);
  CHECK(text.error().code == ENOSPC);
}

TEST_CASE("what is no regular file is refused, and a FIFO holds nobody up") {
  Mount mount;
  const PolicyFiles files;
  REQUIRE(::mkfifo(files.path("fifo").c_str(), 0600) == 0);
  CHECK(read_policy_file(mount.gate, files.directory(), mount.root).error().code == EINVAL);
  CHECK(read_policy_file(mount.gate, files.path("fifo"), mount.root).error().code == EINVAL);
  CHECK(read_policy_file(mount.gate, files.path("none"), mount.root).error().code == ENOENT);
}

TEST_CASE("a policy file of more than 16 MiB is refused unread") {
  Mount mount;
  const PolicyFiles files;
  const std::string path = files.write("large", "");
  std::filesystem::resize_file(path, (std::uintmax_t{16} << 20) + 1);
  CHECK(read_policy_file(mount.gate, path, mount.root).error().code == EFBIG);
}

}  // namespace
}  // namespace imafs
