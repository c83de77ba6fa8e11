#pragma once

#include "kvaq/base/sha256.h"
#include "kvaq/llama/gguf_file.h"

namespace kvaq {

/// What a model's fingerprint is made of (model_fingerprint in kvaq/llama/gguf_model.h), for one file of the model:
///   the header's bytes (metadata, tensor names, shapes and offsets), then of every tensor in the order of its bytes in the
///   file the first and the last 4 KiB (all of it when it is shorter than 8 KiB).
/// Throws Error kCorrupt, kIo.
void add_to_fingerprint(const GgufReader& file, Sha256& sha);

}  // namespace kvaq
