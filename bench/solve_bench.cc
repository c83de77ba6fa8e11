// The solver at the size of a large model, 80 layers x 8 KV heads x 2 sides, 30 codecs each; and what comes before it, fitting every head's bases and ladders.
#include <benchmark/benchmark.h>

#include <cmath>
#include <random>

#include "kvaq/plan/damage.h"
#include "kvaq/plan/planner.h"
#include "kvaq/plan/solve.h"
#include "kvaq/stats/stats_samples.h"

namespace {

void solve(benchmark::State& state) {
    const auto n_slots = static_cast<size_t>(state.range(0));
    constexpr size_t kCodecs = 30;
    std::mt19937 random(1);
    std::lognormal_distribution<double> weight(0.0, 1.5);
    std::vector<std::vector<kvaq::Choice>> slots(n_slots);
    size_t middle = 0;
    for (auto& choices : slots) {
        const double w = weight(random);
        for (size_t i = 0; i < kCodecs; ++i) {  // 64 tokens of 128 channels, a quarter of a bit apart
            choices.push_back({.bytes = 64 + 256 * i, .damage = w * std::exp2(-0.5 * static_cast<double>(i))});
        }
        middle += choices[kCodecs / 2].bytes;
    }
    for (auto _ : state) benchmark::DoNotOptimize(kvaq::solve_budget(slots, middle));
    state.counters["slots"] = static_cast<double>(n_slots);
}

/// Layers of 8 KV heads of 128 channels.
kvaq::ModelStats statistics(size_t n_layers) {
    kvaq::ModelStats stats;
    stats.fingerprint = "f00d";
    stats.n_sample_tiles = kvaq::kSampleTiles;
    stats.probe_bits = 1;
    stats.base_bits = 3;
    stats.base_kl = 0.05;
    stats.joint_floor = 0.003;
    constexpr size_t kHeads = 8;
    constexpr size_t kDim = 128;
    for (size_t l = 0; l < n_layers; ++l) {
        kvaq::LayerStats& layer = stats.layers.emplace_back();
        layer.shape = {.layer = static_cast<int32_t>(l),
                       .n_heads = 4 * kHeads,
                       .n_kv_heads = kHeads,
                       .head_dim_k = kDim,
                       .head_dim_v = kDim};
        for (size_t h = 0; h < kHeads; ++h)
            layer.heads.push_back(kvaq::correlated_head(kDim, static_cast<unsigned>(kHeads * l + h)));
        layer.probe = {.key_kl = 0.2, .value_kl = 0.05};
    }
    return stats;
}

void fit_model(benchmark::State& state) {
    const kvaq::ModelStats stats = statistics(static_cast<size_t>(state.range(0)));
    for (auto _ : state) benchmark::DoNotOptimize(kvaq::DamageModel(stats, kvaq::CodecFamily::kTrellis));
}

void plan_of_model(benchmark::State& state) {
    const kvaq::ModelStats stats = statistics(static_cast<size_t>(state.range(0)));
    const kvaq::DamageModel model(stats, kvaq::CodecFamily::kTrellis);
    const kvaq::PlanRequest request{
        .budget = {.unit = kvaq::Budget::Unit::kEffectiveBits, .amount = 3.25, .n_tokens = 0}, .n_ctx = 32768};
    for (auto _ : state) benchmark::DoNotOptimize(kvaq::solve_plan(model, request));
}

}  // namespace

BENCHMARK(fit_model)->Arg(4)->Unit(benchmark::kSecond)->Iterations(1)->UseRealTime();
BENCHMARK(plan_of_model)->Arg(4)->Unit(benchmark::kMillisecond);
BENCHMARK(solve)->Arg(180)->Arg(1280)->Unit(benchmark::kMillisecond);

BENCHMARK_MAIN();
