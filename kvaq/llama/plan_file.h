#pragma once

#include <string>

#include "kvaq/plan/plan.h"

namespace kvaq {

/// Writes *.plan.gguf atomically (temporary file beside it, fsync, rename). command: what made it, for people (file_command); not part of the plan.
/// Throws Error kIo.
void write_plan(const Plan& plan, const std::string& path, const std::string& command = "");
/// Throws Error kNotFound, kCorrupt (truncated, not GGUF, values out of range, checksum), kMismatch (another schema version
/// or another tile format).
/// What was given for --plan is no preset: throws Error, kInvalidArgument naming the part of a mistyped preset, or kNotFound, unless it is a
/// file.
void require_plan_file(const std::string& preset_or_file);
[[nodiscard]] Plan read_plan(const std::string& path);

}  // namespace kvaq
