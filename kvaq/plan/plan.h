#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kvaq/base/model_shape.h"
#include "kvaq/base/rope.h"
#include "kvaq/cache/tile.h"
#include "kvaq/quant/codec_spec.h"

namespace kvaq {

/// Codecs of one KV head.
struct HeadPlan {
    CodecSpec key;
    CodecSpec value;
    bool operator==(const HeadPlan&) const = default;
};

struct LayerPlan {
    LayerShape shape;
    std::vector<HeadPlan> heads;  ///< [n_kv_heads]
    /// How packed keys are turned back by Plan::key_period; n_dims 0: not at all. The model's own RoPE where that is known: then keys of
    /// all positions resemble those of the first ones. What attention computes does not depend on it: <R q, R k> = <q, k> for any rotation.
    RopeRule key_turn = {};
    bool operator==(const LayerPlan&) const = default;
};

/// Bytes of the bases and codebooks of a layer's transform codecs (a fit that several heads share counts once).
[[nodiscard]] size_t table_bytes(const LayerPlan& layer);

/// What every layer, side and KV head costs and how it is stored. A value; also a *.plan.gguf file.
struct Plan {
    static constexpr uint32_t kSchemaVersion = 2;  ///< of plans with a key_period; those without have 1
    std::string name;                              ///< preset text or policy and budget, for logs
    std::string architecture;
    std::string model_name;
    std::string fingerprint;  ///< of the model; empty for presets (they fit any model)
    size_t tile_tokens = kDefaultTileTokens;
    int32_t window = 0;  ///< positions by which a whole tile must be older than a query to be read packed
    int32_t sinks = 0;   ///< first tokens of a sequence kept in f16; 0 <= sinks <= tile_tokens
    /// > 0: the packed keys of a page whose slot 0 is rotated for position f are turned back by the largest multiple of it up to f.
    int32_t key_period = 0;
    std::vector<LayerPlan> layers;  ///< those that own a cache, ascending
    double predicted_kl = -1;       ///< nats per token; negative = not predicted
    std::string measured_how;       ///< one sentence: text, tokens, method of the prediction

    bool operator==(const Plan&) const = default;
};

/// Mean nominal code bits of a side: over the layer's heads, and over all layers alike.
[[nodiscard]] double mean_bits(const LayerPlan& layer, Side side);
[[nodiscard]] double mean_bits(const Plan& plan, Side side);

/// Codec choices before they meet a model: what a preset name says. "k4v2", "K4V2-g32-rot-w64-s4", "q8_0", "f16", ...
/// Grammar (case-insensitive, suffixes in any order):
///   k<bits>v<bits>  with bits in 1, 1.58, 2, 3, 4, 5, 6, 8, 16
///   -g<n>, -gk<n>, -gv<n>     group size of both, K, V          (default 64)
///   -kchan, -vchan            groups along tokens (KIVI) for K, V  (default: along the token's channels)
///   -sym                      no zero point
///   -quanto, -hqq             the paper's two quantizer rules    (default: min-max round to nearest)
///   -rot, -rotk, -rotv        Hadamard basis for both, K, V      (default: none)
///   -lm                       Hadamard basis, Gaussian Lloyd-Max codebooks, one gain a token (kvaq/quant/gaussian_codebook.h); goes with -w and -s only
///   -tcq                      as -lm, with trellis codes (kvaq/quant/trellis.h) instead of Lloyd-Max codebooks
///   -w<n>, -s<n>              residual window, sink tokens       (default 0, 0)
///   q8_0, q5_1, q5_0, q4_1, q4_0   groups of 32, symmetric (_0) or asymmetric (_1), like llama.cpp's types; rotated
///   f16
struct Preset {
    std::string name;  ///< canonical text
    CodecSpec key;
    CodecSpec value;
    int32_t window = 0;
    int32_t sinks = 0;
    bool lloyd_max = false;  ///< -lm or -tcq: of key and value only the bits count
    bool trellis = false;    ///< -tcq
};

/// Throws Error kInvalidArgument naming the unknown part and listing what is allowed.
[[nodiscard]] Preset parse_preset(const std::string& text);

/// True if the text looks like a preset rather than a file name (used to choose between the two).
[[nodiscard]] bool is_preset(const std::string& text) noexcept;

/// The preset on every layer and head of a model. tile_tokens becomes 128 where a per-channel group of 128 needs it.
[[nodiscard]] Plan make_uniform_plan(const Preset& preset, const ModelShape& shape);

/// Throws Error kMismatch (wanted, found, what to do) when the plan was made for another model: fingerprint if both are
/// known, else architecture, layers, heads and head sizes.
void check_plan_fits(const Plan& plan, const ModelShape& shape);

}  // namespace kvaq
