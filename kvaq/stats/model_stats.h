#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kvaq/base/float16.h"
#include "kvaq/base/model_shape.h"
#include "kvaq/base/rope.h"

namespace kvaq {

/// What was summed over a calibration text for one KV head. Matrices are row-major, in the model's basis; keys and queries
/// after RoPE at the positions that kvaq/stats/collector.h says, queries unscaled.
struct HeadStats {
    std::vector<double> key_second;    ///< [dk, dk] mean over tokens of k k^T
    std::vector<double> value_second;  ///< [dv, dv] mean of v v^T
    std::vector<double>
        query_second;  ///< [dk, dk] mean over tokens of the sum over the query heads of the group of q q^T
    std::vector<double>
        key_metric;  ///< [dk, dk] what an error of the keys does to the layer's output (kvaq/stats/output_metric.h)
    std::vector<double> value_metric;  ///< [dv, dv] likewise of the values
    std::vector<double> key_mean;      ///< [dk]
    std::vector<double> value_mean;    ///< [dv]
    std::vector<double>
        cached_key_second;  ///< [dk, dk] as key_second, of the keys as the model caches them; empty: not known, or the same
    std::vector<float16> key_tiles;    ///< [n_sample_tiles, 64, dk] whole tiles of consecutive tokens
    std::vector<float16> value_tiles;  ///< [n_sample_tiles, 64, dv]

    /// ||K||_F per token: sqrt of the mean of |k|^2 = sqrt(trace key_second). The paper's cache norm is this times sqrt(tokens).
    [[nodiscard]] double key_norm() const noexcept;
    /// cached_key_second where it is known, else key_second.
    [[nodiscard]] const std::vector<double>& cached_keys() const noexcept {
        return cached_key_second.empty() ? key_second : cached_key_second;
    }
    [[nodiscard]] double value_norm() const noexcept;
};

/// What one side of one layer adds to the KL, measured end to end, when it goes from ModelStats::base_bits to probe_bits while everything else stays
/// at base_bits. (Alone in an f16 model the same step disappears in the rounding floor.)
struct LayerProbe {
    static constexpr double kNotMeasured = -1e9;
    double key_kl = kNotMeasured;  ///< nats per token; may be slightly negative
    double value_kl = kNotMeasured;
    [[nodiscard]] bool complete() const noexcept { return key_kl > kNotMeasured && value_kl > kNotMeasured; }
};

/// KL of all layers quantized together, by transform codecs of the same mean bits everywhere.
struct JointProbe {
    double key_bits = 16;  ///< 16 = keys in f16
    double value_bits = 16;
    int32_t window = 0;  ///< newest tokens in f16
    double kl = 0;       ///< nats per token, against plain llama.cpp with its f16 cache; the floor is still in it
};

/// What a longer context adds: the same tokens scored at the end of one long chunk and of short ones.
struct LengthProbe {
    int32_t n_ctx = 0;      ///< of the long chunk; its second half is scored
    int32_t short_ctx = 0;  ///< of the short chunks, whose second halves are the same tokens
    double kl = 0;          ///< everything at ModelStats::base_bits, against our own f16 plan
    double short_kl = 0;    ///< likewise in the short chunks
};

struct LayerStats {
    LayerShape shape;
    std::vector<HeadStats> heads;
    LayerProbe probe;
    RopeRule rope = {};  ///< of the layer's queries and keys; n_dims 0: none, or not known
};

/// What `kvaq calibrate` measures and `kvaq plan` reads; also a *.stats.gguf file.
struct ModelStats {
    static constexpr uint32_t kSchemaVersion = 8;
    std::string architecture;
    std::string model_name;
    std::string fingerprint;
    std::string text_sha256;  ///< of the calibration text
    std::string settings;     ///< how much was measured, in words
    uint64_t n_tokens = 0;
    size_t n_sample_tiles = 0;  ///< per head
    double probe_bits =
        0;  ///< the probes' codec: the transform fitted to the head, at most that many mean bits; 0 = no probes
    double base_bits = 0;  ///< what the probes lower from
    double base_kl = 0;    ///< (negative: not measured yet) KL of everything at base_bits, on the probes' text
    double joint_floor =
        0;  ///< (likewise) KL of our own f16 plan against plain llama.cpp, on the text of the joint probes
    int32_t key_period = 0;  ///< Plan::key_period of the plans that these statistics are for
    /// [n_sample_tiles] positions by which the tiles' keys were turned (LayerStats::rope) from where the model caches them; empty: not known.
    std::vector<int32_t> tile_turns;
    std::vector<JointProbe> joint;
    std::vector<LengthProbe> lengths;  ///< rising n_ctx
    std::vector<LayerStats> layers;
};

}  // namespace kvaq
