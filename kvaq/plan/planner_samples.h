#pragma once

// For tests: statistics of a small model with its probes, and requests.

#include <array>
#include <string>
#include <utility>

#include "kvaq/plan/planner.h"
#include "kvaq/stats/stats_samples.h"

namespace kvaq {

inline constexpr size_t kLayers = 3;
inline constexpr size_t kDim = 64;

/// Layer 1's keys hurt most; joint probes as a real model's: more than the sum of the layers', and falling less than noise does.
inline ModelStats sample_stats(bool correlated = true) {
    ModelStats stats;
    stats.architecture = "llama";
    stats.model_name = "sample";
    stats.fingerprint = "f00d";
    stats.text_sha256 = std::string(64, '0');
    stats.n_tokens = 4096;
    stats.n_sample_tiles = kSampleTiles;
    stats.probe_bits = 1;
    stats.base_bits = 3;
    stats.base_kl = 0.05;
    stats.joint_floor = 0.003;
    for (size_t l = 0; l < kLayers; ++l) {
        LayerStats layer;
        layer.shape = {.layer = static_cast<int32_t>(l),
                       .n_heads = 4,
                       .n_kv_heads = 2,
                       .head_dim_k = kDim,
                       .head_dim_v = kDim,
                       .sliding_window = 0};
        for (unsigned h = 0; h < 2; ++h)
            layer.heads.push_back(correlated_head(kDim, static_cast<unsigned>(10 * l) + h, correlated));
        layer.probe = {.key_kl = l == 1 ? 0.2 : 0.0, .value_kl = 0.01};  // with the prior, .22 and .02
        stats.layers.push_back(std::move(layer));
    }
    for (const auto& [bits, key, value] : {std::array{1.0, 1.2, 0.3}, std::array{2.0, 0.5, 0.1},
                                           std::array{3.0, 0.18, 0.04}, std::array{4.0, 0.06, 0.015}}) {
        stats.joint.push_back({.key_bits = bits, .value_bits = 16, .kl = stats.joint_floor + key});
        stats.joint.push_back({.key_bits = 16, .value_bits = bits, .kl = stats.joint_floor + value});
        stats.joint.push_back({.key_bits = bits, .value_bits = bits, .kl = stats.joint_floor + 1.2 * (key + value)});
    }
    return stats;
}

inline PlanRequest bits_of(double bits, size_t n_ctx = 32768) {
    return {.budget = {.unit = Budget::Unit::kEffectiveBits, .amount = bits, .n_tokens = 0}, .n_ctx = n_ctx};
}

}  // namespace kvaq
