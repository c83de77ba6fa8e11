#pragma once

#include <string>

#include "kvaq/base/model_shape.h"

namespace kvaq {

/// Shape of a GGUF model read from its header only (no weights are loaded). Split files: give the first part.
/// Throws Error: kNotFound (no such file), kCorrupt (not GGUF, truncated: wanted bytes, found bytes), kUnsupported (MLA, recurrent,
/// hybrid, encoder models; by architecture name and reason).
[[nodiscard]] ModelShape read_model_shape(const std::string& path);

/// Hex sha256 over the GGUF metadata and a fixed sample of every tensor's bytes (first and last 4 KiB), so that it takes
/// milliseconds and still tells fine-tunes apart. Split files: over all parts.
[[nodiscard]] std::string model_fingerprint(const std::string& path);

}  // namespace kvaq
