// Labels of files and tasks, for the conditions obj_* and subj_*: SELinux's, "user:role:type:range".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace imafs {

// Whether SELinux runs here. Without it no label is valid, as in a kernel without an LSM.
bool labels_are_known();

// Empty: it has none, or is gone.
std::string label_of_file(int fd);
std::string label_of_task(std::uint32_t tid);

// Part 0, 1, 2 of a label: user, role, type. Empty: it has no such part.
std::string_view part_of_label(std::string_view label, std::size_t part);

}  // namespace imafs
