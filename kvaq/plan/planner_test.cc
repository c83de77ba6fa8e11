#include "kvaq/plan/planner.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kvaq/base/error.h"
#include "kvaq/plan/budget.h"
#include "kvaq/plan/budget_text.h"
#include "kvaq/plan/planner_samples.h"
#include "kvaq/plan/verdict.h"

namespace kvaq {
namespace {

double mean_bits(const Plan& plan, size_t layer, Side side) {
    double sum = 0;
    for (const HeadPlan& head : plan.layers[layer].heads)
        sum += nominal_bits(side == Side::kKey ? head.key : head.value);
    return sum / static_cast<double>(plan.layers[layer].heads.size());
}

TEST(Planner, NeverExceedsTheBudgetAndMoreBudgetNeverPredictsMoreDamage) {
    const ModelStats stats = sample_stats();
    for (const CodecFamily family : {CodecFamily::kTransform, CodecFamily::kTrellis, CodecFamily::kAffine}) {
        const DamageModel model(stats, family);
        double last = 1e9;
        for (double bits = 1.75; bits < 7; bits += 0.25) {
            const Plan plan = solve_plan(model, bits_of(bits));
            EXPECT_LE(cache_bytes(plan, 32768).effective_bits, bits + 1e-9);
            EXPECT_GT(cache_bytes(plan, 32768).effective_bits, bits - 0.3);
            EXPECT_LE(plan.predicted_kl, last);
            EXPECT_GE(plan.predicted_kl, stats.joint_floor);
            last = plan.predicted_kl;
        }
    }
}

TEST(Planner, KeepsBudgetsInBytesPerTokenAndInBytesAtAContext) {
    const ModelStats stats = sample_stats();
    const DamageModel model(stats, CodecFamily::kTrellis);
    for (const char* text : {"280B/token", "350B/token", "500B/token"}) {
        PlanRequest request = bits_of(3, 4096);
        request.budget = parse_budget(text);
        const Plan plan = solve_plan(model, request);
        const auto bytes = static_cast<double>(cache_bytes(plan, 4096).total) / 4096;
        EXPECT_LE(bytes, request.budget.amount) << text;
        EXPECT_GT(bytes, 0.95 * request.budget.amount) << text;
    }
    for (const char* text : {"2MiB@8192", "3MiB@8192", "9MiB@32768"}) {
        PlanRequest request = bits_of(3, 1024);  // the budget's own context counts
        request.budget = parse_budget(text);
        const Plan plan = solve_plan(model, request);
        const auto bytes = static_cast<double>(cache_bytes(plan, request.budget.n_tokens).total);
        EXPECT_LE(bytes, request.budget.amount) << text;
        EXPECT_GT(bytes, 0.95 * request.budget.amount) << text;
    }
    for (const char* text : {"40B/token", "64KiB@8192"}) {
        PlanRequest request = bits_of(3, 4096);
        request.budget = parse_budget(text);
        EXPECT_THROW((void)solve_plan(model, request), Error) << text;
    }
}

TEST(Planner, TakesSortedBasesInShortContextsWhereChannelsVaryAlone) {
    for (const bool correlated : {true, false}) {
        const ModelStats stats = sample_stats(correlated);
        const DamageModel model(stats, CodecFamily::kTrellis);
        const Plan plan = solve_plan(model, bits_of(3.5, 512));  // 4 KiB of a matrix are a bit an element there
        size_t n_sorted = 0;
        for (const LayerPlan& layer : plan.layers) {
            for (const HeadPlan& head : layer.heads)
                n_sorted += head.key.transform->fit->basis == TransformBasis::kSorted ? 1 : 0;
        }
        if (correlated) {
            EXPECT_LE(n_sorted, 1U);
        } else {
            EXPECT_EQ(n_sorted, 2 * kLayers);
        }
    }
}

TEST(Planner, SpendsMoreWhereProbesFoundMoreDamage) {
    const ModelStats stats = sample_stats();
    const DamageModel model(stats, CodecFamily::kTransform);
    const Plan plan = solve_plan(model, bits_of(3));
    EXPECT_GT(mean_bits(plan, 1, Side::kKey), mean_bits(plan, 0, Side::kKey) + 0.5);
    EXPECT_GT(mean_bits(plan, 1, Side::kKey), mean_bits(plan, 1, Side::kValue) + 0.5);
    const std::vector<double> damages = damage_by_layer(model, plan);
    ASSERT_EQ(damages.size(), 2 * kLayers);
    EXPECT_NEAR(model.predict(std::accumulate(damages.begin(), damages.end(), 0.0), plan.window, 32768),
                plan.predicted_kl, 1e-12);
}

TEST(Planner, PredictsWhatTheJointProbesMeasured) {
    const ModelStats stats = sample_stats();
    const DamageModel model(stats, CodecFamily::kTrellis);
    const std::vector<FittedTransform> fits = fit_all(stats);
    for (const JointProbe& probe : stats.joint) {
        if (probe.key_bits >= 16 || probe.value_bits >= 16) continue;
        const Plan plan = uniform_transform_plan(stats, fits, probe.key_bits, probe.value_bits, 0, 4, kProbeCodes);
        const std::vector<double> damages = damage_by_layer(model, plan);
        const double predicted = model.predict(std::accumulate(damages.begin(), damages.end(), 0.0), plan.window, 2048);
        EXPECT_NEAR(predicted / probe.kl, 1.0, 0.15) << probe.key_bits;
    }
}

TEST(Planner, KeepsAWindowWhereItPays) {
    ModelStats stats = sample_stats();
    {
        const DamageModel model(stats, CodecFamily::kTransform);
        EXPECT_EQ(solve_plan(model, bits_of(3)).window, 0) << "no window was measured";
    }
    const double base = stats.joint[8].kl - stats.joint_floor;
    stats.joint.push_back({.key_bits = 3, .value_bits = 3, .window = 64, .kl = stats.joint_floor + 0.7 * base});
    stats.joint.push_back({.key_bits = 3, .value_bits = 3, .window = 256, .kl = stats.joint_floor + 0.65 * base});
    const DamageModel model(stats, CodecFamily::kTransform);
    EXPECT_NEAR(model.window_factor(32), 0.85, 1e-9);
    EXPECT_NEAR(model.window_factor(1000), 0.65, 1e-9);
    EXPECT_EQ(solve_plan(model, bits_of(3, 4096)).window, 64);
    EXPECT_EQ(solve_plan(model, bits_of(3, 131072)).window, 256) << "next to nothing there";
    EXPECT_EQ(solve_plan(model, bits_of(2, 1024)).window, 0) << "a quarter of the budget";
    for (const size_t n_ctx : {1024U, 4096U, 131072U})
        EXPECT_LE(cache_bytes(solve_plan(model, bits_of(3, n_ctx)), n_ctx).effective_bits, 3 + 1e-9);
}

TEST(Planner, SlidingLayersCountTheTilesTheyKeep) {
    ModelStats stats = sample_stats();
    stats.layers[0].shape.sliding_window = 512;
    stats.layers[2].shape.sliding_window = 512;
    stats.layers[2].heads = stats.layers[1].heads;  // as layer 1, which keeps everything
    stats.layers[2].probe = stats.layers[1].probe;
    const DamageModel model(stats, CodecFamily::kTransform);
    for (const double bits : {2.5, 3.5}) {
        const Plan plan = solve_plan(model, bits_of(bits));
        EXPECT_LE(cache_bytes(plan, 32768).effective_bits, bits + 1e-9);
        EXPECT_GT(cache_bytes(plan, 32768).effective_bits, bits - 0.3);
        EXPECT_GT(mean_bits(plan, 2, Side::kKey), mean_bits(plan, 1, Side::kKey)) << "bits are cheap in a short layer";
    }
}

TEST(Planner, PaysForAMatrixOnlyWhereTheContextIsLongEnough) {
    const ModelStats stats = sample_stats();
    const DamageModel model(stats, CodecFamily::kTransform);
    const auto matrices = [&](size_t n_ctx) {
        const Plan plan = solve_plan(model, bits_of(3, n_ctx));
        EXPECT_LE(cache_bytes(plan, n_ctx).effective_bits, 3 + 1e-9) << n_ctx;
        size_t n = 0;
        for (const LayerPlan& layer : plan.layers) {
            for (const HeadPlan& head : layer.heads)
                n += head.key.transform->fit->basis == TransformBasis::kMatrix ? 1 : 0;
        }
        return n;
    };
    EXPECT_EQ(matrices(131072), 2 * kLayers);
    EXPECT_LT(matrices(256), 2 * kLayers) << "4 KiB each, of about 25 KiB";
}

TEST(Planner, LongerContextsCostWhatTheLengthProbesFound) {
    ModelStats stats = sample_stats();
    stats.lengths.push_back({.n_ctx = 4096, .short_ctx = 1024, .kl = 0.3, .short_kl = 0.2});
    const DamageModel model(stats, CodecFamily::kTransform);
    EXPECT_EQ(model.length_factor(512), 1.0);
    EXPECT_EQ(model.length_factor(1024), 1.0);
    EXPECT_NEAR(model.length_factor(2048), 1.25, 1e-9);
    EXPECT_NEAR(model.length_factor(4096), 1.5, 1e-9);
    EXPECT_NEAR(model.length_factor(100000), 1.5, 1e-9);
    PlanRequest request = bits_of(3, 4096);
    const Plan longer = solve_plan(model, request);
    request.predict_ctx = 1024;
    const Plan shorter = solve_plan(model, request);
    EXPECT_NEAR((longer.predicted_kl - stats.joint_floor) / (shorter.predicted_kl - stats.joint_floor), 1.5, 1e-9);
}

TEST(Planner, ACorrectedShareMovesBits) {
    const ModelStats stats = sample_stats();
    DamageModel model(stats, CodecFamily::kTransform);
    const double before = mean_bits(solve_plan(model, bits_of(3)), 2, Side::kValue);
    model.scale_share(2, Side::kValue, 30);
    EXPECT_GT(mean_bits(solve_plan(model, bits_of(3)), 2, Side::kValue), before + 0.5);
}

TEST(Planner, RefusesABudgetBelowTheFloorAndStatisticsWithHoles) {
    ModelStats stats = sample_stats();
    {
        const DamageModel model(stats, CodecFamily::kTransform);
        EXPECT_THROW((void)solve_plan(model, bits_of(0.1)), Error);
    }
    stats.layers[1].probe.value_kl = LayerProbe::kNotMeasured;
    try {
        const DamageModel model(stats, CodecFamily::kTransform);
        FAIL();
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("not complete"), std::string::npos);
    }
    stats.probe_bits = 0;
    EXPECT_THROW(DamageModel(stats, CodecFamily::kAffine), Error);
}

TEST(Verdict, FollowsKlAndAgreement) {
    EXPECT_EQ(verdict_of(0.004), Verdict::kSafe);
    EXPECT_EQ(verdict_of(0.05), Verdict::kWithCare);
    EXPECT_EQ(verdict_of(0.5), Verdict::kNotRecommended);
    EXPECT_EQ(verdict_of(0.004, 0.97), Verdict::kSafe);
    EXPECT_EQ(verdict_of(0.004, 0.90), Verdict::kWithCare);
    EXPECT_EQ(verdict_of(0.004, 0.80), Verdict::kNotRecommended);
    EXPECT_EQ(to_string(Verdict::kWithCare), "usable with care");
}

}  // namespace
}  // namespace kvaq
