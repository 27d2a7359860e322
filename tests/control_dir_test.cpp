#include "imafs/control_dir.h"

#include <catch2/catch_test_macros.hpp>

#include "control_mount.h"

namespace imafs {
namespace {

TEST_CASE("the directory lists the kernel's names, a pair for each bank, and its own") {
  Mount mount;
  const auto listed = mount.control->list(kControlRoot);
  REQUIRE(listed);
  std::map<std::string, mode_t> modes;
  for (const auto& entry : *listed) {
    modes[entry.name] = entry.mode;
    CHECK(mount.node(entry.name) == entry.node);
    CHECK(ControlDir::owns(entry.node));
  }
  CHECK(modes == std::map<std::string, mode_t>{
                     {"measurements", S_IFREG | 0400},
                     {"ascii_runtime_measurements", S_IFREG | 0400},
                     {"ascii_runtime_measurements_sha1", S_IFREG | 0400},
                     {"ascii_runtime_measurements_sha256", S_IFREG | 0400},
                     {"binary_runtime_measurements", S_IFREG | 0400},
                     {"binary_runtime_measurements_sha1", S_IFREG | 0400},
                     {"binary_runtime_measurements_sha256", S_IFREG | 0400},
                     {"runtime_measurements_count", S_IFREG | 0400},
                     {"violations", S_IFREG | 0400},
                     {"policy", S_IFREG | 0600},
                     {"policy_replace", S_IFREG | 0600},
                     {"trim_log", S_IFREG | 0200},
                     {"critical_data", S_IFDIR | 0700},
                     {"critical_data_hash", S_IFDIR | 0700},
                     {"status", S_IFREG | 0400},
                     {"metrics", S_IFREG | 0400},
                 });
}

TEST_CASE("control files belong to the owner of the mount and have size 0") {
  Mount mount;
  const auto attr = mount.control->get_attr(mount.node("policy"));
  REQUIRE(attr);
  CHECK(attr->st_uid == 5);
  CHECK(attr->st_gid == 6);
  CHECK(attr->st_size == 0);
  CHECK(attr->st_nlink == 1);
  CHECK(mount.control->get_attr(kControlRoot)->st_mode == (S_IFDIR | 0500));
  CHECK(mount.control->get_attr(kControlBit | 4000).error().code == ENOENT);
}

TEST_CASE("only the owner and root may open") {
  Mount mount;
  const auto policy = mount.node("policy");
  Requester owner;
  owner.uid = 5;
  Requester other;
  other.uid = 1000;
  CHECK(mount.control->open(policy, O_RDONLY, owner));
  CHECK(mount.control->open(policy, O_RDONLY, other).error().code == EACCES);
  CHECK(mount.control->open(policy, O_WRONLY, other).error().code == EACCES);
}

TEST_CASE("nothing but critical data can be made in the directory") {
  Mount mount;
  CHECK(mount.control->make_file(kControlRoot, "policy.new").error().code == EPERM);
  CHECK(mount.control->make_directory(kControlRoot, "x").error().code == EPERM);
  CHECK(mount.control->make_file(mount.node("critical_data"), "name").error().code == EPERM);
  CHECK(mount.control->look_up(kControlRoot, "nothing").error().code == ENOENT);
}

TEST_CASE("the file without a suffix is the sha1 bank's") {
  Mount mount;
  mount.log.text = "x\n";
  CHECK(mount.cat("binary_runtime_measurements") == "x\n");
  CHECK(mount.log.last_view.form == LogView::Form::kBinary);
  CHECK(mount.log.last_view.bank == 1);
  mount.cat("measurements");
  CHECK(mount.log.last_view.form == LogView::Form::kAscii);
  CHECK(mount.log.last_view.bank == 1);
  mount.cat("ascii_runtime_measurements_sha256");
  CHECK(mount.log.last_view.bank == 0);
}

TEST_CASE("a log file that stays open shows what is appended, from any offset") {
  Mount mount;
  mount.log.text = "one\n";
  const auto handle = mount.open("measurements", O_RDONLY);
  REQUIRE(handle);
  CHECK(mount.read_all(*handle) == "one\n");
  mount.log.text += "two\n";
  CHECK(mount.read_all(*handle, 4) == "two\n");
  CHECK(mount.read_all(*handle, 2) == "e\ntwo\n");
}

TEST_CASE("poll wakes the reader of a log when an entry comes") {
  Mount mount;
  REQUIRE(mount.echo("measure func=CRITICAL_DATA label=x\n", "policy") == 0);
  mount.log.text = "one\n";
  const auto handle = mount.open("measurements", O_RDONLY);
  int woken = 0;
  CHECK(mount.control->poll(*handle, 0, nullptr));
  mount.read_all(*handle);
  CHECK_FALSE(mount.control->poll(*handle, 0, [&] { ++woken; }));
  CHECK(mount.control->poll(*handle, 3, nullptr));
  REQUIRE(mount.put("data", "critical_data/x", "name") == 0);
  CHECK(woken == 1);
  CHECK(mount.control->poll(*handle, 0, nullptr));
  REQUIRE(mount.put("more", "critical_data/x", "name") == 0);
  CHECK(woken == 1);
}

// tail(1) of a file system that it takes for a remote one reads as far as fstat(2) says.
TEST_CASE("a log has size 0, and its real size while somebody has it open") {
  Mount mount;
  mount.log.text = "one\n";
  const auto node = mount.node("measurements");
  CHECK(mount.control->get_attr(node)->st_size == 0);
  const auto handle = mount.open("measurements", O_RDONLY);
  CHECK(mount.control->get_attr(node)->st_size == 4);
  mount.log.text += "two\n";
  CHECK(mount.control->get_attr(node)->st_size == 8);
  CHECK(mount.control->get_attr(mount.node("binary_runtime_measurements"))->st_size == 0);
  mount.control->release(*handle, mount.root);
  CHECK(mount.control->get_attr(node)->st_size == 0);
}

TEST_CASE("counters are read anew from the beginning of the file") {
  Mount mount;
  CHECK(mount.cat("violations") == "3\n");
  const auto handle = mount.open("runtime_measurements_count", O_RDONLY);
  CHECK(mount.read_all(*handle) == "0\n");
  mount.log.entries.resize(12);
  CHECK(mount.read_all(*handle) == "12\n");
}

TEST_CASE("status and metrics are one text for a reader that takes it in pieces") {
  Mount mount;
  CHECK(mount.cat("status") == "{\"count\": 1}\n");
  CHECK(mount.cat("status") == "{\"count\": 2}\n");
  CHECK(mount.cat("metrics") == "imafs_log_entries 1\n");
}

TEST_CASE("read-only files cannot be opened for writing, nor any for both") {
  Mount mount;
  for (const auto* path : {"measurements", "status", "violations"}) {
    CHECK(mount.open(path, O_WRONLY).error().code == EACCES);
  }
  CHECK(mount.open("policy", O_RDWR).error().code == EACCES);
  CHECK(mount.open("policy_replace", O_RDWR).error().code == EACCES);
  CHECK(mount.open("critical_data", O_RDONLY).error().code == EISDIR);
}

std::string buffer_of(const LogEntry& entry) { return std::string(as_text(entry.values.at(2))); }
std::string name_in(const LogEntry& entry) { return std::string(as_text(entry.values.at(1))); }

TEST_CASE("what is written to critical data up to close is one entry") {
  Mount mount;
  REQUIRE(mount.echo("measure func=CRITICAL_DATA label=app\n", "policy") == 0);
  const auto directory = mount.node("critical_data/app");
  REQUIRE(directory != 0);
  CHECK(mount.control->look_up(directory, "config").error().code == ENOENT);
  const auto file = mount.control->make_file(directory, "config");
  REQUIRE(file);
  const auto handle = mount.control->open(*file, O_WRONLY | O_CREAT | O_TRUNC, mount.root);
  REQUIRE(handle);
  CHECK(mount.control->flush(*handle, mount.root));
  CHECK(mount.control->write(*handle, 0, "da"));
  CHECK(mount.control->write(*handle, 2, "ta"));
  CHECK(mount.log.entries.empty());
  CHECK(mount.close(*handle) == 0);
  REQUIRE(mount.log.entries.size() == 1);
  CHECK(mount.log.entries[0].template_name == "ima-buf");
  CHECK(name_in(mount.log.entries[0]) == std::string("config\0", 7));
  CHECK(buffer_of(mount.log.entries[0]) == "data");
  CHECK(mount.open("critical_data/app/config", O_RDONLY).error().code == EACCES);
}

// SHA-256 of "data", and of that digest, by sha256sum.
TEST_CASE("critical_data_hash logs the hash of the data and the hash of that hash") {
  Mount mount;
  REQUIRE(mount.echo("measure func=CRITICAL_DATA label=app\n", "policy") == 0);
  REQUIRE(mount.put("data", "critical_data_hash/app", "config") == 0);
  REQUIRE(mount.log.entries.size() == 1);
  const auto& values = mount.log.entries[0].values;
  CHECK(to_hex(values.at(2)) == "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7");
  CHECK(to_hex(values.at(0)) ==
        "7368613235363a00"
        "464472b56079ded3d359b17935624bdb8487b6a64856090725277ddb5fb5576a");
}

TEST_CASE("critical data that no rule asks for makes no entry and no error") {
  Mount mount;
  REQUIRE(mount.echo("measure func=CRITICAL_DATA label=app\n", "policy") == 0);
  CHECK(mount.put("data", "critical_data/other", "config") == 0);
  CHECK(mount.put("", "critical_data/app", "config") == 0);
  CHECK(mount.log.entries.empty());
}

TEST_CASE("critical data that cannot be stored is an error of close") {
  Mount mount;
  REQUIRE(mount.echo("measure func=CRITICAL_DATA label=app\n", "policy") == 0);
  mount.log.failure = EIO;
  CHECK(mount.put("data", "critical_data/app", "config") == EIO);
}

TEST_CASE("critical data larger than a mebibyte is refused whole") {
  Mount mount;
  REQUIRE(mount.echo("measure func=CRITICAL_DATA label=app\n", "policy") == 0);
  CHECK(mount.put(std::string(std::size_t{1} << 20, 'x'), "critical_data/app", "good") == 0);
  CHECK(mount.log.entries.size() == 1);
  const auto file = mount.control->make_file(mount.node("critical_data/app"), "large");
  const auto handle = mount.control->open(*file, O_WRONLY, mount.root);
  CHECK(mount.control->write(*handle, 0, std::string(std::size_t{1} << 20, 'x')));
  CHECK(mount.control->write(*handle, std::uint64_t{1} << 20, "y").error().code == EFBIG);
  CHECK(mount.close(*handle) == EFBIG);
  CHECK(mount.log.entries.size() == 1);
}

TEST_CASE("critical data has no holes") {
  Mount mount;
  const auto file = mount.control->make_file(mount.node("critical_data/app"), "name");
  const auto handle = mount.control->open(*file, O_WRONLY, mount.root);
  CHECK(mount.control->write(*handle, 5, "data").error().code == EINVAL);
}

TEST_CASE("labels and names are printable UTF-8 of at most 255 bytes") {
  Mount mount;
  const auto root = mount.node("critical_data");
  CHECK(mount.control->look_up(root, std::string(255, 'x')));
  CHECK(mount.control->look_up(root, std::string(256, 'x')).error().code == ENAMETOOLONG);
  for (const std::string name : {"", ".", "..", "a/b", "a\nb", "\x7f", "\xff", "\xc0\xaf"}) {
    CHECK(mount.control->look_up(root, name).error().code == EINVAL);
    CHECK(mount.control->make_file(mount.node("critical_data/app"), name).error().code == EINVAL);
  }
}

TEST_CASE("the number of labels and names has an end") {
  Mount mount;
  const auto root = mount.node("critical_data");
  int error = 0;
  for (int label = 0; label < 70000 && error == 0; ++label) {
    const auto made = mount.control->look_up(root, "l" + std::to_string(label));
    if (!made) error = made.error().code;
  }
  CHECK(error == ENOSPC);
}

}  // namespace
}  // namespace imafs
