#pragma once

#include <cstdint>
#include <string>

#include "kvaq/base/sha256.h"
#include "kvaq/llama/gguf_file.h"

namespace kvaq {

/// What a model's fingerprint is made of (model_fingerprint in kvaq/llama/gguf_model.h), for one file of the model:
///   the header's bytes (metadata, tensor names, shapes and offsets), then of every tensor in the order of its bytes in the
///   file the first and the last 4 KiB (all of it when it is shorter than 8 KiB).
/// Throws Error kCorrupt, kIo.
void add_to_fingerprint(const GgufReader& file, Sha256& sha);

/// "dir/name-00001-of-00003.gguf" -> the path of part `index` (0-based); llama.cpp's own naming rule. Throws Error kInvalidArgument
/// for another name.
[[nodiscard]] std::string split_part_path(const std::string& first, int64_t index, int64_t count);

}  // namespace kvaq
