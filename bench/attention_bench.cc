// Attention and sealing by themselves, one thread. Counters: packed GB/s (sealed bytes read or written), tokens/s (cached tokens read per
// second in decode, query tokens in prefill, sealed tokens in encode). Run: attention_bench --benchmark_min_time=0.3
#include <benchmark/benchmark.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/bench_cache.h"
#include "kvaq/attention/block_kernels.h"
#include "kvaq/base/aligned_vector.h"
#include "kvaq/base/simd_target.h"
#include "kvaq/cache/kv_cache.h"
#include "kvaq/cache/layer_store.h"
#include "kvaq/cache/tile.h"
#include "kvaq/cache/tile_levels.h"
#include "kvaq/plan/plan.h"

namespace kvaq {
namespace {

constexpr size_t kLayers = kBenchLayers;

void attend(benchmark::State& state, const std::string& plan, const Heads& heads, int32_t depth, int32_t n,
            size_t n_layers = kLayers) {
    BenchCache bench(plan, heads, depth, n_layers);
    const auto packed = static_cast<double>(bench.cache().use().packed);
    for (auto _ : state) {
        bench.attend(n);
        bench.cache().rollback();
    }
    const auto rounds = static_cast<double>(state.iterations());
    const double tokens = n == 1 ? depth : n;
    state.counters["packed/s"] = benchmark::Counter(packed * rounds, benchmark::Counter::kIsRate);
    state.counters["tokens/s"] =
        benchmark::Counter(tokens * static_cast<double>(n_layers) * rounds, benchmark::Counter::kIsRate);
}

void encode(benchmark::State& state, const std::string& plan, const Heads& heads, Side side) {
    const Plan built = bench_plan(plan, heads);
    const HeadPlan& head = built.layers[0].heads[0];
    const TileLayout layout =
        make_tile_layout(side == Side::kKey ? head.key : head.value, side, heads.head_dim, kDefaultTileTokens);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> x(kDefaultTileTokens * heads.head_dim);
    for (float& value : x) value = normal(random);
    std::vector<std::byte> packed(layout.bytes);
    for (auto _ : state) {
        encode_tile(layout, x.data(), packed.data());
        benchmark::DoNotOptimize(packed.data());
    }
    const auto rounds = static_cast<double>(state.iterations());
    state.counters["packed/s"] =
        benchmark::Counter(static_cast<double>(layout.bytes) * rounds, benchmark::Counter::kIsRate);
    state.counters["tokens/s"] =
        benchmark::Counter(static_cast<double>(kDefaultTileTokens) * rounds, benchmark::Counter::kIsRate);
}

/// One KV head's packed keys (or values) of 8192 tokens by the heads' group of rows: products only, no softmax, no scales around them.
void scan(benchmark::State& state, const std::string& plan, const Heads& heads, Side side) {
    constexpr size_t kTiles = 8192 / kDefaultTileTokens;
    const bool key = side == Side::kKey;
    const HeadPlan head = bench_plan(plan, heads).layers[0].heads[0];
    const TileLayout layout = make_tile_layout(key ? head.key : head.value, side, heads.head_dim, kDefaultTileTokens);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> x(kDefaultTileTokens * heads.head_dim);
    for (float& value : x) value = normal(random);
    AlignedVector<std::byte> tiles(kTiles * layout.bytes);
    for (size_t i = 0; i < kTiles; ++i) encode_tile(layout, x.data(), &tiles[i * layout.bytes]);
    const SimdTarget target = best_simd_target();
    const BlockKernels& kernels = block_kernels(target);
    const size_t rows = heads.n_heads / heads.n_kv_heads;
    const size_t n_terms = key ? heads.head_dim : kDefaultTileTokens;
    const size_t n_lanes = key ? kDefaultTileTokens : heads.head_dim;
    const CoefSize size = key ? CoefSize::kByte : CoefSize::kWide;  // as attention takes them up to 5 bits
    std::vector<int16_t> coefs(rows * n_terms);
    std::vector<float> steps(rows);
    std::vector<int32_t> sums(rows), init(rows), out(rows * n_lanes);
    kernels.quantize_coefs(x.data(), n_terms, nullptr, rows, n_terms, size, coefs.data(), n_terms, steps.data(),
                           sums.data());
    TileLevels levels;
    levels.reserve(heads.head_dim, kDefaultTileTokens);
    LevelReader reader(target, layout, tiles.data());
    const bool as_packed = kernels.dot_codes != nullptr &&
                           joins_tiles(layout);  // as attention does; of several scales a token all at once
    for (auto _ : state) {
        for (size_t i = 0; i < kTiles; ++i) {
            const std::byte* tile = &tiles[i * layout.bytes];
            if (!as_packed) {
                reader.read(tile, levels);
                kernels.dot_cells(levels.cells.data(), levels.cell_stride, n_lanes / 16, n_terms / 4, size,
                                  coefs.data(), n_terms, rows, init.data(), out.data(), n_lanes);
                continue;
            }
            std::array<PackedCodes, LevelReader::kMostBands> runs;
            for (size_t band = 0; band < reader.n_bands(); ++band) {
                runs[band] = reader.codes(band, tile);
                if (!key) {
                    kernels.dot_codes(&runs[band], 1, 0, runs[band].planes.n_lanes16, size, coefs.data(), n_terms, rows,
                                      init.data(), &out[reader.first_channel(band)], n_lanes);
                }
            }
            if (key) {
                kernels.dot_codes(runs.data(), reader.n_bands(), 0, n_lanes / 16, size, coefs.data(), n_terms, rows,
                                  init.data(), out.data(), n_lanes);
            }
        }
        benchmark::DoNotOptimize(out.data());
    }
    const auto rounds = static_cast<double>(state.iterations());
    state.counters["packed/s"] =
        benchmark::Counter(static_cast<double>(tiles.size()) * rounds, benchmark::Counter::kIsRate);
    state.counters["tokens/s"] = benchmark::Counter(8192 * rounds, benchmark::Counter::kIsRate);
}

/// The same products of f32 tiles.
void scan_f32(benchmark::State& state, const Heads& heads, Side side) {
    constexpr size_t kTiles = 8192 / kDefaultTileTokens;
    const BlockKernels& kernels = block_kernels(best_simd_target());
    const size_t rows = heads.n_heads / heads.n_kv_heads;
    const size_t tile = kDefaultTileTokens * heads.head_dim;
    std::vector<float> x(kTiles * tile, 1.0F), q(rows * std::max(heads.head_dim, kDefaultTileTokens), 1.0F),
        out(rows * std::max(heads.head_dim, kDefaultTileTokens));
    for (auto _ : state) {
        for (size_t i = 0; i < kTiles; ++i) {
            if (side == Side::kKey) {
                kernels.scores(q.data(), heads.head_dim, rows, heads.head_dim, &x[i * tile], kDefaultTileTokens,
                               kDefaultTileTokens, out.data(), kDefaultTileTokens);
            } else {
                kernels.accumulate(q.data(), kDefaultTileTokens, rows, 0, kDefaultTileTokens, &x[i * tile],
                                   heads.head_dim, heads.head_dim, out.data(), heads.head_dim);
            }
        }
        benchmark::DoNotOptimize(out.data());
    }
    const auto rounds = static_cast<double>(state.iterations());
    state.counters["packed/s"] =
        benchmark::Counter(static_cast<double>(x.size() * sizeof(float)) * rounds, benchmark::Counter::kIsRate);
    state.counters["tokens/s"] = benchmark::Counter(8192 * rounds, benchmark::Counter::kIsRate);
}

/// Bytes that k4v4-rot-s4 keeps for 8192 tokens.
size_t packed_size(const Heads& heads, size_t n_layers) {
    const Plan plan = bench_plan("k4v4-rot-s4", heads);
    const size_t tile = packed_bytes(plan.layers[0].heads[0].key, Side::kKey, heads.head_dim, kDefaultTileTokens);
    return tile * 2 * heads.n_kv_heads * n_layers * 8192 / kDefaultTileTokens;
}

/// They are read and no more, from huge pages and asked for long before: the roof of memory for decode_30_layers.
void read(benchmark::State& state, const Heads& heads) {
    using Vec = uint64_t __attribute__((vector_size(64), aligned(64)));
    constexpr size_t kAhead = 128;
    const size_t n = packed_size(heads, 30) / sizeof(Vec) / 8 * 8;
    const Arena arena(n, sizeof(Vec), "bytes to read", SystemPages::kHuge);
    std::memset(arena.item(0), 1, n * sizeof(Vec));
    const auto* from = reinterpret_cast<const Vec*>(arena.item(0));
    for (auto _ : state) {
        Vec sums[8] = {};
        for (size_t i = 0; i < n; i += 8) {
            for (size_t j = 0; j < 8; ++j) __builtin_prefetch(from + i + j + kAhead);
            for (size_t j = 0; j < 8; ++j) sums[j] += from[i + j];
        }
        benchmark::DoNotOptimize(sums);
    }
    state.counters["packed/s"] =
        benchmark::Counter(static_cast<double>(n * sizeof(Vec) * state.iterations()), benchmark::Counter::kIsRate);
}

#if defined(__x86_64__)
/// Multiplications of bytes by vpdpbusd on registers, 64 an instruction: the roof of arithmetic.
__attribute__((target("avx512f,avx512vnni"))) void multiply_bytes(benchmark::State& state) {
    constexpr int kSums = 10;  // as many as hide the latency of one
    __m512i sums[kSums] = {};
    __m512i a = _mm512_set1_epi8(1);
    for (auto _ : state) {
        for (int i = 0; i < 1000; ++i) {
            for (__m512i& sum : sums) sum = _mm512_dpbusd_epi32(sum, a, a);
        }
        benchmark::DoNotOptimize(a);
    }
    benchmark::DoNotOptimize(sums);
    state.counters["products/s"] =
        benchmark::Counter(64.0 * kSums * 1000 * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}
#endif

/// The same bytes of a few layers, copied.
void copy(benchmark::State& state, const Heads& heads) {
    const size_t n = packed_size(heads, kLayers);
    std::vector<std::byte> from(n, std::byte{1});
    std::vector<std::byte> to(n);
    for (auto _ : state) {
        std::memcpy(to.data(), from.data(), n);
        benchmark::ClobberMemory();
    }
    state.counters["packed/s"] =
        benchmark::Counter(static_cast<double>(n * state.iterations()), benchmark::Counter::kIsRate);
}

void register_all() {
    const std::vector<std::pair<std::string, Heads>> shapes = {
        {"9x3x64", kSmolLm}, {"4x1x256", kGemma}, {"32x8x128", kLlama8b}};
    const auto add = [](const std::string& name, auto run) {
        benchmark::RegisterBenchmark(name.c_str(), run)->Unit(benchmark::kMicrosecond);
    };
    for (const auto& [shape, heads] : shapes) {
        for (const std::string plan : {"f16", "k4v4-rot-s4", "k4v2-rot-s4", "klt", "tcq", "measured"}) {
            for (const int32_t depth : {4096, 8192}) {
                add("decode/" + shape + "/" + plan + "/" + std::to_string(depth),
                    [=](benchmark::State& state) { attend(state, plan, heads, depth, 1); });
            }
            add("prefill512/" + shape + "/" + plan + "/4096",
                [=](benchmark::State& state) { attend(state, plan, heads, 4096, kBenchBatch); });
            if (plan != "f16") {
                add("scan_k/" + shape + "/" + plan,
                    [=](benchmark::State& state) { scan(state, plan, heads, Side::kKey); });
                add("scan_v/" + shape + "/" + plan,
                    [=](benchmark::State& state) { scan(state, plan, heads, Side::kValue); });
            }
            add("encode_k/" + shape + "/" + plan,
                [=](benchmark::State& state) { encode(state, plan, heads, Side::kKey); });
            add("encode_v/" + shape + "/" + plan,
                [=](benchmark::State& state) { encode(state, plan, heads, Side::kValue); });
        }
        for (const std::string plan :
             {"f16", "k4v4-rot-s4", "measured"}) {  // more than fits into L3: memory waits count
            add("decode_30_layers/" + shape + "/" + plan + "/8192",
                [=](benchmark::State& state) { attend(state, plan, heads, 8192, 1, 30); });
        }
        add("scan_k/" + shape + "/f32", [=](benchmark::State& state) { scan_f32(state, heads, Side::kKey); });
        add("scan_v/" + shape + "/f32", [=](benchmark::State& state) { scan_f32(state, heads, Side::kValue); });
        add("read_30_layers/" + shape, [=](benchmark::State& state) { read(state, heads); });
        add("copy/" + shape, [=](benchmark::State& state) { copy(state, heads); });
    }
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512vnni") != 0) add("multiply_bytes/avx512vnni", multiply_bytes);
#endif
}

}  // namespace
}  // namespace kvaq

// KVAQ_BENCH_SIMD=avx2: on that instruction set instead of the best one.
int main(int argc, char** argv) {
    if (const char* name = std::getenv("KVAQ_BENCH_SIMD")) {
        bool known = false;
        for (const kvaq::SimdTarget target : kvaq::supported_simd_targets()) {
            if (kvaq::to_string(target) != name) continue;
            kvaq::force_simd_target(target);
            known = true;
        }
        if (!known) {
            std::fprintf(stderr, "attention_bench: KVAQ_BENCH_SIMD=%s is not an instruction set of this CPU\n", name);
            return 1;
        }
    }
    kvaq::register_all();
    benchmark::Initialize(&argc, argv);
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}
