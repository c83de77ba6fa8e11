#pragma once

#include <llama.h>

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace kvaq {

/// A slot file (docs/formats.md): the tokens of a sequence and its snapshot, each with a checksum.
[[nodiscard]] std::vector<std::byte> slot_file(std::span<const llama_token> tokens,
                                               std::span<const std::byte> snapshot);

struct SlotFile {
    std::vector<llama_token> tokens;
    std::span<const std::byte> snapshot;  ///< in the bytes that were read; its own checksum is for the cache to check
};

/// Throws Error kCorrupt if bytes are another file, of another version, truncated, or if the tokens are damaged or of another snapshot. `path` is
/// for messages.
[[nodiscard]] SlotFile read_slot_file(std::span<const std::byte> bytes, const std::string& path);

}  // namespace kvaq
