// Attention alone beside llama.cpp's own: one new token over a cache of 8192, one thread, layers in turn; llama.cpp's GGML_OP_FLASH_ATTN_EXT over its cache
// types, ours over plans. Run: llama_attention_bench --benchmark_enable_random_interleaving=true --benchmark_repetitions=9
#include <benchmark/benchmark.h>
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/bench_cache.h"

namespace kvaq {
namespace {

constexpr int64_t kDepth = 8192;
constexpr int64_t kPadded = kDepth + 256;  // as llama.cpp rounds the cells that it looks at

struct FreeContext {
    void operator()(ggml_context* context) const noexcept { ggml_free(context); }
};

/// Attention nodes of some layers, as llama.cpp's graph has them (llm_graph_context::build_attn_mha).
class LlamaAttention {
  public:
    LlamaAttention(ggml_type type, const Heads& heads, size_t n_layers)
        : backend_(ggml_backend_cpu_init()),
          context_(ggml_init({.mem_size = ggml_tensor_overhead() * (12 * n_layers + 8) + ggml_graph_overhead(),
                              .mem_buffer = nullptr,
                              .no_alloc = true})) {
        ggml_backend_cpu_set_n_threads(backend_, 1);
        ggml_context* c = context_.get();
        const auto dim = static_cast<int64_t>(heads.head_dim);
        const auto n_heads = static_cast<int64_t>(heads.n_heads);
        const auto n_kv_heads = static_cast<int64_t>(heads.n_kv_heads);
        ggml_tensor* mask = ggml_new_tensor_2d(c, GGML_TYPE_F16, kPadded, 1);
        graph_ = ggml_new_graph(c);
        std::vector<ggml_tensor*> rows, queries;
        for (size_t layer = 0; layer < n_layers; ++layer) {
            ggml_tensor* q = ggml_new_tensor_3d(c, GGML_TYPE_F32, dim, n_heads, 1);
            queries.push_back(q);
            ggml_tensor* sides[2];
            for (ggml_tensor*& side : sides) {
                rows.push_back(ggml_new_tensor_2d(c, type, dim * n_kv_heads, kPadded));
                ggml_tensor* view = ggml_view_3d(c, rows.back(), dim, n_kv_heads, kPadded, ggml_row_size(type, dim),
                                                 ggml_row_size(type, dim * n_kv_heads), 0);
                side = ggml_permute(c, view, 0, 2, 1, 3);
            }
            ggml_tensor* out =
                ggml_flash_attn_ext(c, ggml_permute(c, q, 0, 2, 1, 3), sides[0], sides[1], mask, 0.1F, 0, 0);
            (void)ggml_prec_set_acc(out, GGML_PREC_F32);
            ggml_build_forward_expand(graph_, out);
        }
        buffer_ = ggml_backend_alloc_ctx_tensors(c, backend_);
        std::mt19937 random(1);
        std::normal_distribution<float> normal;
        const auto numbers = [&](size_t n) {
            std::vector<float> x(n);
            for (float& value : x) value = normal(random);
            return x;
        };
        for (ggml_tensor* tensor : queries) {
            const std::vector<float> x = numbers(static_cast<size_t>(ggml_nelements(tensor)));
            ggml_backend_tensor_set(tensor, x.data(), 0, ggml_nbytes(tensor));
        }
        for (ggml_tensor* tensor : rows) {
            const std::vector<float> x = numbers(static_cast<size_t>(ggml_nelements(tensor)));
            std::vector<char> stored(ggml_nbytes(tensor));
            ggml_quantize_chunk(type, x.data(), stored.data(), 0, kPadded, dim * n_kv_heads, nullptr);
            ggml_backend_tensor_set(tensor, stored.data(), 0, stored.size());
        }
        std::vector<ggml_fp16_t> seen(kPadded, ggml_fp32_to_fp16(-INFINITY));
        std::fill(seen.begin(), seen.begin() + kDepth + 1, ggml_fp32_to_fp16(0));
        ggml_backend_tensor_set(mask, seen.data(), 0, ggml_nbytes(mask));
    }
    LlamaAttention(const LlamaAttention&) = delete;
    LlamaAttention& operator=(const LlamaAttention&) = delete;
    ~LlamaAttention() {
        ggml_backend_buffer_free(buffer_);
        ggml_backend_free(backend_);
    }
    [[nodiscard]] bool run() const { return ggml_backend_graph_compute(backend_, graph_) == GGML_STATUS_SUCCESS; }

  private:
    ggml_backend_t backend_;
    std::unique_ptr<ggml_context, FreeContext> context_;
    ggml_backend_buffer_t buffer_ = nullptr;
    ggml_cgraph* graph_ = nullptr;
};

void time_llama(benchmark::State& state, ggml_type type, const Heads& heads, size_t n_layers) {
    const LlamaAttention attention(type, heads, n_layers);
    for (auto _ : state) {
        if (!attention.run()) state.SkipWithError("llama.cpp cannot compute it");
    }
}

void time_plan(benchmark::State& state, const std::string& plan, const Heads& heads, size_t n_layers) {
    BenchCache bench(plan, heads, kDepth, n_layers);
    for (auto _ : state) {
        bench.attend(1);
        bench.cache().rollback();
    }
}

void register_all() {
    for (const auto& [shape, heads] :
         {std::pair<std::string, Heads>{"9x3x64", kSmolLm}, {"4x1x256", kGemma}, {"32x8x128", kLlama8b}}) {
        for (const size_t n_layers : {kBenchLayers, size_t{30}}) {
            if (heads.n_heads == kLlama8b.n_heads && n_layers != kBenchLayers) continue;  // 4 are more than an L3 holds
            const std::string place = "/" + shape + "/" + std::to_string(n_layers) + "_layers";
            const auto add = [&](const std::string& name, auto run) {
                benchmark::RegisterBenchmark((name + place).c_str(), run)->Unit(benchmark::kMicrosecond);
            };
            for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
                add(std::string("llama.cpp_") + ggml_type_name(type),
                    [=, heads = heads](benchmark::State& state) { time_llama(state, type, heads, n_layers); });
            }
            for (const std::string plan : {"f16", "k4v4-rot-s4", "measured"}) {
                add("kvaq_" + plan,
                    [=, heads = heads](benchmark::State& state) { time_plan(state, plan, heads, n_layers); });
            }
        }
    }
}

}  // namespace
}  // namespace kvaq

int main(int argc, char** argv) {
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
    kvaq::register_all();
    benchmark::RunSpecifiedBenchmarks();
    return 0;
}
