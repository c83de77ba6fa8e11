#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "kvaq/eval/prober.h"
#include "kvaq/plan/planner.h"

namespace kvaq {

struct CheckedPlan {
    Plan plan;  ///< predicted_kl is the measured KL
    ProbeResult measured;
    double predicted = 0;  ///< by the damage model alone, of the first plan
    size_t rounds = 0;     ///< repairs made
    double first_kl = 0;   ///< measured, of the first plan
};

/// Solves, measures the plan, and repairs the model where the prediction fails by more than 30 % (or always, with `always`): layers in four runs x two
/// sides; each group is measured with about one bit less, and its shares are multiplied by the damage found / the damage predicted; then the plan is
/// solved again. At most max_rounds times; the plan of least measured KL is kept. Nine measurements per round.
/// measure: of chunks of n_ctx tokens (Prober::measure).
[[nodiscard]] CheckedPlan check_and_repair(DamageModel& model, PlanRequest request,
                                           const std::function<ProbeResult(const Plan&)>& measure, size_t n_ctx,
                                           size_t max_rounds, bool always,
                                           const std::function<void(size_t, size_t, const std::string&)>& progress);

}  // namespace kvaq
