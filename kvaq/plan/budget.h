#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kvaq/plan/plan.h"

namespace kvaq {

/// No larger context is looked for: positions are int32_t.
inline constexpr size_t kMaxTokens = size_t{1} << 30;

/// Bytes of one layer at a context, every kind counted apart. They are what KvCache allocates for one sequence of that
/// many tokens (tests hold them equal) without KvCacheOptions::rewind.
struct LayerBytes {
    int32_t layer = 0;
    size_t packed_key = 0;  ///< sealed tiles, all KV heads
    size_t packed_value = 0;
    size_t open = 0;    ///< f16 pages: tokens of the window and of tiles not sealed yet
    size_t sinks = 0;   ///< f16 copies of the sink tokens
    size_t tables = 0;  ///< bases and codebooks of transform codecs, held once for all sequences
    [[nodiscard]] size_t total() const noexcept { return packed_key + packed_value + open + sinks + tables; }
};

struct CacheBytes {
    std::vector<LayerBytes> layers;
    size_t total = 0;
    size_t elements =
        0;  ///< K and V numbers a full-attention f16 cache of that context holds (SWA layers: their window)
    double effective_bits = 0;  ///< 8 * total / elements
};

/// Exact bytes held for one sequence of n_tokens (no prefill scratch). Formula in docs/formats.md:
///   sealed tiles   S = floor((n_tokens - window) / tile_tokens), 0 below the window;  packed_bytes each
///   open pages     ceil((n_tokens - S * tile_tokens) / tile_tokens);  n_kv_heads * tile_tokens * (dim_k + dim_v) * 2 each
///   sinks          when S > 0: n_kv_heads * sinks * (dim_k + dim_v) * 2
/// keep_sliding true: sliding-window layers count like the others (--swa-full). False, what the drop-in does unless told otherwise: of a sliding-window layer only those tiles and pages count that a later token can still see, also after the
/// sequence was shortened by up to sliding_rewind() tokens (last position > n_tokens - sliding_window - sliding_rewind), and the
/// sinks only while tile 0 is among them.
[[nodiscard]] CacheBytes cache_bytes(const Plan& plan, size_t n_tokens, bool keep_sliding = false);

/// Tokens by which a sequence may be shortened (a chat's next turn, rejected drafts) without its sliding-window layers missing any: one tile.
[[nodiscard]] inline size_t sliding_rewind(const Plan& plan) noexcept { return plan.tile_tokens; }

/// Bytes per token in the limit of a long context: sealed tiles only, / tile_tokens; full-attention layers only.
[[nodiscard]] double bytes_per_token(const Plan& plan);

/// Largest n_tokens with cache_bytes(plan, n).total <= bytes; 0 if none. The total is not monotone (a tile that seals
/// shrinks), so every phase of a tile is searched. At most 2^30 - 1.
[[nodiscard]] size_t largest_context(const Plan& plan, size_t bytes, bool keep_sliding = false);

/// Bytes of llama.cpp's own cache of a type ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "bf16", "f32") for comparison
/// rows: n_cells per full layer (n_tokens padded to 256), window + ubatch padded to 256 for sliding layers.
/// Throws Error kInvalidArgument (unknown type), kUnsupported (rows that are no multiple of the type's block of 32).
[[nodiscard]] size_t llama_cache_bytes(const ModelShape& shape, const std::string& type, size_t n_tokens,
                                       size_t n_ubatch = 512);

}  // namespace kvaq
