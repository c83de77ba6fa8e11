#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kvaq/base/model_shape.h"
#include "kvaq/plan/greedy.h"
#include "kvaq/plan/import.h"

namespace kvaq {

/// Norms of W_K and W_V of one layer, over the whole projection (all KV heads): checklist 1.
struct LayerWeightNorms {
    int32_t layer = 0;
    double key_frobenius = 0;
    double key_spectral = 0;
    double value_frobenius = 0;
    double value_spectral = 0;
    size_t key_elements = 0;  ///< K and V projections of different shapes compare per element: norm / sqrt(elements)
    size_t value_elements = 0;
    bool value_is_key = false;  ///< no W_V in the file: the model takes V from W_K's output
};

struct WeightNorms {
    std::vector<LayerWeightNorms> layers;  ///< in the order of ModelShape::layers
    bool qk_norm = false;  ///< keys are normalised after W_K (attn_k_norm): its norm does not reach the cache

    /// For the authors' allocators and their JSON. kSpectral: ||W||_2, kFrobenius: ||W||_F.
    [[nodiscard]] LayerNorms of(NormScore score) const;
};

/// Reads the K and V projections of every layer that owns a cache, dequantized by ggml's own routines, also from fused
/// attn_qkv tensors (rows Q, then K, then V) and split files.
///   ||W||_F = sqrt(sum w^2);  ||W||_2 = sqrt(largest eigenvalue of the smaller of W W^T and W^T W) (Eigen), all in
///   double.
/// A projection of n rows takes about n^3 operations: seconds a layer above 2000 rows. progress(layers done) after each
/// layer. Throws Error as read_model_shape, and kUnsupported (a layer without such tensors; a type that ggml cannot
/// dequantize), kCorrupt (a tensor of the wrong size, weights that are no numbers).
[[nodiscard]] WeightNorms read_weight_norms(const std::string& path, const std::function<void(size_t)>& progress = {});

/// True if the model has attn_k_norm tensors; reads headers only.
[[nodiscard]] bool has_qk_norm(const std::string& path);

}  // namespace kvaq
