#pragma once

// PRIVATE header of kvaq/llama.

#include <ggml.h>

#include <string>

#include "kvaq/base/rope.h"

namespace kvaq {

/// How the queries of one attention node were rotated, as llama.cpp's graph says it.
struct GraphRope {
    RopeRule rule;        ///< n_dims 0: not at all (a layer without RoPE)
    std::string why_not;  ///< not empty: keys of this layer cannot be turned to other positions, and why
};

/// Follows the queries of an attention node back to their GGML_OP_ROPE. Only what commutes with a rotation may stand between: views,
/// scales, factors per token, norms without weights. What llama.cpp really computes counts, so per-layer bases, length scalings and the
/// program's own --rope-* flags need no second reading of the metadata. Reads the op's factors tensor, which must be on the host.
[[nodiscard]] GraphRope rope_of_queries(const ggml_tensor* q);

/// The rule of one GGML_OP_ROPE node (normal or neox pairs).
/// Source: ggml_rope_cache_init and rope_yarn of ggml/src/ggml-cpu/ops.cpp, whose angle is linear in the position.
[[nodiscard]] RopeRule rope_rule_of(const ggml_tensor* rope);

}  // namespace kvaq
