// A verification in words and as JSON, the same for every tool that verifies.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "imafs/exit_code.h"
#include "imafs/verifier.h"

namespace imafs {

std::string to_text(const Verification& result);         // lines
nlohmann::ordered_json to_json(const Verification& result);
ExitCode exit_code_of(Verdict verdict);

}  // namespace imafs
