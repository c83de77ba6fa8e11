#pragma once

#include <cstddef>
#include <cstdint>

#include "kvaq/plan/budget_text.h"
#include "kvaq/plan/damage.h"
#include "kvaq/plan/plan.h"

namespace kvaq {

struct PlanRequest {
    Budget budget;
    size_t n_ctx =
        8192;  ///< context at which a budget in bits or bytes per token is met (a budget "512MiB@32768" brings its own)
    int32_t window = kBestWindow;  ///< newest tokens in f16
    int32_t sinks = 4;
    size_t predict_ctx = 0;  ///< context at which the KL is predicted; 0: n_ctx
    static constexpr int32_t kBestWindow =
        -1;  ///< of the windows that calibration measured, the one of least predicted KL within the budget
};

/// The plan of least predicted damage (kvaq/plan/damage.h) under a byte budget. Bytes are exact (packed_bytes): everything held at n_ctx tokens
/// counts, window, sinks, tiles not sealed yet and tables too. Never over the budget; more budget never predicts more damage.
/// Throws Error kBudgetTooSmall (with the floor and the smallest plan).
[[nodiscard]] Plan solve_plan(const DamageModel& model, const PlanRequest& request);

/// Predicted damage of a plan that solve_plan made, per layer and side: [layer][side], in the order of the model's slots; their sum goes into
/// DamageModel::predict.
[[nodiscard]] std::vector<double> damage_by_layer(const DamageModel& model, const Plan& plan);

/// Fitted transform codecs with the same mean bits everywhere, e.g. 4 for keys and 2.5 for values (16: f16): per head the highest rung
/// that does not exceed them. `codes`: codebooks are what joint probes measure. What the allocation over layers and heads is compared with, and what joint probes measure. `fits` of fit_all(stats).
[[nodiscard]] Plan uniform_transform_plan(const ModelStats& stats, const std::vector<FittedTransform>& fits,
                                          double key_bits, double value_bits, int32_t window, int32_t sinks,
                                          TransformCodes codes = TransformCodes::kCodebook);

/// The shape the statistics were made for.
[[nodiscard]] ModelShape shape_of(const ModelStats& stats);

}  // namespace kvaq
