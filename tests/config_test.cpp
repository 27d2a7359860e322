#include "imafs/config.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <filesystem>

using namespace imafs;

namespace {

// A mount point and a tree that exist while it lives.
class Directories {
 public:
  Directories() {
    std::string name = (std::filesystem::temp_directory_path() / "imafs-config-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()));
    root_ = name;
    std::filesystem::create_directory(root_ / "mount");
    std::filesystem::create_directory(root_ / "tree");
  }
  ~Directories() { std::filesystem::remove_all(root_); }

  MountConfig config() const {
    MountConfig config;
    config.mountpoint = root_ / "mount";
    config.backing = root_ / "tree";
    return config;
  }

 private:
  std::filesystem::path root_;
};

}  // namespace

TEST_CASE("the state directory is named as systemd escapes the mount point") {
  CHECK(escape_path("/mnt/measured") == "mnt-measured");
  CHECK(escape_path("/") == "-");
  CHECK(escape_path("//mnt//a-b") == "mnt-a\\x2db");
  CHECK(escape_path("/.hidden/x") == "\\x2ehidden-x");
}

TEST_CASE("paths are absolute afterwards, because the daemon works elsewhere") {
  const Directories directories;
  MountConfig config = directories.config();
  config.state = "state";
  config.log_file = "../messages";
  const auto checked = check_config(config);
  REQUIRE(checked);
  CHECK(checked->config.state == std::filesystem::current_path() / "state");
  CHECK(checked->config.log_file == std::filesystem::current_path().parent_path() / "messages");
}

TEST_CASE("PCRs of the firmware are refused, special ones ask for force") {
  const Directories directories;
  MountConfig config = directories.config();
  const std::uint32_t pcr = GENERATE(0, 7, 8, 15, 16, 23, 24);
  config.pcr = pcr;
  CHECK(check_config(config).has_value() == (pcr == 8 || pcr == 15));
  config.force = true;
  CHECK(check_config(config).has_value() == (pcr >= 8 && pcr <= 23));
}

TEST_CASE("what the kernel would not take as a template or a hash gives way to the default, and is said") {
  const Directories directories;
  MountConfig config = directories.config();
  config.template_name = "ima-nonsense";
  config.hash = "sha257";
  auto checked = check_config(config);
  REQUIRE(checked);
  CHECK(checked->form->name == "ima-ng");
  CHECK(checked->file_hash == HashAlgorithm::kSha256);
  CHECK(checked->warnings.size() == 2);
  config = directories.config();
  config.template_name = "ima";  // has no room for sha256
  checked = check_config(config);
  REQUIRE(checked);
  CHECK(checked->form->name == "ima-ng");
  config.hash = "sha1";
  checked = check_config(config);
  REQUIRE(checked);
  CHECK(checked->form->name == "ima");
  CHECK(checked->warnings.empty());
}

TEST_CASE("a missing directory is a failure of its own code") {
  const Directories directories;
  MountConfig config = directories.config();
  config.backing += "/none";
  CHECK(check_config(config).error().code == ExitCode::kBacking);
  config = directories.config();
  config.mountpoint += "/none";
  CHECK(check_config(config).error().code == ExitCode::kMountpoint);
}
