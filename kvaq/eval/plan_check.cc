#include "kvaq/eval/plan_check.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

constexpr size_t kRuns = 4;  ///< of layers
constexpr double kTolerance = 0.3;
constexpr double kLessBits = 1.0;
constexpr double kMostCorrection = 4.0;

size_t run_of(size_t layer, size_t n_layers) { return layer * kRuns / n_layers; }

/// The same basis, fitted or not.
bool same_kind(const CodecSpec& a, const CodecSpec& b) {
    if (a.transform == nullptr || b.transform == nullptr) return a.transform == b.transform;
    return a.transform->fit->basis == b.transform->fit->basis;
}

/// The plan with one side of one run of layers at about a bit less.
Plan lowered(const DamageModel& model, Plan plan, size_t run, Side side) {
    for (const DamageSlot& slot : model.slots()) {
        if (slot.side != side || run_of(slot.layer, plan.layers.size()) != run) continue;
        HeadPlan& head = plan.layers[slot.layer].heads[slot.head];
        CodecSpec& codec = side == Side::kKey ? head.key : head.value;
        const double wanted = nominal_bits(codec) - kLessBits;
        constexpr double kOtherKind = 100;  // what is to be learnt is the damage of bits, not of another basis
        const auto distance = [&](const CodecSpec& c) {
            return std::abs(nominal_bits(c) - wanted) + (same_kind(c, codec) ? 0 : kOtherKind);
        };
        codec = *std::min_element(slot.codecs.begin(), slot.codecs.end(),
                                  [&](const CodecSpec& a, const CodecSpec& b) { return distance(a) < distance(b); });
    }
    return plan;
}

std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.2f", value);
    return text;
}

double predicted_kl(const DamageModel& model, const Plan& plan, size_t n_ctx) {
    const std::vector<double> damages = damage_by_layer(model, plan);
    return model.predict(std::accumulate(damages.begin(), damages.end(), 0.0), plan.window, n_ctx);
}

}  // namespace

CheckedPlan check_and_repair(DamageModel& model, PlanRequest request,
                             const std::function<ProbeResult(const Plan&)>& measure, size_t n_ctx, size_t max_rounds,
                             bool always, const std::function<void(size_t, size_t, const std::string&)>& progress) {
    CheckedPlan checked;
    request.predict_ctx = n_ctx;
    Plan plan = solve_plan(model, request);
    ProbeResult measured = measure(plan);
    const size_t per_round = 2 * kRuns + 1;
    size_t done = 1;
    progress(done, 1 + max_rounds * per_round, "the plan");
    checked.predicted = plan.predicted_kl;
    checked.first_kl = measured.kl.value;
    checked.plan = plan;
    checked.measured = measured;
    const size_t n_layers = plan.layers.size();
    for (size_t round = 0; round < max_rounds; ++round) {
        const double ratio = plan.predicted_kl / std::max(1e-9, measured.kl.value);
        if (!always && std::abs(ratio - 1) <= kTolerance) break;
        std::vector<double> corrections;
        for (size_t run = 0; run < kRuns; ++run) {
            for (const Side side : {Side::kKey, Side::kValue}) {
                const Plan less = lowered(model, plan, run, side);
                const double found = measure(less).kl.value - measured.kl.value;
                const double expected = predicted_kl(model, less, n_ctx) - plan.predicted_kl;
                corrections.push_back(expected > 0 ? std::clamp(found / expected, 1 / kMostCorrection, kMostCorrection)
                                                   : 1.0);
                progress(++done, 1 + max_rounds * per_round,
                         "layers in part " + std::to_string(run + 1) + " of " + std::to_string(kRuns) + ", " +
                             to_string(side) + ": x" + number(corrections.back()));
            }
        }
        for (size_t layer = 0; layer < n_layers; ++layer) {
            for (const Side side : {Side::kKey, Side::kValue}) {
                model.scale_share(layer, side, corrections[2 * run_of(layer, n_layers) + (side == Side::kKey ? 0 : 1)]);
            }
        }
        plan = solve_plan(model, request);
        measured = measure(plan);
        progress(++done, 1 + max_rounds * per_round, "the repaired plan");
        ++checked.rounds;
        if (measured.kl.value < checked.measured.kl.value) {
            checked.plan = plan;
            checked.measured = measured;
        }
    }
    checked.plan.predicted_kl = checked.measured.kl.value;
    checked.plan.measured_how =
        "measured together on " + std::to_string(checked.measured.n_tokens) + " tokens; " + checked.plan.measured_how;
    return checked;
}

}  // namespace kvaq
