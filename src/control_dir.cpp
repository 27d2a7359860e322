// The tree of .ima/. What its files do is in control_file.cpp and policy_desk.cpp.
#include "imafs/control_dir.h"

#include <fcntl.h>

#include <algorithm>
#include <map>
#include <utility>

#include "control_nodes.h"
#include "imafs/control_file.h"
#include "imafs/guarded.h"
#include "imafs/log_entry.h"
#include "imafs/policy_desk.h"
#include "imafs/policy_file.h"
#include "imafs/policy_parser.h"
#include "log_growth.h"

namespace imafs {
namespace {

// Labels and names of critical data that were ever looked up or created. They stay, so there is an
// end.
constexpr std::size_t kMaxNodes = 65536;
constexpr std::size_t kMaxNameBytes = 255;

using Kind = ControlKind;
using Node = ControlNode;
using Tree = ControlNodes;

std::uint64_t id_of(std::size_t index) { return kControlRoot + index; }

// A label or an event's name: what can stand in an entry as it is.
Status check_name(std::string_view name) {
  if (name.size() > kMaxNameBytes)
    return fail(ENAMETOOLONG, "a label or name of critical data is too long");
  const bool is_one_component =
      !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos;
  if (!is_one_component || loggable_name(name) != name) {
    return fail(EINVAL, "a label or name of critical data must be printable UTF-8");
  }
  return {};
}

class ControlTree final : public ControlDir {
 public:
  explicit ControlTree(Sources sources)
      : sources_(std::move(sources)),
        made_(time_now()),
        desk_({sources_.gate,
               [this](const std::string& path, const Requester& requester) {
                 return sources_.read_policy_file
                            ? sources_.read_policy_file(path)
                            : read_policy_file(sources_.gate, path, requester);
               },
               sources_.custom_template}),
        growth_(std::make_shared<LogGrowth>()) {
    tree_.with([this](Tree& tree) { plant(tree, sources_.log.view_banks()); });
    sources_.log.on_growth([growth = growth_] { growth->grown(); });
  }

  Result<std::uint64_t> look_up(std::uint64_t directory, std::string_view name) override;
  Result<struct stat> get_attr(std::uint64_t node) override;
  Result<std::uint64_t> make_directory(std::uint64_t parent, std::string_view name) override {
    return make(parent, name, Kind::kLabel);
  }
  Result<std::uint64_t> make_file(std::uint64_t parent, std::string_view name) override {
    return make(parent, name, Kind::kData);
  }
  Result<std::vector<DirEntry>> list(std::uint64_t directory) override;

  Result<std::uint64_t> open(std::uint64_t node, int flags, const Requester& requester) override;
  Result<std::size_t> read(std::uint64_t handle, std::uint64_t offset,
                           std::span<char> out) override;
  Result<std::size_t> write(std::uint64_t handle, std::uint64_t offset,
                            std::string_view text) override;
  Status flush(std::uint64_t handle, const Requester& requester) override;
  void release(std::uint64_t handle, const Requester& requester) override;
  bool poll(std::uint64_t handle, std::uint64_t offset, std::function<void()> wake) override;

  std::string last_policy_error() const override { return desk_.last_error(); }
  PolicyUpdates policy_updates() const override {
    const auto counts = desk_.counts();
    return {counts.completed, counts.failed};
  }

 private:
  mode_t shown_mode(mode_t mode) const { return sources_.read_only ? mode & ~mode_t{0222} : mode; }
  Result<Node> node_of(std::uint64_t id) const;
  Result<std::uint64_t> make(std::uint64_t parent, std::string_view name, Kind kind);
  Result<std::unique_ptr<ControlFile>> open_node(const Node& node, int flags,
                                                 const Requester& requester);
  Result<std::unique_ptr<ControlFile>> open_to_write(const Node& node, int flags,
                                                     const Requester& requester);
  Result<std::shared_ptr<ControlFile>> file_of(std::uint64_t handle) const;

  bool is_open(std::uint64_t id) const;

  struct OpenFile {
    std::uint64_t node = 0;
    std::shared_ptr<ControlFile> file;
  };
  struct OpenFiles {
    std::uint64_t last_handle = 0;
    std::map<std::uint64_t, OpenFile> files;  // by handle
  };

  const Sources sources_;
  const timespec made_;
  PolicyDesk desk_;
  const std::shared_ptr<LogGrowth> growth_;
  Guarded<Tree> tree_;       // every id that was given out has its node
  Guarded<OpenFiles> open_;  // handles are never used twice
};

Result<Node> ControlTree::node_of(std::uint64_t id) const {
  return tree_.with([&](const Tree& tree) -> Result<Node> {
    const std::uint64_t index = id - kControlRoot;
    if (index >= tree.nodes.size()) return fail(ENOENT, "no such control file");
    return tree.nodes[index];
  });
}

Result<std::uint64_t> ControlTree::look_up(std::uint64_t directory, std::string_view name) {
  const auto parent = node_of(directory);
  if (!parent) return fail(parent.error());
  if (!parent->is_directory()) return fail(ENOTDIR, "'" + parent->name + "' is not a directory");
  const auto known =
      tree_.with([&](const Tree& tree) { return tree.child(directory - kControlRoot, name); });
  if (known) return id_of(*known);
  // `echo DATA > critical_data/LABEL/NAME` creates NAME, but looks LABEL up: every label is there.
  if (parent->kind == Kind::kCriticalRoot) return make_directory(directory, name);
  return fail(ENOENT, "no control file '" + std::string(name) + "'");
}

Result<std::uint64_t> ControlTree::make(std::uint64_t parent_id, std::string_view name, Kind kind) {
  const auto parent = node_of(parent_id);
  if (!parent) return fail(parent.error());
  const Kind home = kind == Kind::kLabel ? Kind::kCriticalRoot : Kind::kLabel;
  if (parent->kind != home) {
    return fail(EPERM, "only critical_data/LABEL/NAME can be made in the control directory, not '" +
                           std::string(name) + "'");
  }
  if (kind == Kind::kData && sources_.read_only) {
    return fail(EROFS, "'" + std::string(name) + "' cannot be made: the mount has --read-only-control");
  }
  if (const auto good = check_name(name); !good) return fail(good.error());
  return tree_.with([&](Tree& tree) -> Result<std::uint64_t> {
    const std::size_t parent_index = parent_id - kControlRoot;
    if (const auto known = tree.child(parent_index, name)) return id_of(*known);
    if (tree.nodes.size() >= kMaxNodes)
      return fail(ENOSPC, "too many labels and names of critical data");
    Node node;
    node.kind = kind;
    node.mode = kind == Kind::kLabel ? kWritableDirectory : kWritable;
    node.name = name;
    node.parent = parent_index;
    node.hashed = parent->hashed;
    return id_of(tree.add(std::move(node)));
  });
}

Result<struct stat> ControlTree::get_attr(std::uint64_t id) {
  const auto node = node_of(id);
  if (!node) return fail(node.error());
  struct stat attr {};
  attr.st_ino = id;
  attr.st_mode = shown_mode(node->mode);
  attr.st_nlink = node->is_directory() ? 2 : 1;
  attr.st_uid = sources_.owner_uid;
  attr.st_gid = sources_.owner_gid;
  attr.st_blksize = 4096;
  attr.st_atim = attr.st_ctim = made_;
  attr.st_mtim = node->kind == Kind::kView || node->kind == Kind::kCount ? growth_->last() : made_;
  // IMA: the size is 0, as the kernel's, but real while somebody has the log open: on a FUSE mount
  // `tail -f` reads no further than the size that fstat(2) gives.
  if (node->kind == Kind::kView && is_open(id))
    attr.st_size = static_cast<off_t>(sources_.log.view_size(node->view));
  return attr;
}

Result<std::vector<ControlDir::DirEntry>> ControlTree::list(std::uint64_t directory) {
  const auto node = node_of(directory);
  if (!node) return fail(node.error());
  if (!node->is_directory()) return fail(ENOTDIR, "'" + node->name + "' is not a directory");
  return tree_.with([&](const Tree& tree) {
    std::vector<DirEntry> entries;
    for (std::size_t index = 1; index < tree.nodes.size(); ++index) {
      const Node& child = tree.nodes[index];
      if (child.parent == directory - kControlRoot)
        entries.push_back({child.name, id_of(index), shown_mode(child.mode)});
    }
    return entries;
  });
}

Result<std::unique_ptr<ControlFile>> ControlTree::open_to_write(const Node& node, int flags,
                                                                const Requester& requester) {
  const bool appending = (flags & O_APPEND) != 0;
  switch (node.kind) {
    case Kind::kPolicy:
      return desk_.open_writer(PolicyLoad::kUpdate, appending, requester);
    case Kind::kPolicyReplace:
      return desk_.open_writer(PolicyLoad::kReplace, appending, requester);
    case Kind::kTrim:
      return open_trim(sources_.log);
    case Kind::kData: {
      const auto label = node_of(id_of(node.parent));
      if (!label) return fail(label.error());
      return open_critical_data(sources_.gate, {label->name, node.name, node.hashed, appending},
                                requester);
    }
    default:
      return fail(EACCES, "'" + node.name + "' is read-only");
  }
}

Result<std::unique_ptr<ControlFile>> ControlTree::open_node(const Node& node, int flags,
                                                            const Requester& requester) {
  if (node.is_directory()) return fail(EISDIR, "'" + node.name + "' is a directory");
  if (requester.uid != 0 && requester.uid != sources_.owner_uid) {
    return fail(EACCES, "only the owner of the mount may open '" + node.name + "'");
  }
  const int access = flags & O_ACCMODE;
  if (access != O_RDONLY && sources_.read_only) {
    return fail(EROFS, "'" + node.name + "' cannot be written: the mount has --read-only-control");
  }
  if (access == O_WRONLY) return open_to_write(node, flags, requester);
  if (access != O_RDONLY)
    return fail(EACCES, "'" + node.name + "' cannot be open for reading and writing");
  switch (node.kind) {
    case Kind::kView:
      return open_log_view(sources_.log, node.view);
    case Kind::kCount:
      return open_text([&log = sources_.log] { return std::to_string(log.count()) + "\n"; });
    case Kind::kViolations:
      return open_text([&log = sources_.log] { return std::to_string(log.violations()) + "\n"; });
    case Kind::kPolicy:
    case Kind::kPolicyReplace:
      return open_snapshot(to_text(*sources_.gate.policy()));
    case Kind::kStatus:
      return open_text(sources_.status);
    case Kind::kMetrics:
      return open_text(sources_.metrics);
    default:
      return fail(EACCES, "'" + node.name + "' can only be written");
  }
}

Result<std::uint64_t> ControlTree::open(std::uint64_t id, int flags, const Requester& requester) {
  const auto node = node_of(id);
  if (!node) return fail(node.error());
  auto file = open_node(*node, flags, requester);
  if (!file) return fail(file.error());
  return open_.with([&](OpenFiles& open) {
    const std::uint64_t handle = ++open.last_handle;
    open.files.emplace(handle, OpenFile{id, std::move(*file)});
    return handle;
  });
}

Result<std::shared_ptr<ControlFile>> ControlTree::file_of(std::uint64_t handle) const {
  return open_.with([&](const OpenFiles& open) -> Result<std::shared_ptr<ControlFile>> {
    const auto found = open.files.find(handle);
    if (found == open.files.end()) return fail(EBADF, "no such open control file");
    return found->second.file;
  });
}

bool ControlTree::is_open(std::uint64_t id) const {
  return open_.with([&](const OpenFiles& open) {
    return std::ranges::any_of(open.files,
                               [&](const auto& entry) { return entry.second.node == id; });
  });
}

Result<std::size_t> ControlTree::read(std::uint64_t handle, std::uint64_t offset,
                                      std::span<char> out) {
  const auto file = file_of(handle);
  if (!file) return fail(file.error());
  return (*file)->read(offset, out);
}

Result<std::size_t> ControlTree::write(std::uint64_t handle, std::uint64_t offset,
                                       std::string_view text) {
  const auto file = file_of(handle);
  if (!file) return fail(file.error());
  return (*file)->write(offset, text);
}

Status ControlTree::flush(std::uint64_t handle, const Requester& requester) {
  const auto file = file_of(handle);
  if (!file) return fail(file.error());
  return (*file)->flush(requester);
}

void ControlTree::release(std::uint64_t handle, const Requester& requester) {
  growth_->forget(handle);
  const auto file = open_.with([&](OpenFiles& open) {
    auto node = open.files.extract(handle);
    return node ? std::move(node.mapped().file) : nullptr;
  });
  if (file) file->release(requester);
}

bool ControlTree::poll(std::uint64_t handle, std::uint64_t offset, std::function<void()> wake) {
  const auto file = file_of(handle);
  if (!file) return true;  // a read will say what is wrong
  const auto has_more = [&] {
    const auto size = (*file)->growing_size();
    return !size || *size > (offset == 0 ? (*file)->read_end() : offset);
  };
  if (has_more()) return true;
  if (wake) growth_->wait(handle, std::move(wake));
  return has_more();  // an entry may have come in between; an unneeded wake-up does no harm
}

}  // namespace

std::unique_ptr<ControlDir> ControlDir::create(Sources sources) {
  return std::make_unique<ControlTree>(std::move(sources));
}

}  // namespace imafs
