// Sliding-window layers give up tiles that no later token can see.
#include <gtest/gtest.h>

#include "kvaq/attention/reference.h"
#include "kvaq/base/error.h"
#include "kvaq/cache/cache_testing.h"
#include "kvaq/cache/kv_cache.h"
#include "kvaq/plan/budget.h"

namespace kvaq {
namespace {

constexpr int32_t kWindow = 50;

std::unique_ptr<KvCache> cache_of(const Plan& plan, size_t n_seq = 1, bool keep = false) {
    return make_kv_cache(plan, {.n_seq_max = n_seq, .n_ctx = 2048, .max_batch_tokens = 128, .keep_sliding = keep});
}

TEST(SlidingWindow, HoldsExactlyThePlannedBytes) {
    for (const char* preset : {"f16", "k4v2", "k4v4-rot-w64-s4", "k3v2-w200-s8", "klt-w40-s4"}) {
        for (const bool keep : {false, true}) {
            const ModelShape model = small_model(32, 32, kWindow);
            const Plan plan = plan_of(preset, model);
            const auto cache = cache_of(plan, 1, keep);
            int32_t pos = 0;
            for (const int32_t n : {1, 62, 1, 1, 63, 100, 128, 128, 28, 1, 1, 100, 1, 77}) {
                ASSERT_FALSE(step(*cache, model, text(0, pos, n)).empty());
                pos += n;
                EXPECT_EQ(cache->use().held(), cache_bytes(plan, static_cast<size_t>(pos), keep).total)
                    << preset << " " << pos << " keep " << keep;
                EXPECT_LE(cache->use().held(), cache->use().allocated);
            }
        }
    }
}

TEST(SlidingWindow, HoldsNoMoreHoweverLongTheSequence) {
    ModelShape model = small_model(32, 32, kWindow);
    for (LayerShape& layer : model.layers) layer.sliding_window = kWindow;
    const auto cache = cache_of(plan_of("k4v4-w32", model));
    size_t most = 0;
    for (int32_t pos = 0; pos < 1920; pos += 64) {
        ASSERT_FALSE(step(*cache, model, text(0, pos, 64)).empty());
        if (pos < 640) most = std::max(most, cache->use().held());
        EXPECT_LE(cache->use().held(), most) << pos;
    }
}

TEST(SlidingWindow, ReservesNoMoreHoweverLongTheContext) {
    ModelShape model = small_model(32, 32, kWindow);
    for (LayerShape& layer : model.layers) layer.sliding_window = kWindow;
    const Plan plan = plan_of("k4v4-w32", model);
    const auto reserved = [&](size_t n_ctx, bool keep) {
        return make_kv_cache(plan, {.n_seq_max = 2, .n_ctx = n_ctx, .max_batch_tokens = 128, .keep_sliding = keep})
            ->use()
            .allocated;
    };
    EXPECT_EQ(reserved(4096, false), reserved(1 << 20, false)) << "freed tiles are used again";
    EXPECT_LT(reserved(4096, true), reserved(1 << 20, true));
}

// While no tile was sealed meanwhile: tokens up to 638 leave tile 512..575 in the window of 64.
TEST(SlidingWindow, ARewindGivesTheSameBits) {
    const ModelShape model = small_model(32, 32, kWindow);
    for (const char* preset : {"f16", "k4v4-rot-w64-s3", "klt-w64"}) {
        const Plan plan = plan_of(preset, model);
        const auto run = [&](int32_t extra) {
            const auto cache = cache_of(plan);
            for (int32_t pos = 0; pos < 600; pos += 100) EXPECT_FALSE(step(*cache, model, text(0, pos, 100)).empty());
            if (extra > 0) {
                EXPECT_FALSE(step(*cache, model, text(0, 600, extra, 4)).empty());
                EXPECT_TRUE(cache->seq_rm(0, 600, -1));
            }
            return step(*cache, model, text(0, 600, 100, 5));
        };
        const auto straight = run(0);
        for (const int32_t extra : {1, 20, 39}) EXPECT_TRUE(run(extra) == straight) << preset << " " << extra;
    }
}

TEST(SlidingWindow, AShiftThatWouldShowWhatWasGivenUpIsRefusedAndChangesNothing) {
    const RopeRule rope = rope_of(32);
    const ModelShape model = small_model(32, 32, kWindow);
    const auto cache = cache_of(plan_of("k4v4", model));
    for (int32_t pos = 0; pos < 400; pos += 100)
        ASSERT_FALSE(step(*cache, model, text(0, pos, 100), {.scale = 0.2F}, 1, &rope).empty());
    ASSERT_TRUE(cache->seq_rm(0, 30, 390));
    const auto before = cache->save_sequence(0);
    EXPECT_FALSE(cache->seq_add(0, 390, -1, -360)) << "the kept 30 would be 10 to 40 positions back";
    EXPECT_TRUE(cache->save_sequence(0) == before);
    EXPECT_TRUE(cache->seq_add(0, 390, -1, -300));
}

TEST(SlidingWindow, ARewindOfUpToATileGivesTheReferencesResultsAndALongerOneIsRefused) {
    const ForcedMode forced(AttentionMode::kWideIntegers);  // its tolerance is narrow
    const ModelShape model = small_model(32, 32, kWindow);
    const Plan plan = plan_of("k4v4-rot-w20-s3", model);
    for (int32_t n = 500; n < 570; n += 7) {
        const auto cache = cache_of(plan);
        const auto reference = make_reference_handler(plan, 1, 5000);
        for (int32_t pos = 0; pos < n; pos += 100) {
            const auto tokens = text(0, pos, std::min(100, n - pos));
            EXPECT_LE(max_difference(step(*cache, model, tokens), step(*reference, model, tokens)), tolerance());
        }
        const int32_t first = cache->seq_pos_min(0);
        EXPECT_EQ(first, (n + 1 - kWindow - 64) / 64 * 64) << "the truth, for llama-server";
        const auto before = cache->save_sequence(0);
        EXPECT_FALSE(cache->seq_rm(0, 200, -1));
        EXPECT_FALSE(cache->seq_rm(0, first + kWindow - 2, -1))
            << "its next query sees one position less than what is left";
        EXPECT_TRUE(cache->save_sequence(0) == before) << "a refusal changes nothing";
        const int32_t to = n - 64;
        ASSERT_TRUE(cache->seq_rm(0, to, -1));
        ASSERT_TRUE(reference->seq_rm(0, to, -1));
        const auto tokens = text(0, to, 30, 5);
        EXPECT_LE(max_difference(step(*cache, model, tokens), step(*reference, model, tokens)), tolerance()) << n;
        EXPECT_TRUE(cache->seq_rm(0, 0, -1)) << "all of it can always go";
        EXPECT_EQ(cache->seq_pos_min(0), -1);
        EXPECT_EQ(cache->use().n_tokens, 0U);
    }
}

TEST(SlidingWindow, AForkKeepsTheTilesThatItsOwnQueriesSee) {
    const ForcedMode forced(AttentionMode::kWideIntegers);  // its tolerance is narrow
    const ModelShape model = small_model(32, 32, kWindow);
    const Plan plan = plan_of("k4v4-w30", model);
    const auto cache = cache_of(plan, 3);
    const auto reference = make_reference_handler(plan, 3, 5000);
    const auto both = [&](const std::vector<TestToken>& tokens) {
        EXPECT_LE(max_difference(step(*cache, model, tokens), step(*reference, model, tokens)), tolerance());
    };
    both(text(0, 0, 128));
    both(text(0, 128, 100));
    for (const int32_t dst : {1, 2}) ASSERT_TRUE(cache->seq_cp(0, dst, -1, -1) && reference->seq_cp(0, dst, -1, -1));
    for (int32_t pos = 228; pos < 900; pos += 96) both(text(0, pos, 96, 1));
    both(text(1, 228, 40, 2));
    const auto bytes = cache->save_sequence(2);
    both(text(2, 228, 1, 3));
    ASSERT_TRUE(cache->seq_rm(1, -1, -1) && reference->seq_rm(1, -1, -1));
    ASSERT_TRUE(cache->seq_cp(0, 1, -1, -1) && reference->seq_cp(0, 1, -1, -1))
        << "of a sequence that has given tiles up";
    both(text(1, 900, 3, 4));
    cache->load_sequence(2, bytes);
    ASSERT_TRUE(reference->seq_rm(2, 228, -1));
    both(text(2, 228, 70, 5));
}

TEST(SlidingWindow, SnapshotsHoldAndRestoreWhatIsLeft) {
    const ForcedMode forced(AttentionMode::kWideIntegers);  // its tolerance is narrow
    const ModelShape model = small_model(32, 32, kWindow);
    const Plan plan = plan_of("k4v4-w20-s2", model);
    const auto cache = cache_of(plan, 2);
    const auto whole = cache_of(plan, 2, true);
    const auto reference = make_reference_handler(plan, 2, 5000);
    for (int32_t pos = 0; pos < 600; pos += 100) {
        (void)step(*cache, model, text(0, pos, 100));
        (void)step(*whole, model, text(0, pos, 100));
        (void)step(*reference, model, text(0, pos, 100));
    }
    const auto bytes = cache->save_sequence(0);
    EXPECT_EQ(bytes.size(), cache->sequence_bytes(0));
    EXPECT_LT(bytes.size(), whole->sequence_bytes(0) * 3 / 4);
    EXPECT_THROW(whole->load_sequence(1, bytes), Error) << "a cache that keeps whole windows would lack tokens";
    const auto fresh = cache_of(plan, 2);
    fresh->load_sequence(1, bytes);
    EXPECT_TRUE(fresh->save_sequence(1) == bytes);
    EXPECT_EQ(fresh->seq_pos_min(1), cache->seq_pos_min(0));
    std::vector<TestToken> tokens = text(0, 600, 80);
    const auto expected = step(*reference, model, tokens);
    for (TestToken& token : tokens) token.seq_ids = {1};
    EXPECT_LE(max_difference(step(*fresh, model, tokens), expected), tolerance());
}

}  // namespace
}  // namespace kvaq
