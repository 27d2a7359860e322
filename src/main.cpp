#include "imafs/cli.h"
#include "imafs/privileges.h"

int main(int argc, char** argv) {
  imafs::fill_standard_descriptors();
  return static_cast<int>(imafs::run_command_line(argc, argv));
}
