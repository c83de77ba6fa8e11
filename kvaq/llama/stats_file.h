#pragma once

#include <string>

#include "kvaq/stats/model_stats.h"

namespace kvaq {

/// Writes *.stats.gguf atomically. Throws Error kIo.
void write_stats(const ModelStats& stats, const std::string& path);
/// Throws Error kNotFound, kCorrupt, kMismatch (another schema version).
[[nodiscard]] ModelStats read_stats(const std::string& path);

}  // namespace kvaq
