#include "imafs/cli.h"

int main(int argc, char** argv) { return static_cast<int>(imafs::run_command_line(argc, argv)); }
