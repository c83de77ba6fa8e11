// What teams of several threads do together: the same bits as one thread, in every way a micro-batch can go. Made for ThreadSanitizer.
#include <gtest/gtest.h>

#include "kvaq/cache/cache_testing.h"
#include "kvaq/cache/kv_cache.h"

namespace kvaq {
namespace {

/// Prompts, decoding without waiting, copies on write, shifts, windows that move on, rewinds, a restore; all outputs in a row.
std::vector<float> life(const Plan& plan, const ModelShape& model, size_t n_threads, size_t n_expected) {
    const RopeRule rope = rope_of(16);
    const auto cache =
        make_kv_cache(plan, {.n_seq_max = 3, .n_ctx = 4096, .max_batch_tokens = 300, .n_threads = n_expected});
    std::vector<float> all;
    const auto decode = [&](const std::vector<TestToken>& tokens) {
        const std::vector<float> out = step(*cache, model, tokens, {.scale = 0.2F}, n_threads, &rope);
        EXPECT_FALSE(out.empty());
        all.insert(all.end(), out.begin(), out.end());
    };
    for (int32_t pos = 0; pos < 1200; pos += 300)
        decode(text(0, pos, 300));  // later decoding is split over two runs of pages
    for (int32_t i = 0; i < 3; ++i) decode(text(0, 1200 + i, 1));
    EXPECT_TRUE(cache->seq_cp(0, 1, -1, -1));
    decode(text(1, 1203, 2, 1));  // copy on write
    decode(text(0, 1203, 8));
    std::vector<TestToken> tokens = text(0, 1211, 3);
    const std::vector<TestToken> more = text(1, 1205, 4, 1);
    tokens.insert(tokens.end(), more.begin(), more.end());
    decode(tokens);
    const bool slides = model.layers.back().sliding_window > 0;
    for (int32_t round = 0; round < 2 && !slides; ++round) {
        const int32_t n = cache->seq_pos_max(0) + 1;
        EXPECT_TRUE(cache->seq_rm(0, 4, 300) && cache->seq_add(0, 300, n, -296));
        decode(text(0, n - 296, 1));
        decode(text(0, n - 295, 70));
    }
    const std::vector<std::byte> saved = cache->save_sequence(0);
    EXPECT_TRUE(cache->seq_rm(0, cache->seq_pos_max(0) - 40, -1));
    decode(text(0, cache->seq_pos_max(0) + 1, 30, 3));
    cache->load_sequence(2, saved);
    decode(text(2, cache->seq_pos_max(2) + 1, 90));
    decode(text(2, cache->seq_pos_max(2) + 1, 1));
    return all;
}

TEST(Threads, GiveTheSameBitsThroughCopiesShiftsAndWindows) {
    for (const AttentionMode mode : kModes) {
        const ForcedMode forced(mode);
        for (const int32_t sliding : {0, 100}) {
            const ModelShape model = small_model(16, 16, sliding);
            for (const char* name : {"k4v2-rot-w20-s4", "klt", "turned:klt"}) {
                const Plan plan = plan_of(name, model);
                const std::vector<float> one = life(plan, model, 1, 1);
                EXPECT_TRUE(life(plan, model, 3, 3) == one) << name << sliding;
                EXPECT_TRUE(life(plan, model, 3, 1) == one) << name << sliding << ": more threads than expected";
                EXPECT_TRUE(life(plan, model, 2, 8) == one) << name << sliding << ": fewer threads than expected";
            }
        }
    }
}

}  // namespace
}  // namespace kvaq
