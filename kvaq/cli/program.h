#pragma once

#include <filesystem>
#include <string>

namespace kvaq {

/// A llama.cpp program: in KVAQ_LLAMA_BIN, and for the verbs' own programs nowhere else if that is set; then in the llama.cpp installed with this
/// program (cmake/install.cmake; the build tree has a link there), the program's own folder, PATH. any_program: `name` may be anything, also a
/// path. Throws Error kNotFound, saying where it looked.
[[nodiscard]] std::filesystem::path find_program(const std::string& name, bool any_program);

/// What LD_PRELOAD must be for a program to run under the drop-in: the library this program itself is linked to, before what LD_PRELOAD holds
/// already. Throws Error kNotFound, kUnsupported (a path that the loader would split).
[[nodiscard]] std::string preload_value();

/// What KVAQ_PLAN must be: a file as an absolute path, a preset as it is. Throws Error when it is neither.
[[nodiscard]] std::string plan_value(const std::string& plan);

}  // namespace kvaq
