#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "kvaq/plan/budget_text.h"
#include "kvaq/plan/plan.h"
#include "kvaq/stats/model_stats.h"

namespace kvaq {

/// Noise that a codec puts on one head, from the sample tiles of the statistics (e = x - decode(encode(x))):
///   keys    mean over tokens of e^T S_q e, S_q = sum over the group's query heads of E[q q^T]: the mean square error of the
///           unscaled logits q^T k, summed over the query heads
///   values  mean over tokens of |e|^2
[[nodiscard]] double codec_noise(const HeadStats& head, Side side, const CodecSpec& spec, size_t n_sample_tiles);

/// What the planner chooses from.
enum class CodecFamily {
    kTransform,  ///< fitted bases, unequal bits per channel, gains (kvaq/quant/transform.h)
    kAffine,     ///< candidate_codecs(): nothing fitted
};
[[nodiscard]] std::vector<CodecSpec> candidate_codecs();

struct PlanRequest {
    Budget budget;
    size_t n_ctx = 8192;  ///< context at which a budget in bits or bytes per token is met (a budget "512MiB@32768" brings its own)
    int32_t window = 0;
    int32_t sinks = 4;
    CodecFamily family = CodecFamily::kTransform;
};

/// A plan under a byte budget from measured statistics.
///   damage(layer, side, head, codec) = KL measured by the probe of (layer, side), minus the floor,
///                                      x noise(codec) of the head / sum over heads of noise(probe codec)
/// since KL is proportional to noise power where it is small. Bytes are exact (packed_bytes), the budget covers everything held
/// at n_ctx tokens: window, sinks, tiles not sealed yet, tables.
/// Transform codecs' noise is taken per channel (kvaq/stats/transform_fit.h), affine codecs' by codec_noise(); their tables count.
/// Throws Error kInvalidArgument (no probes in the statistics), kBudgetTooSmall (with the floor and the smallest plan).
[[nodiscard]] Plan solve_plan(const ModelStats& stats, const PlanRequest& request);

/// Fitted transform codecs with the same mean bits everywhere, e.g. 4 for keys and 2.5 for values (16: f16): per head the highest rung
/// that does not exceed them. What the allocation over layers and heads is compared with. Throws Error kInvalidArgument.
[[nodiscard]] Plan uniform_transform_plan(const ModelStats& stats, double key_bits, double value_bits, int32_t window, int32_t sinks);

/// The shape the statistics were made for.
[[nodiscard]] ModelShape shape_of(const ModelStats& stats);

}  // namespace kvaq
