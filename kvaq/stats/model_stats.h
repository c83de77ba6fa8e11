#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kvaq/base/float16.h"
#include "kvaq/base/model_shape.h"

namespace kvaq {

/// What was summed over a calibration text for one KV head. Matrices are row-major, in the model's basis; keys and queries
/// after RoPE, queries unscaled.
struct HeadStats {
    std::vector<double> key_second;    ///< [dk, dk] mean over tokens of k k^T
    std::vector<double> value_second;  ///< [dv, dv] mean of v v^T
    std::vector<double> query_second;  ///< [dk, dk] mean over tokens of the sum over the query heads of the group of q q^T
    std::vector<double> key_mean;      ///< [dk]
    std::vector<double> value_mean;    ///< [dv]
    std::vector<float16> key_tiles;    ///< [n_sample_tiles, 64, dk] whole tiles of consecutive tokens
    std::vector<float16> value_tiles;  ///< [n_sample_tiles, 64, dv]

    /// ||K||_F per token: sqrt of the mean of |k|^2 = sqrt(trace key_second). The paper's cache norm is this times sqrt(tokens).
    [[nodiscard]] double key_norm() const noexcept;
    [[nodiscard]] double value_norm() const noexcept;
};

/// KL that quantizing one side of one layer alone does to the model, measured end to end against the same engine with an f16
/// plan.
struct LayerProbe {
    double key_kl = -1;    ///< nats per token; negative = not measured
    double value_kl = -1;
};

struct LayerStats {
    LayerShape shape;
    std::vector<HeadStats> heads;
    LayerProbe probe;
};

/// What `kvaq calibrate` measures and `kvaq plan` reads; also a *.stats.gguf file.
struct ModelStats {
    static constexpr uint32_t kSchemaVersion = 2;
    std::string architecture;
    std::string model_name;
    std::string fingerprint;
    std::string text_sha256;       ///< of the calibration text
    uint64_t n_tokens = 0;
    size_t n_sample_tiles = 0;     ///< per head
    double probe_bits = 0;         ///< the probes' codec: the transform fitted to the head, at most that many mean bits; 0 = no probes
    double probe_floor = 0;        ///< KL of a perturbation too small to matter: rounding elsewhere, subtracted from every probe
    std::vector<LayerStats> layers;
};

}  // namespace kvaq
