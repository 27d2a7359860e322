// What leases and reports of writers are worth on a type of file system: docs/ARCHITECTURE.md, "What proves that a file is
// unchanged". A type that is not listed is believed in nothing.
#pragma once

#include <linux/magic.h>

#include <cstdint>

namespace imafs {

enum class FileSystemKind {
  kLocal,     // every writer opens the file through this kernel, on this inode: a lease sees all of them
  kConstant,  // has no writers
  kLayered,   // overlayfs: a lease sees who opens the merged file, not who writes to a file of its layers
  kForeign,   // FUSE, network: this kernel grants leases and does not know of writers elsewhere
};

constexpr FileSystemKind kind_of_file_system(std::uint64_t magic) {
  // Not in <linux/magic.h> of Debian 12.
  constexpr std::uint64_t iso9660 = 0x9660, xfs = 0x58465342, bcachefs = 0xca451a4e, ntfs3 = 0x7366746e, nilfs2 = 0x3434, jfs = 0x3153464a;
  switch (magic) {
    case EXT4_SUPER_MAGIC:  // also ext2 and ext3
    case TMPFS_MAGIC:
    case RAMFS_MAGIC:
    case BTRFS_SUPER_MAGIC:
    case F2FS_SUPER_MAGIC:
    case xfs:
    case bcachefs:
    case MSDOS_SUPER_MAGIC:
    case EXFAT_SUPER_MAGIC:
    case ntfs3:
    case nilfs2:
    case jfs: return FileSystemKind::kLocal;
    case SQUASHFS_MAGIC:
    case EROFS_SUPER_MAGIC_V1:
    case CRAMFS_MAGIC:
    case iso9660: return FileSystemKind::kConstant;
    case OVERLAYFS_SUPER_MAGIC: return FileSystemKind::kLayered;
    default: return FileSystemKind::kForeign;
  }
}

}  // namespace imafs
