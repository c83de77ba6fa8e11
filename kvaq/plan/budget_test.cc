#include "kvaq/plan/budget.h"

#include <gtest/gtest.h>

#include <string>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

ModelShape model(size_t n_layers, int32_t sliding_every_second = 0) {
    ModelShape shape{.architecture = "llama", .name = "tiny", .fingerprint = "", .n_ctx_train = 8192, .layers = {}};
    for (size_t i = 0; i < n_layers; ++i) {
        shape.layers.push_back({.layer = static_cast<int32_t>(i),
                                .n_heads = 8,
                                .n_kv_heads = 2,
                                .head_dim_k = 64,
                                .head_dim_v = 32,
                                .sliding_window = i % 2 == 0 ? sliding_every_second : 0});
    }
    return shape;
}

Plan plan_of(const char* preset, const ModelShape& shape) { return make_uniform_plan(parse_preset(preset), shape); }

/// The rule told token by token: which tiles are sealed for the newest query at n - 1, which f16 pages are needed.
size_t counted_by_tokens(const Plan& plan, size_t n, bool keep_sliding) {
    size_t total = 0;
    for (const LayerPlan& layer : plan.layers) {
        const LayerShape& s = layer.shape;
        const size_t row = s.n_kv_heads * (s.head_dim_k + s.head_dim_v) * 2;
        for (size_t first = 0; first < n; first += plan.tile_tokens) {
            const size_t last = first + plan.tile_tokens - 1;
            bool visible = keep_sliding || s.sliding_window == 0;  // to a query at position n, or a later one
            for (size_t t = first; t <= last; ++t)
                visible = visible || t + static_cast<size_t>(s.sliding_window) + sliding_rewind(plan) > n;
            if (!visible) continue;
            if (last + static_cast<size_t>(plan.window) + 1 <= n) {
                for (const HeadPlan& head : layer.heads) {
                    total += packed_bytes(head.key, Side::kKey, s.head_dim_k, plan.tile_tokens);
                    total += packed_bytes(head.value, Side::kValue, s.head_dim_v, plan.tile_tokens);
                }
                if (first == 0) total += static_cast<size_t>(plan.sinks) * row;
            } else {
                total += plan.tile_tokens * row;
            }
        }
    }
    return total;
}

TEST(Budget, FollowsTheSealingRuleAtEveryLength) {
    for (const char* preset : {"k4v2", "k4v2-w1", "k3v3-w64-s4", "k8v4-w100-s64", "f16-w32", "k4v4-g128-kchan-w7-s3"}) {
        const Plan plan = plan_of(preset, model(2, 100));
        for (size_t n = 0; n < 520; ++n) {
            for (const bool keep : {true, false}) {
                const CacheBytes bytes = cache_bytes(plan, n, keep);
                ASSERT_EQ(bytes.total, counted_by_tokens(plan, n, keep)) << preset << " n " << n << " keep " << keep;
                size_t sum = 0;
                for (const LayerBytes& layer : bytes.layers) sum += layer.total();
                ASSERT_EQ(sum, bytes.total);
            }
        }
    }
}

TEST(Budget, CountsByHand) {
    const Plan plan = plan_of("k4v2-w32-s4", model(1));
    // 1 layer, 2 KV heads, K 64, V 32: a token is 192 numbers, an f16 page of 64 tokens 24576 bytes.
    EXPECT_EQ(cache_bytes(plan, 0).total, 0U);
    EXPECT_EQ(cache_bytes(plan, 1).total, 24576U);
    EXPECT_EQ(cache_bytes(plan, 95).total, 2 * 24576U);  // tile 0 ends at 63; 94 - 63 < 32
    const LayerBytes sealed = cache_bytes(plan, 96).layers[0];
    EXPECT_EQ(sealed.open, 24576U);
    EXPECT_EQ(sealed.sinks, 4U * 192 * 2);
    EXPECT_EQ(sealed.packed_key, 2 * packed_bytes(plan.layers[0].heads[0].key, Side::kKey, 64, 64));
    EXPECT_EQ(sealed.packed_value, 2 * packed_bytes(plan.layers[0].heads[0].value, Side::kValue, 32, 64));
    EXPECT_EQ(cache_bytes(plan, 96).elements, 96U * 192);
    EXPECT_DOUBLE_EQ(cache_bytes(plan, 96).effective_bits, 8.0 * static_cast<double>(sealed.total()) / (96 * 192));
    EXPECT_DOUBLE_EQ(bytes_per_token(plan), static_cast<double>(sealed.packed_key + sealed.packed_value) / 64);
}

TEST(Budget, LongContextsCostBytesPerTokenAndSlidingLayersNothingMore) {
    const Plan plan = plan_of("k4v2", model(4, 512));
    const double slope =
        static_cast<double>(cache_bytes(plan, 640000, false).total - cache_bytes(plan, 64000, false).total) / 576000;
    EXPECT_NEAR(slope, bytes_per_token(plan), 1e-9);
    EXPECT_GT(cache_bytes(plan, 64000, true).total, cache_bytes(plan, 64000, false).total);
}

TEST(Budget, LargestContextIsTheLargestThatFits) {
    for (const char* preset : {"k4v2", "k3v3-w64-s4", "f16", "k2v2-w130-s64"}) {
        for (const bool keep : {true, false}) {
            const Plan plan = plan_of(preset, model(2, 100));
            for (const size_t bytes : {0, 1, 40000, 50000, 98304, 98305, 200000, 300000, 312345}) {
                size_t best = 0;
                for (size_t n = 0; n < 12000; ++n) {
                    if (cache_bytes(plan, n, keep).total <= bytes) best = n;
                }
                ASSERT_LT(best, 11000U) << "the brute force looked too low";
                EXPECT_EQ(largest_context(plan, bytes, keep), best) << preset << " " << bytes << " keep " << keep;
            }
        }
    }
    // Only sliding layers: any context fits once the window does.
    ModelShape sliding = model(1, 100);
    EXPECT_EQ(largest_context(plan_of("k4v2", sliding), 1 << 20, false), (size_t{1} << 30) - 1);
}

TEST(Budget, LlamaCppsTypesCostTheirBlocks) {
    const ModelShape shape = model(2, 0);  // rows of 128 and 64
    EXPECT_EQ(llama_cache_bytes(shape, "f16", 1000), 2U * 1024 * (128 + 64) * 2);
    EXPECT_EQ(llama_cache_bytes(shape, "q8_0", 1024), 2U * 1024 * (4 + 2) * 34);
    EXPECT_EQ(llama_cache_bytes(shape, "q4_0", 1), 2U * 256 * (4 + 2) * 18);
    // The sliding layer: window 1024 + ubatch 512 cells, never more than a full layer's.
    EXPECT_EQ(llama_cache_bytes(model(2, 1024), "f16", 4096), (1536U + 4096) * 192 * 2);
    EXPECT_EQ(llama_cache_bytes(model(2, 1024), "f16", 512), (512U + 512) * 192 * 2);
    EXPECT_THROW((void)llama_cache_bytes(shape, "q3_k", 1), Error);
    ModelShape odd = shape;
    odd.layers[0].n_kv_heads = 1;
    odd.layers[0].head_dim_k = 40;
    EXPECT_THROW((void)llama_cache_bytes(odd, "q8_0", 1), Error);
    EXPECT_NO_THROW((void)llama_cache_bytes(odd, "f16", 1));
}

}  // namespace
}  // namespace kvaq
