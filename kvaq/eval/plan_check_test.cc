#include "kvaq/eval/plan_check.h"

#include <gtest/gtest.h>

#include "kvaq/plan/budget.h"
#include "kvaq/plan/planner_samples.h"

namespace kvaq {
namespace {

constexpr size_t kCtx = 2048;

/// What a damage model says of a plan: the truth of a world made for the test.
double kl_in(const DamageModel& world, const Plan& plan) {
    double sum = 0;
    for (const double damage : damage_by_layer(world, plan)) sum += damage;
    return world.predict(sum, plan.window, kCtx);
}

CheckedPlan check(DamageModel& model, const DamageModel& world, double factor, bool always, size_t* n_measured) {
    return check_and_repair(
        model, bits_of(3, kCtx),
        [&](const Plan& plan) {
            ++*n_measured;
            ProbeResult found;
            found.kl.value = factor * kl_in(world, plan);
            found.same_top = 0.9;
            found.n_tokens = 100;
            return found;
        },
        kCtx, 2, always, [](size_t done, size_t total, const std::string&) { EXPECT_LE(done, total); });
}

TEST(PlanCheck, LeavesAPlanWhosePredictionHolds) {
    const ModelStats stats = sample_stats();
    const DamageModel world(stats, CodecFamily::kTrellis);
    for (const double factor : {0.8, 1.0, 1.25}) {
        DamageModel model(stats, CodecFamily::kTrellis);
        size_t n = 0;
        const CheckedPlan checked = check(model, world, factor, false, &n);
        EXPECT_EQ(n, 1U) << factor;
        EXPECT_EQ(checked.rounds, 0U);
        EXPECT_DOUBLE_EQ(checked.first_kl, factor * checked.predicted);
        EXPECT_DOUBLE_EQ(checked.plan.predicted_kl, checked.first_kl) << "the plan says what was measured";
        EXPECT_EQ(checked.plan.measured_how.rfind("measured together on 100 tokens", 0), 0U);
    }
}

// The values of the last layer matter 60 times as much as calibration found.
TEST(PlanCheck, RepairsWhereThePredictionFailsByMoreThanAThirdAndKeepsTheBetterPlan) {
    const ModelStats stats = sample_stats();
    DamageModel world(stats, CodecFamily::kTrellis);
    world.scale_share(kLayers - 1, Side::kValue, 60);
    DamageModel model(stats, CodecFamily::kTrellis);
    size_t n = 0;
    const CheckedPlan checked = check(model, world, 1, false, &n);
    EXPECT_GT(checked.first_kl, 1.3 * checked.predicted);
    EXPECT_GE(checked.rounds, 1U);
    EXPECT_EQ(n, 1 + 9 * checked.rounds);
    EXPECT_LT(checked.measured.kl.value, 0.9 * checked.first_kl);
    EXPECT_DOUBLE_EQ(checked.measured.kl.value, kl_in(world, checked.plan));
    EXPECT_LE(cache_bytes(checked.plan, kCtx).effective_bits, 3 + 1e-9) << "repairs keep the budget";
    double bits = 0;
    double others = 0;
    for (size_t l = 0; l < kLayers; ++l)
        (l + 1 == kLayers ? bits : others) += mean_bits(checked.plan.layers[l], Side::kValue);
    EXPECT_GT(bits, others / (kLayers - 1) + 0.5) << "bits went where the damage is";
}

TEST(PlanCheck, KeepsTheFirstPlanWhereRepairsMakeItWorse) {
    const ModelStats stats = sample_stats();
    const DamageModel world(stats, CodecFamily::kTrellis);
    DamageModel model(stats, CodecFamily::kTrellis);
    size_t n = 0;
    // All that is measured after the first plan is twice as bad as the world says.
    const CheckedPlan checked = check_and_repair(
        model, bits_of(3, kCtx),
        [&](const Plan& plan) {
            ProbeResult found;
            found.kl.value = (n++ == 0 ? 1 : 2) * kl_in(world, plan);
            return found;
        },
        kCtx, 2, true, [](size_t, size_t, const std::string&) {});
    EXPECT_EQ(checked.rounds, 2U);
    EXPECT_EQ(n, 19U);
    EXPECT_DOUBLE_EQ(checked.measured.kl.value, checked.first_kl);
    DamageModel fresh(stats, CodecFamily::kTrellis);
    EXPECT_EQ(damage_by_layer(fresh, checked.plan), damage_by_layer(fresh, solve_plan(fresh, bits_of(3, kCtx))));
}

}  // namespace
}  // namespace kvaq
