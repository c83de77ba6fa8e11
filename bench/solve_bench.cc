// The solver at the size of a large model: 80 layers x 8 KV heads x 2 sides, 30 codecs each.
#include <benchmark/benchmark.h>

#include <cmath>
#include <random>

#include "kvaq/plan/solve.h"

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

}  // namespace

BENCHMARK(solve)->Arg(180)->Arg(1280)->Unit(benchmark::kMillisecond);

BENCHMARK_MAIN();
