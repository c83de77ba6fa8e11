#pragma once

// For benchmarks: a cache filled to a depth, whose layers attend in one thread.

#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/bench_plans.h"
#include "kvaq/cache/kv_cache.h"

namespace kvaq {

inline constexpr int32_t kBenchBatch = 512;

/// A cache filled to a depth, and rows for `n` more tokens.
class BenchCache {
  public:
    BenchCache(const std::string& plan, const Heads& heads, int32_t depth, size_t n_layers = kBenchLayers)
        : heads_(heads), n_layers_(n_layers) {
        cache_ = make_kv_cache(
            bench_plan(plan, heads, n_layers),
            {.n_seq_max = 1, .n_ctx = static_cast<size_t>(depth + kBenchBatch), .max_batch_tokens = kBenchBatch});
        std::mt19937 random(1);
        std::normal_distribution<float> normal;
        q_.resize(static_cast<size_t>(kBenchBatch) * heads.n_heads * heads.head_dim);
        for (float& x : q_) x = normal(random);
        k_.resize(static_cast<size_t>(kBenchBatch) * heads.n_kv_heads * heads.head_dim);
        for (float16& x : k_) x = to_float16(normal(random));
        out_.resize(q_.size());
        for (; depth_ < depth; depth_ += kBenchBatch) {
            attend(kBenchBatch, 1);  // only to be filled: tokens see themselves
            cache_->end();
        }
    }
    /// begin and attend; end or rollback is left to the caller. sliding_window: of the call, 0 = tokens see all.
    void attend(int32_t n, int32_t sliding_window = 0) {
        const int32_t seq = 0;
        std::vector<BatchToken> tokens;
        for (int32_t i = 0; i < n; ++i) tokens.push_back({.pos = depth_ + i, .seq_ids = {&seq, 1}});
        if (!cache_->begin(tokens)) std::abort();
        OneThread team;
        for (size_t layer = 0; layer < n_layers_; ++layer) {
            AttentionCall call;
            call.layer = static_cast<int32_t>(layer);
            call.n_tokens = static_cast<size_t>(n);
            call.q = {q_.data(), heads_.n_heads * heads_.head_dim, heads_.head_dim};
            call.k = {k_.data(), heads_.n_kv_heads * heads_.head_dim, heads_.head_dim};
            call.v = call.k;
            call.out = {out_.data(), heads_.n_heads * heads_.head_dim, heads_.head_dim};
            call.rule.scale = 0.1F;
            call.rule.sliding_window = sliding_window;
            cache_->attend(call, team);
        }
    }
    [[nodiscard]] KvCache& cache() noexcept { return *cache_; }

  private:
    Heads heads_;
    size_t n_layers_;
    int32_t depth_ = 0;
    std::unique_ptr<KvCache> cache_;
    std::vector<float> q_, out_;
    std::vector<float16> k_;
};

}  // namespace kvaq
