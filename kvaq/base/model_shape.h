#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace kvaq {

/// Shape of one attention layer that owns a K/V cache.
struct LayerShape {
    int32_t layer = 0;           ///< the model's layer number
    size_t n_heads = 0;          ///< query heads
    size_t n_kv_heads = 0;       ///< heads that own K and V; n_heads % n_kv_heads == 0
    size_t head_dim_k = 0;       ///< channels per key head
    size_t head_dim_v = 0;       ///< channels per value head
    int32_t sliding_window = 0;  ///< positions a query sees back, itself included; 0 = all (full attention)

    bool operator==(const LayerShape&) const = default;
    [[nodiscard]] size_t heads_per_kv() const noexcept { return n_heads / n_kv_heads; }
};

/// What the planner, the estimator and the cache need to know of a model. Layers are in ascending order and only those
/// that own a cache are listed (a layer that reads another layer's K/V is not).
struct ModelShape {
    std::string architecture;
    std::string name;
    std::string fingerprint;  ///< hex sha256, see kvaq/llama/fingerprint.h; empty when unknown
    int32_t n_ctx_train = 0;
    bool shares_layers = false;  ///< layers after those of `layers` read an earlier one's K/V
    std::vector<LayerShape> layers;
};

}  // namespace kvaq
