#pragma once

#include <string>

#include "kvaq/stats/model_stats.h"

namespace kvaq {

/// Writes *.stats.gguf atomically. command: as write_plan. Throws Error kIo.
void write_stats(const ModelStats& stats, const std::string& path, const std::string& command = "");
/// Throws Error kNotFound, kCorrupt, kMismatch (another schema version).
[[nodiscard]] ModelStats read_stats(const std::string& path);
/// The same for a model (its file's name, for the message) of that fingerprint. Throws Error kMismatch, with the hint, for another one's.
[[nodiscard]] ModelStats read_stats_of(const std::string& path, const std::string& model,
                                       const std::string& fingerprint,
                                       const std::string& hint = "Calibrate this model");

}  // namespace kvaq
