// Attention on a GPU by itself: decode (one token at a depth) and prefill (512 tokens), time per layer, packed bytes read per second beside what a copy
// within device memory moves. Median, least and most of five rounds, plans interleaved. Run: cuda_bench [JSON file]
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/bench_plans.h"
#include "kvaq/cuda/cuda_cache.h"

namespace kvaq {
namespace {

constexpr int32_t kBatch = 512;
constexpr int kRounds = 5;
constexpr int kCalls = 25;  // of every layer, in a round

void check(cudaError_t error) {
    if (error == cudaSuccess) return;
    std::fprintf(stderr, "cuda_bench: %s\n", cudaGetErrorString(error));
    std::exit(1);
}

template <typename T>
T* on_device(const std::vector<T>& values) {
    void* data = nullptr;
    check(cudaMalloc(&data, values.size() * sizeof(T)));
    check(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    check(cudaStreamSynchronize(cudaStreamLegacy));
    return static_cast<T*>(data);
}

/// A cache on device 0, filled to a depth.
class Bench {
  public:
    Bench(const std::string& plan, const Heads& heads, int32_t depth) : name(plan), heads_(heads) {
        cache_ = make_kv_cache_for(bench_plan(plan, heads), {.n_seq_max = 1,
                                                             .n_ctx = static_cast<size_t>(depth + kBatch),
                                                             .max_batch_tokens = kBatch,
                                                             .n_threads = 16,
                                                             .on_gpu = true});
        std::vector<LayerPlace> places;
        for (size_t i = 0; i < kBenchLayers; ++i) places.push_back({.layer = static_cast<int32_t>(i), .device = 0});
        cache_->place_layers(places);
        std::mt19937 random(1);
        std::normal_distribution<float> normal;
        std::vector<float> q(static_cast<size_t>(kBatch) * heads.n_heads * heads.head_dim);
        for (float& x : q) x = normal(random);
        std::vector<float16> k(static_cast<size_t>(kBatch) * heads.n_kv_heads * heads.head_dim);
        for (float16& x : k) x = to_float16(normal(random));
        q_ = on_device(q);
        k_ = on_device(k);
        out_ = on_device(q);
        for (; depth_ < depth; depth_ += kBatch) {
            begin(kBatch);
            attend(kBatch);
            cache_->end();
        }
    }
    ~Bench() {
        (void)cudaFree(q_);
        (void)cudaFree(k_);
        (void)cudaFree(out_);
    }
    /// Microseconds of a layer's attention; for prefill sealing on the host included.
    double time(int32_t n) {
        begin(n);
        attend(n);
        cache_->wait(0);
        const int calls = n == 1 ? kCalls : 2;
        const auto start = std::chrono::steady_clock::now();
        for (int i = 0; i < calls; ++i) attend(n);
        cache_->wait(0);
        const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - start;
        cache_->rollback();
        if (!cache_->fault().empty()) {
            std::fprintf(stderr, "cuda_bench: %s\n", cache_->fault().c_str());
            std::exit(1);
        }
        return time.count() / (calls * static_cast<double>(kBenchLayers));
    }
    [[nodiscard]] double layer_bytes() const {
        return static_cast<double>(cache_->use().packed + cache_->use().open) / static_cast<double>(kBenchLayers);
    }
    const std::string name;
    std::vector<double> times;

  private:
    void begin(int32_t n) {
        const int32_t seq = 0;
        std::vector<BatchToken> tokens;
        for (int32_t i = 0; i < n; ++i) tokens.push_back({.pos = depth_ + i, .seq_ids = {&seq, 1}});
        if (!cache_->begin(tokens)) std::exit(1);
    }
    void attend(int32_t n) {
        OneThread team;
        for (size_t layer = 0; layer < kBenchLayers; ++layer) {
            AttentionCall call;
            call.layer = static_cast<int32_t>(layer);
            call.device = 0;
            call.n_tokens = static_cast<size_t>(n);
            call.q = {q_, heads_.n_heads * heads_.head_dim, heads_.head_dim};
            call.k = {k_, heads_.n_kv_heads * heads_.head_dim, heads_.head_dim};
            call.v = call.k;
            call.out = {out_, heads_.n_heads * heads_.head_dim, heads_.head_dim};
            call.rule.scale = 0.1F;
            cache_->attend(call, team);
        }
    }

    Heads heads_;
    int32_t depth_ = 0;
    std::unique_ptr<KvCache> cache_;
    float* q_ = nullptr;
    float16* k_ = nullptr;
    float* out_ = nullptr;
};

/// GB/s read plus written.
double copy_speed() {
    const size_t n = size_t{1} << 30;
    void* from = nullptr;
    void* to = nullptr;
    check(cudaMalloc(&from, n));
    check(cudaMalloc(&to, n));
    check(cudaMemset(from, 1, n));
    std::vector<double> speeds;
    for (int i = 0; i < kRounds; ++i) {
        check(cudaDeviceSynchronize());
        const auto start = std::chrono::steady_clock::now();
        for (int k = 0; k < 8; ++k) check(cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToDevice));
        check(cudaDeviceSynchronize());
        const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
        speeds.push_back(16.0 * static_cast<double>(n) / time.count() * 1e-9);
    }
    check(cudaFree(from));
    check(cudaFree(to));
    std::sort(speeds.begin(), speeds.end());
    return speeds[speeds.size() / 2];
}

struct Case {
    const char* shape;
    Heads heads;
    int32_t depth;
    int32_t n;
};

}  // namespace
}  // namespace kvaq

int main(int argc, char** argv) {
    using namespace kvaq;
    const CudaSupport support = cuda_support();
    if (support.gpus.empty()) {
        std::fprintf(stderr, "cuda_bench: %s\n", support.why_none.c_str());
        return 1;
    }
    std::FILE* json = argc > 1 ? std::fopen(argv[1], "w") : nullptr;
    const double copy = copy_speed();
    std::printf("%s, copy within device memory %.0f GB/s (read + written)\n", support.gpus[0].name.c_str(), copy);
    std::printf("%-10s %8s %4s  %-12s %10s %18s %12s\n", "heads", "depth", "new", "plan", "us/layer", "least..most",
                "cache GB/s");
    if (json != nullptr) {
        std::fprintf(json,
                     "{\n  \"kind\": \"kvaq.cuda_speed\",\n  \"schema_version\": 1,\n  \"gpu\": \"%s\",\n  "
                     "\"copy_gb_per_s\": %.1f,\n  \"rows\": [",
                     support.gpus[0].name.c_str(), copy);
    }
    const std::vector<Case> cases = {{"9x3x64", kSmolLm, 8192, 1},
                                     {"9x3x64", kSmolLm, 32768, 1},
                                     {"32x8x128", kLlama8b, 8192, 1},
                                     {"32x8x128", kLlama8b, 32768, 1},
                                     {"9x3x64", kSmolLm, 8192, kBatch}};
    bool first = true;
    for (const Case& c : cases) {
        std::vector<std::unique_ptr<Bench>> benches;
        for (const char* plan : {"f16", "k8v8", "k4v4-rot-s4", "k3v2-rot-s4", "klt", "tcq"})
            benches.push_back(std::make_unique<Bench>(plan, c.heads, c.depth));
        for (int round = 0; round < kRounds; ++round) {
            for (const auto& bench : benches) bench->times.push_back(bench->time(c.n));
        }
        for (const auto& bench : benches) {
            std::sort(bench->times.begin(), bench->times.end());
            const double median = bench->times[bench->times.size() / 2];
            const double speed = bench->layer_bytes() / median * 1e-3;
            std::printf("%-10s %8d %4d  %-12s %10.1f %8.1f..%8.1f %12.1f\n", c.shape, c.depth, c.n, bench->name.c_str(),
                        median, bench->times.front(), bench->times.back(), speed);
            if (json != nullptr) {
                std::fprintf(json,
                             "%s\n    {\"heads\": \"%s\", \"depth\": %d, \"n_tokens\": %d, \"plan\": \"%s\", "
                             "\"us_per_layer\": %.2f, \"least\": %.2f, "
                             "\"most\": %.2f, \"bytes\": %.0f}",
                             first ? "" : ",", c.shape, c.depth, c.n, bench->name.c_str(), median, bench->times.front(),
                             bench->times.back(), bench->layer_bytes());
            }
            first = false;
        }
        std::fflush(stdout);
    }
    if (json != nullptr) {
        std::fprintf(json, "\n  ]\n}\n");
        std::fclose(json);
    }
    return 0;
}
