#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace kvaq {

enum class FileKind { kPlan, kStats, kModel };

/// What a GGUF file is, from its keys. Throws Error kNotFound, kCorrupt, kInvalidArgument (none of these).
[[nodiscard]] FileKind file_kind(const std::string& path);

/// What `kvaq inspect --json` prints of a plan, statistics or a model: the file read and checked whole (docs/formats.md). Throws Error.
[[nodiscard]] nlohmann::ordered_json file_json(const std::string& path);

/// The command that made a plan or statistics, for people; empty where the file does not hold it. Throws Error kNotFound, kCorrupt.
[[nodiscard]] std::string file_command(const std::string& path);

}  // namespace kvaq
