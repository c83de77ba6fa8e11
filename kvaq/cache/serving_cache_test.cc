#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <random>

#include "kvaq/attention/reference.h"
#include "kvaq/base/error.h"
#include "kvaq/base/simd_target.h"
#include "kvaq/cache/cache_testing.h"
#include "kvaq/cache/kv_cache.h"
#include "kvaq/plan/budget.h"

namespace kvaq {
namespace {

class ServingCachePreset : public testing::TestWithParam<const char*> {};

TEST_P(ServingCachePreset, EqualsTheReferenceInPrefillAndDecodeOnEveryTarget) {
    const ModelShape model = model_of(GetParam());
    const Plan plan = plan_of(GetParam(), model);
    for (const AttentionMode mode : kModes) {
        const ForcedMode forced(mode);
        for (const SimdTarget target : supported_simd_targets()) {
            force_simd_target(target);
            const auto cache = make_kv_cache(plan, {.n_seq_max = 2, .n_ctx = 512, .max_batch_tokens = 256});
            const auto reference = make_reference_handler(plan, 2, 512);
            int32_t pos = 0;
            for (const int32_t n : {1, 70, 1, 130, 1, 1, 9, 64, 1}) {
                const std::vector<TestToken> tokens = text(0, pos, n);
                EXPECT_LE(max_difference(step(*cache, model, tokens), step(*reference, model, tokens)), tolerance())
                    << GetParam() << " " << to_string(target) << " at " << pos;
                pos += n;
            }
        }
        force_simd_target(supported_simd_targets().back());
    }
}

TEST_P(ServingCachePreset, AnyBatchSplitLeavesTheSameBytes) {
    const ModelShape model = model_of(GetParam());
    const Plan plan = plan_of(GetParam(), model);
    std::vector<std::vector<std::byte>> saved;
    for (const std::vector<int32_t>& split :
         std::vector<std::vector<int32_t>>{{300}, {1, 299}, {64, 64, 64, 64, 44}, {37, 100, 163}, {}}) {
        const auto cache = make_kv_cache(plan, {.n_seq_max = 1, .n_ctx = 320, .max_batch_tokens = 300});
        int32_t pos = 0;
        for (const int32_t n : split) {
            ASSERT_FALSE(step(*cache, model, text(0, pos, n)).empty());
            pos += n;
        }
        for (; pos < 300; ++pos) ASSERT_FALSE(step(*cache, model, text(0, pos, 1)).empty());
        // One more token everywhere: a page whose last query is the batch's last token seals with the next one.
        ASSERT_FALSE(step(*cache, model, text(0, 300, 1)).empty());
        saved.push_back(cache->save_sequence(0));
        EXPECT_EQ(saved.back().size(), cache->sequence_bytes(0));
    }
    for (const auto& bytes : saved) EXPECT_TRUE(bytes == saved[0]) << GetParam();
}

TEST_P(ServingCachePreset, AnyNumberOfThreadsGivesTheSameBits) {
    const ModelShape model = model_of(GetParam());
    const Plan plan = plan_of(GetParam(), model);
    for (const AttentionMode mode : kModes) {
        const ForcedMode forced(mode);
        std::vector<std::vector<float>> outputs;
        for (const size_t n_threads : {1U, 2U, 3U, 4U}) {
            const auto cache =
                make_kv_cache(plan, {.n_seq_max = 1, .n_ctx = 2000, .max_batch_tokens = 600, .n_threads = n_threads});
            std::vector<float> all;
            int32_t pos = 0;
            for (const int32_t n : {600, 600, 1, 5, 1}) {  // 1207 tokens: decode is split over two runs of pages
                const std::vector<float> out = step(*cache, model, text(0, pos, n), {.scale = 0.2F}, n_threads);
                all.insert(all.end(), out.begin(), out.end());
                pos += n;
            }
            outputs.push_back(all);
        }
        for (const auto& out : outputs) EXPECT_TRUE(out == outputs[0]) << GetParam();
    }
}

TEST_P(ServingCachePreset, HoldsExactlyThePlannedBytes) {
    const ModelShape model = model_of(GetParam());
    const Plan plan = plan_of(GetParam(), model);
    const auto cache = make_kv_cache(plan, {.n_seq_max = 1, .n_ctx = 640, .max_batch_tokens = 128});
    int32_t pos = 0;
    for (const int32_t n : {1, 62, 1, 1, 63, 100, 128, 128, 28}) {
        ASSERT_FALSE(step(*cache, model, text(0, pos, n)).empty());
        pos += n;
        const CacheUse use = cache->use();
        EXPECT_EQ(use.packed + use.open + use.sinks + use.tables,
                  cache_bytes(plan, static_cast<size_t>(pos), true).total)
            << GetParam() << " " << pos;
        EXPECT_LE(use.packed + use.open + use.sinks + use.tables, use.allocated);
    }
}

TEST_P(ServingCachePreset, ARejectedDraftLeavesTheBitsAsIfItHadNeverBeenAdded) {
    // Drafts of 15 tokens of which k are kept, wherever that is in a tile; another cache never sees the rejected ones. A neighbour
    // holds the same prompt and goes on before the draft is rejected.
    const ModelShape model = model_of(GetParam());
    const Plan plan = plan_of(GetParam(), model);
    const auto drafted = make_kv_cache(plan, {.n_seq_max = 2, .n_ctx = 1024, .max_batch_tokens = 256});
    const auto plain = make_kv_cache(plan, {.n_seq_max = 2, .n_ctx = 1024, .max_batch_tokens = 256});
    for (const auto& cache : {&drafted, &plain}) {
        step(**cache, model, text(0, 0, 100));
        ASSERT_TRUE((*cache)->seq_cp(0, 1, 0, -1));
    }
    int32_t next = 100;
    for (int32_t round = 0; round < 40; ++round) {
        const int32_t keep = 1 + round * 5 % 15;
        const auto batch = text(0, next, 16);
        std::vector<TestToken> draft = batch;
        for (size_t i = static_cast<size_t>(keep); i < draft.size(); ++i) draft[i].content += 999;
        const std::vector<float> out = step(*drafted, model, draft);
        const std::vector<float> expected =
            step(*plain, model, {batch.begin(), batch.begin() + static_cast<ptrdiff_t>(keep)});
        for (const auto& cache : {&drafted, &plain})
            ASSERT_FALSE(step(**cache, model, text(1, 100 + 3 * round, 3, 7)).empty());
        ASSERT_TRUE(drafted->seq_rm(0, next + keep, -1));
        ASSERT_FALSE(out.empty() || expected.empty());
        const size_t row = model.layers[0].n_heads * model.layers[0].head_dim_v;
        const auto kept = static_cast<size_t>(keep) * row;
        for (size_t layer = 0; layer < model.layers.size(); ++layer) {
            for (size_t i = 0; i < kept; ++i)
                ASSERT_EQ(out[layer * 16 * row + i], expected[layer * kept + i]) << "round " << round << " at " << next;
        }
        next += keep;
        ASSERT_EQ(drafted->save_sequence(0), plain->save_sequence(0)) << "round " << round << " at " << next;
    }
    EXPECT_EQ(drafted->save_sequence(1), plain->save_sequence(1));
}

// A server's slot goes from prompt to prompt that begin alike: what they share is read as it was sealed first.
TEST_P(ServingCachePreset, APrefixKeepsItsBitsHoweverOftenItIsReused) {
    const ModelShape model = model_of(GetParam());
    const Plan plan = plan_of(GetParam(), model);
    const auto cache = make_kv_cache(plan, {.n_seq_max = 2, .n_ctx = 512, .max_batch_tokens = 256});
    std::vector<std::byte> first;
    for (uint32_t round = 0; round < 60; ++round) {
        const int32_t n = cache->seq_pos_max(0) + 1;
        ASSERT_FALSE(step(*cache, model, text(0, n, 330 - n, n == 0 ? 0 : round)).empty()) << round;
        ASSERT_TRUE(cache->seq_rm(0, 80, -1));
        const std::vector<std::byte> saved = cache->save_sequence(0);
        if (round == 0) first = saved;
        ASSERT_TRUE(saved == first) << "round " << round;
        // A neighbour takes the prefix over, and goes on from it.
        ASSERT_TRUE(cache->seq_rm(1, -1, -1) && cache->seq_cp(0, 1, -1, -1));
        ASSERT_TRUE(cache->save_sequence(1) == first) << "round " << round;
        ASSERT_FALSE(step(*cache, model, text(1, 80, 100, round + 100)).empty()) << round;
    }
}

INSTANTIATE_TEST_SUITE_P(Plans, ServingCachePreset,
                         testing::Values("f16", "k4v2", "k8v8-g32", "k4v4-rot-w64-s4", "k3v2-kchan-g32-w70",
                                         "k5v6-rotk-s8", "k2v1.58-g32", "k6v3-sym-w5", "k4v4-kchan-g128-w32", "q4_0",
                                         "k4v3-lm-s4", "k3v2-tcq-s4", "klt", "klt-w40-s4", "turned:klt-w40-s4",
                                         "turned:k4v2", "turned:k3v2-tcq", "128:k4v4-rot-g64-s4", "128:k3v5-g32"));

// At the second place that a sequence is cut at, and at others after it, tokens are quantized a second time, but not a third time; and the cache can still be
// filled to its last token.
TEST(ServingCache, CutsAtSeveralPlacesQuantizeAgainOnceAtMostAndLeaveRoomForEveryToken) {
    const ModelShape model = small_model();
    for (const char* preset : {"k3v2-tcq-s4", "klt"}) {
        const Plan plan = plan_of(preset, model);
        const auto cache = make_kv_cache(plan, {.n_seq_max = 2, .n_ctx = 1024, .max_batch_tokens = 256});
        uint32_t salt = 0;
        const auto fill_and_cut = [&](int32_t at) {
            for (const int32_t seq : {0, 1}) {
                const int32_t n = cache->seq_pos_max(seq) + 1;
                EXPECT_FALSE(step(*cache, model, text(seq, n, 400 - n, ++salt)).empty()) << preset << " " << at;
                EXPECT_TRUE(cache->seq_rm(seq, at, -1));
            }
            return cache->save_sequence(0);
        };
        for (const int32_t place : {100, 180, 260, 300}) {
            const std::vector<std::byte> first = fill_and_cut(place);
            const std::vector<std::byte> second = fill_and_cut(place);
            EXPECT_EQ(first == second, place == 100) << preset << " " << place << ": decoded, then sealed again";
            for (int round = 0; round < 10; ++round)
                ASSERT_TRUE(fill_and_cut(place) == second) << preset << " " << place << " " << round;
        }
        (void)fill_and_cut(180);
        ASSERT_FALSE(step(*cache, model, text(0, 180, 200)).empty());
        int32_t n = 0;
        while (!step(*cache, model, text(1, 180 + n, 1)).empty()) ++n;
        EXPECT_EQ(n, 1024 - 560) << preset;
    }
}

// Copies keep what they copy: a sequence whose end was cut off inside a sealed page, with a hole before it.
TEST(ServingCache, ACopyOfACutSequenceSharesItsPages) {
    const ModelShape model = small_model();
    const auto cache =
        make_kv_cache(plan_of("k3v2-tcq", model), {.n_seq_max = 2, .n_ctx = 512, .max_batch_tokens = 256});
    ASSERT_FALSE(step(*cache, model, text(0, 0, 200)).empty());
    ASSERT_TRUE(cache->seq_rm(0, 150, -1) && cache->seq_rm(0, 20, 90));
    ASSERT_TRUE(cache->seq_cp(0, 1, -1, -1));
    EXPECT_TRUE(cache->save_sequence(0) == cache->save_sequence(1));
    EXPECT_FALSE(step(*cache, model, {{150, {0, 1}, 7}}).empty());
    EXPECT_TRUE(cache->save_sequence(0) == cache->save_sequence(1));
}

TEST(ServingCache, MatchesTheReferenceWithWindowsSoftcapSinkLogitsAndAlibi) {
    const std::vector<ScoreRule> rules = bent_rules();
    const ModelShape model = small_model(40, 24, 50);
    const Plan plan = make_uniform_plan(parse_preset("k4v4-rot-w20-s3"), model);
    for (const AttentionMode mode : kModes) {
        const ForcedMode forced(mode);
        for (const ScoreRule& rule : rules) {
            const auto cache = make_kv_cache(plan, {.n_seq_max = 1, .n_ctx = 512, .max_batch_tokens = 256});
            const auto reference = make_reference_handler(plan, 1, 512);
            int32_t pos = 0;
            for (const int32_t n : {100, 1, 120, 1, 3}) {
                const std::vector<TestToken> tokens = text(0, pos, n);
                EXPECT_LE(max_difference(step(*cache, model, tokens, rule), step(*reference, model, tokens, rule)),
                          tolerance());
                pos += n;
            }
        }
    }
}

TEST(ServingCache, EveryHeadSizeFrom32To256MatchesTheReference) {
    for (const AttentionMode mode : kModes) {
        const ForcedMode forced(mode);
        for (size_t dim = 32; dim <= 256; dim += 8) {
            const ModelShape model = small_model(dim, dim);
            const Plan plan = make_uniform_plan(parse_preset("k4v3-rot-g32"), model);
            const auto cache = make_kv_cache(plan, {.n_seq_max = 1, .n_ctx = 128, .max_batch_tokens = 100});
            const auto reference = make_reference_handler(plan, 1, 128);
            const ScoreRule rule{.scale = 1.0F / static_cast<float>(dim)};
            EXPECT_LE(max_difference(step(*cache, model, text(0, 0, 70), rule),
                                     step(*reference, model, text(0, 0, 70), rule)),
                      tolerance())
                << dim;
            EXPECT_LE(max_difference(step(*cache, model, text(0, 70, 1), rule),
                                     step(*reference, model, text(0, 70, 1), rule)),
                      tolerance())
                << dim;
        }
    }
}

// Heads of more channels than a group, 128 and 64 as a rule: a block of channels after the other, tiles side by side, a last block that is shorter.
TEST(ServingCache, SeveralScalesATokenMatchTheReferenceOnEveryTarget) {
    for (const size_t dim : {80U, 128U}) {
        const ModelShape model = small_model(dim, dim);
        const ScoreRule rule{.scale = 1.0F / std::sqrt(static_cast<float>(dim))};
        for (const char* preset : {"k4v4-rot-g32", "k3v5-g64", "k6v2-sym-g32-s4", "k1.58v4-g32", "k4v3-kchan-g32"}) {
            const Plan plan = make_uniform_plan(parse_preset(preset), model);
            const auto outputs = [&](auto& handler) {
                std::vector<std::vector<float>> all;
                int32_t pos = 0;
                for (const int32_t n : {330, 1, 4, 70, 1}) {
                    all.push_back(step(handler, model, text(0, pos, n), rule));
                    pos += n;
                }
                return all;
            };
            const auto want = outputs(*make_reference_handler(plan, 1, 512));
            for (const AttentionMode mode : kModes) {
                const ForcedMode forced(mode);
                for (const SimdTarget target : supported_simd_targets()) {
                    force_simd_target(target);
                    const auto got =
                        outputs(*make_kv_cache(plan, {.n_seq_max = 1, .n_ctx = 512, .max_batch_tokens = 400}));
                    for (size_t i = 0; i < want.size(); ++i) {
                        EXPECT_LE(max_difference(got[i], want[i]), tolerance())
                            << preset << " " << dim << " " << to_string(target) << " step " << i;
                    }
                }
            }
            force_simd_target(supported_simd_targets().back());
        }
    }
}

TEST(ServingCache, HeadsWithMoreValueThanKeyChannelsMatchTheReference) {
    const ForcedMode forced(AttentionMode::kWideIntegers);  // its tolerance is narrow
    const ModelShape model = small_model(16, 128);
    const Plan plan = make_uniform_plan(parse_preset("k4v4-rot-s4"), model);
    const auto cache = make_kv_cache(plan, {.n_seq_max = 1, .n_ctx = 256, .max_batch_tokens = 200});
    const auto reference = make_reference_handler(plan, 1, 256);
    EXPECT_LE(max_difference(step(*cache, model, text(0, 0, 200)), step(*reference, model, text(0, 0, 200))),
              tolerance());
    EXPECT_LE(max_difference(step(*cache, model, text(0, 200, 1)), step(*reference, model, text(0, 200, 1))),
              tolerance());
}

// Random traffic of four sequences (appends alone and together, removals anywhere, forks, shifts, rollbacks, snapshots) against the
// plain-vector reference, with and without a sliding window.
TEST(ServingCache, RandomOperationsMatchTheReference) {
    const RopeRule rope = rope_of(16);
    // make fuzz runs 100,000 operations, with a seed of the day.
    const char* operations = std::getenv("KVAQ_FUZZ_OPERATIONS");
    const char* day = std::getenv("KVAQ_FUZZ_SEED");
    const int n_operations = operations != nullptr ? std::atoi(operations) : 250;
    const uint32_t seed = day != nullptr ? static_cast<uint32_t>(std::atol(day)) : 20261124;
    int n_restores = 0;
    int n_no_room = 0;
    size_t n_runs = 0;
    for (const AttentionMode mode : kModes) {
        const ForcedMode forced(mode);
        for (const std::string preset :
             {"f16", "k4v2-w20-s4", "k4v4-rot", "k2v2-kchan-g32-w64", "klt-w20-s4", "k4v4-w150", "turned:klt-w20-s4"}) {
            for (const int32_t sliding : {0, 50}) {
                std::mt19937 random(seed);
                const ModelShape model = small_model(16, 16, sliding);
                const Plan plan = plan_of(preset, model);
                // Of the presets' runs every second one; seven presets, so that the other half is that of the next mode.
                const size_t rewind = (n_runs++ / 2 + (sliding > 0 ? 1 : 0)) % 2 * 100;
                const auto cache =
                    make_kv_cache(plan, {.n_seq_max = 4, .n_ctx = 4096, .max_batch_tokens = 200, .rewind = rewind});
                const auto reference = make_reference_handler(plan, 4, 100000, rewind);
                TokenLedger ledger(4);
                const auto below = [&](int32_t n) { return static_cast<int32_t>(random() % static_cast<uint32_t>(n)); };
                for (int op = 0; op < n_operations; ++op) {
                    const std::string where = preset + " sliding " + std::to_string(sliding) + " rewind " +
                                              std::to_string(rewind) + " seed " + std::to_string(seed) + " op " +
                                              std::to_string(op);
                    const int32_t seq = below(4);
                    const int32_t n = cache->seq_pos_max(seq) + 1;
                    ASSERT_EQ(n, reference->seq_pos_max(seq) + 1) << where;
                    ASSERT_EQ(cache->use().n_tokens, ledger.size()) << where;
                    switch (below(10)) {
                        case 0: {
                            const int32_t from = below(3) == 0 || n < 60 ? below(n + 1) : n - below(60);
                            const bool done = cache->seq_rm(seq, from, -1);
                            if (done) {
                                ASSERT_TRUE(reference->seq_rm(seq, from, -1)) << where;
                                ledger.seq_rm(seq, from, -1);
                            } else {  // sliding-window layers no longer have what the next query sees
                                ASSERT_GT(sliding, 0) << where;
                                ASSERT_GT(cache->seq_pos_min(seq), from - sliding + 1) << where;
                            }
                            break;
                        }
                        case 1: {
                            const int32_t dst = below(4);
                            if (dst == seq) break;
                            ASSERT_TRUE(cache->seq_rm(dst, -1, -1) && reference->seq_rm(dst, -1, -1));
                            ledger.seq_rm(dst, -1, -1);
                            const int32_t to = below(3) == 0 && n > 0 ? n - below(std::min(n, 50)) : -1;
                            if (cache->seq_cp(seq, dst, -1, to)) {
                                ASSERT_TRUE(reference->seq_cp(seq, dst, -1, to)) << where;
                                ledger.seq_cp(seq, dst, -1, to);
                            } else {
                                ASSERT_GT(sliding, 0) << where;
                            }
                            break;
                        }
                        case 2: {  // a batch that fails
                            std::vector<TestToken> tokens = text(seq, n, 1 + below(80), 99);
                            std::vector<BatchToken> batch;
                            for (const TestToken& token : tokens)
                                batch.push_back({.pos = token.pos, .seq_ids = token.seq_ids});
                            const auto before = cache->save_sequence(seq);
                            const bool begun = cache->begin(batch);
                            ASSERT_TRUE(begun || ledger.size() + batch.size() > 2048) << where;
                            cache->rollback();
                            if (begun) settle_reference(*reference, -1);
                            ASSERT_TRUE(before == cache->save_sequence(seq)) << where;
                            break;
                        }
                        case 3: {  // save, lose, restore
                            const auto bytes = cache->save_sequence(seq);
                            if (bytes.empty()) break;
                            ASSERT_EQ(bytes.size(), cache->sequence_bytes(seq));
                            const int32_t from = below(2) == 0 ? 0 : n - 1;
                            ASSERT_TRUE(cache->seq_rm(seq, from, -1)) << where;
                            ++n_restores;
                            try {
                                cache->load_sequence(seq, bytes);
                            } catch (const Error& error) {  // what it shared it would have for itself now: no room
                                ASSERT_EQ(error.code(), ErrorCode::kOutOfMemory) << where;
                                ASSERT_LE(cache->seq_pos_max(seq) + 1, from) << where;
                                ASSERT_TRUE(reference->seq_rm(seq, from, -1)) << where;
                                ledger.seq_rm(seq, from, -1);
                                ++n_no_room;
                                break;
                            }
                            ledger.load(seq, seq);
                            settle_reference(*reference, seq);
                            ASSERT_TRUE(bytes == cache->save_sequence(seq)) << where;
                            break;
                        }
                        case 4: {  // a context shift, as llama-server does it; or what is behind a place goes back
                            if (n < 8) break;
                            if (below(3) == 0) {
                                const int32_t from = below(n);
                                const int32_t delta = 1 + below(40);
                                if (cache->seq_add(seq, from, -1, delta)) {
                                    ASSERT_TRUE(reference->seq_add(seq, from, -1, delta)) << where;
                                    ledger.seq_add(seq, from, -1, delta);
                                } else {
                                    ASSERT_GT(sliding, 0) << where;
                                }
                                break;
                            }
                            const int32_t keep = below(2) == 0 ? 0 : below(n / 4 + 1);
                            const int32_t discard = 1 + below((n - keep) / 2);
                            ASSERT_TRUE(cache->seq_rm(seq, keep, keep + discard) &&
                                        reference->seq_rm(seq, keep, keep + discard))
                                << where;
                            ledger.seq_rm(seq, keep, keep + discard);
                            if (cache->seq_add(seq, keep + discard, n, -discard)) {
                                ASSERT_TRUE(reference->seq_add(seq, keep + discard, n, -discard)) << where;
                                ledger.seq_add(seq, keep + discard, n, -discard);
                            } else {  // what is kept in front would come into a window that has given it up
                                ASSERT_GT(sliding, 0) << where;
                            }
                            break;
                        }
                        default: {
                            std::vector<TestToken> tokens =
                                text(seq, n, below(3) == 0 ? 1 + below(150) : 1 + below(3), static_cast<uint32_t>(op));
                            const int32_t other = below(4);
                            if (other != seq) {
                                const std::vector<TestToken> more = text(other, cache->seq_pos_max(other) + 1,
                                                                         1 + below(40), static_cast<uint32_t>(op) + 7);
                                tokens.insert(tokens.end(), more.begin(), more.end());
                            }
                            const auto got = step(*cache, model, tokens, {.scale = 0.2F}, 1, &rope);
                            if (got.empty()) {
                                ASSERT_GT(ledger.size() + tokens.size(), 2048U) << where << ": no room already";
                                cache->clear();
                                reference->clear();
                                ledger.clear();
                                break;
                            }
                            ledger.add(tokens);
                            ASSERT_LE(max_difference(got, step(*reference, model, tokens, {.scale = 0.2F}, 1, &rope)),
                                      tolerance())
                                << where;
                        }
                    }
                }
            }
        }
    }
    std::printf("%zu operations, %d restores, %d of them without room\n", n_runs * static_cast<size_t>(n_operations),
                n_restores, n_no_room);
    EXPECT_LT(n_no_room * 10, n_restores);
}

// A chat's answer is written again, or drafts of several tiles are rejected: by as many tokens as KvCacheOptions::rewind says, twice, beside a cache that never
// had them; once with another sequence that shares what is cut.
TEST(ServingCache, WhatIsCutOffWithinTheRewindLeavesNoTrace) {
    const int32_t kRewind = 200;
    for (const std::string preset : {"k4v2-w20-s4", "k2v2-kchan-g32", "klt-w64-s4", "turned:klt-s2"}) {
        for (const int32_t sliding : {0, 50}) {
            const ModelShape model = small_model(16, 16, sliding);
            const Plan plan = plan_of(preset, model);
            const RopeRule rope = rope_of(16);
            const std::string where = preset + " sliding " + std::to_string(sliding);
            const auto make = [&](size_t rewind) {
                return make_kv_cache(plan, {.n_seq_max = 2, .n_ctx = 2048, .max_batch_tokens = 300, .rewind = rewind});
            };
            const auto run = [&](KvCache& cache, int32_t n, uint32_t seed) {
                return step(cache, model, text(0, cache.seq_pos_max(0) + 1, n, seed), {.scale = 0.2F}, 1, &rope);
            };
            const auto cut = make(kRewind), never = make(0);
            for (KvCache* cache : {cut.get(), never.get()}) ASSERT_FALSE(run(*cache, 290, 1).empty());
            for (const bool at_once : {true, false}) {
                const int32_t n = cut->seq_pos_max(0) + 1;
                for (int32_t left = kRewind; left > 0; left -= at_once ? left : 1)
                    ASSERT_FALSE(run(*cut, at_once ? left : 1, 2).empty());
                if (at_once) {
                    ASSERT_TRUE(cut->seq_cp(0, 1, -1, -1)) << where;
                }
                ASSERT_TRUE(cut->seq_rm(0, n, -1)) << where;
                if (sliding == 0) {  // else what is kept for rewinds to come differs
                    EXPECT_TRUE(cut->save_sequence(0) == never->save_sequence(0)) << where;
                }
                for (const int32_t more : {1, 3, 150})
                    EXPECT_TRUE(run(*cut, more, 3) == run(*never, more, 3)) << where << " then " << more;
                ASSERT_TRUE(cut->seq_rm(1, -1, -1));
            }
            EXPECT_GT(cut->use().open, never->use().open);
            // What is kept so is in no snapshot: it fits into a cache without.
            const auto other = make(0);
            other->load_sequence(1, cut->save_sequence(0));
            EXPECT_EQ(other->seq_pos_max(1), cut->seq_pos_max(0));
        }
    }
}

// Wherever in a tile it is cut, as far as that; two tokens further not everywhere.
TEST(ServingCache, TheRewindReachesAsFarAsItSays) {
    constexpr int32_t kRewind = 100;
    const ModelShape model = small_model();
    const Plan plan = plan_of("k4v2-w20-s4", model);
    const auto continued = [&](int32_t n_prompt, int32_t n_more) {
        const auto cache = make_kv_cache(
            plan, {.n_seq_max = 1, .n_ctx = 1024, .max_batch_tokens = 400, .rewind = static_cast<size_t>(kRewind)});
        EXPECT_FALSE(step(*cache, model, text(0, 0, n_prompt)).empty());
        if (n_more > 0) {
            EXPECT_FALSE(step(*cache, model, text(0, n_prompt, n_more, 2)).empty());
        }
        EXPECT_TRUE(cache->seq_rm(0, n_prompt, -1));
        return step(*cache, model, text(0, n_prompt, 1, 3));
    };
    int n_differ = 0;
    for (int32_t n = 200; n < 264; ++n) {
        const auto never = continued(n, 0);
        EXPECT_TRUE(continued(n, kRewind) == never) << n;
        n_differ += continued(n, kRewind + 2) == never ? 0 : 1;
    }
    EXPECT_GE(n_differ, 1);
    EXPECT_LT(n_differ, 8);
}

// Rows that are kept for a rewind only make room before a micro-batch is refused: more partly used pages, as --cache-reuse leaves them, than there are f16 pages.
TEST(ServingCache, WhatIsKeptForARewindMakesRoom) {
    const ModelShape model = small_model();
    const Plan plan = plan_of("k4v2-s4", model);
    const RopeRule rope = rope_of(16);
    const auto cache = make_kv_cache(plan, {.n_seq_max = 1, .n_ctx = 4096, .max_batch_tokens = 128, .rewind = 1000});
    const auto reference = make_reference_handler(plan, 1, 100000, 1000);
    size_t most_open = 0;
    bool gave_up = false;
    for (int i = 0; i < 60; ++i) {
        const auto round = [&](AttentionHandler& handler) {
            const int32_t n = handler.seq_pos_max(0) + 1;
            const auto out = step(handler, model, text(0, n, 64, static_cast<uint32_t>(i)), {.scale = 0.2F}, 1, &rope);
            EXPECT_TRUE(handler.seq_rm(0, n + 4, n + 60) && handler.seq_add(0, n + 60, -1, -56)) << i;
            return out;
        };
        const auto got = round(*cache);
        ASSERT_FALSE(got.empty()) << i;
        ASSERT_LE(max_difference(got, round(*reference)), tolerance()) << i;
        gave_up = gave_up || cache->use().open < most_open;
        most_open = std::max(most_open, cache->use().open);
    }
    EXPECT_TRUE(gave_up);
}

TEST(ServingCache, TokensOfSeveralSequencesAreStoredOnceAndDivergeByCopyOnWrite) {
    const ModelShape model = small_model();
    const Plan plan = make_uniform_plan(parse_preset("k4v4"), model);
    for (const AttentionMode mode : kModes) {
        const ForcedMode forced(mode);
        const auto cache = make_kv_cache(plan, {.n_seq_max = 4, .n_ctx = 512, .max_batch_tokens = 512});
        const auto reference = make_reference_handler(plan, 4, 5000);
        std::vector<TestToken> tokens;
        for (int32_t i = 0; i < 100; ++i) tokens.push_back({i, {0, 1, 2, 3}, static_cast<uint32_t>(i)});
        for (int32_t s = 0; s < 4; ++s) {
            for (const TestToken& token : text(s, 100, 20, static_cast<uint32_t>(s) + 1)) tokens.push_back(token);
        }
        EXPECT_LE(max_difference(step(*cache, model, tokens), step(*reference, model, tokens)), tolerance());
        EXPECT_EQ(cache->use().n_tokens, 180U);
        tokens.clear();
        for (int32_t s = 0; s < 4; ++s) {
            for (const TestToken& token : text(s, 120, 1, static_cast<uint32_t>(s) + 1)) tokens.push_back(token);
        }
        EXPECT_LE(max_difference(step(*cache, model, tokens), step(*reference, model, tokens)), tolerance());
    }
}

// What integers add to the error of the codec itself, measured against f16, in power: a hundredth where q is in bytes (4 bits; 5 to 0 by channel), q in
// 15 bits a thousandth.
TEST(ServingCache, IntegersAddLittleToTheErrorOfTheCodec) {
    const ModelShape model = small_model(64, 64);
    const auto attend = [&](const Plan& plan, AttentionMode mode) {
        const ForcedMode forced(mode);
        const auto cache = make_kv_cache(plan, {.n_seq_max = 1, .n_ctx = 1024, .max_batch_tokens = 600});
        (void)step(*cache, model, text(0, 0, 600));
        return step(*cache, model, text(0, 600, 16));
    };
    const auto power = [](const std::vector<float>& a, const std::vector<float>& b) {
        double sum = 0;
        for (size_t i = 0; i < a.size(); ++i)
            sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2.0);
        return sum;
    };
    const std::vector<float> f16 = attend(plan_of("f16", model), AttentionMode::kExact);
    for (const auto& [name, most] : {std::pair{"k4v4-rot-s4", 1e-2}, std::pair{"k3v8-rot-s4", 1e-2},
                                     std::pair{"q4_0", 1e-2}, std::pair{"bytes", 1e-2}, std::pair{"klt", 1e-2},
                                     std::pair{"k4v4-kchan-g32", 1e-3}, std::pair{"k5v5-rot-s4", 1e-3}}) {
        const Plan plan = plan_of(name, model);
        const std::vector<float> exact = attend(plan, AttentionMode::kExact);
        const double codec = power(exact, f16);
        const double bytes = power(attend(plan, AttentionMode::kIntegers), exact);
        EXPECT_LT(bytes, most * codec) << name;
        EXPECT_LT(power(attend(plan, AttentionMode::kWideIntegers), exact), 1e-3 * codec) << name;
        std::printf("%s %.1e of the codec's error\n", name, bytes / codec);
    }
}

TEST(ServingCache, ReservesWhatItSaysAndNotMoreThanTheLimit) {
    for (const int32_t sliding : {0, 100}) {
        const ModelShape model = small_model(32, 32, sliding);
        for (const char* preset : {"f16", "k4v2-rot-w40-s4", "klt-s4"}) {
            const Plan plan = plan_of(preset, model);
            KvCacheOptions options{.n_seq_max = 3, .n_ctx = 5000, .max_batch_tokens = 128};
            const size_t all = reserved_bytes(plan, options);
            EXPECT_EQ(make_kv_cache(plan, options)->use().allocated, all) << preset << sliding;
            EXPECT_EQ(tokens_within(plan, options, all), 5000U);
            KvCacheOptions least = options;
            least.n_ctx = 128;
            const size_t budget = (all + reserved_bytes(plan, least)) / 2;
            options.n_ctx = tokens_within(plan, options, budget);
            EXPECT_LT(options.n_ctx, 5000U);
            EXPECT_LE(reserved_bytes(plan, options), budget);
            const auto cache = make_kv_cache(plan, options);
            size_t n = 0;
            while (!step(*cache, model, text(0, static_cast<int32_t>(n), 100)).empty()) {
                n += 100;
                ASSERT_LE(cache->use().held(), budget);
            }
            EXPECT_GT(n + 100, options.n_ctx) << "all of it can be used";
            options.n_ctx = 5000;
            try {
                (void)tokens_within(plan, options, reserved_bytes(plan, least) - 1);
                ADD_FAILURE() << "not refused";
            } catch (const Error& error) {
                EXPECT_EQ(error.code(), ErrorCode::kBudgetTooSmall);
            }
        }
    }
}

// What an aborted batch has written lies where f16 rows were that the batch before had left for a cut.
TEST(ServingCache, ACutAfterAnAbortedBatchFindsNoRowsOfThatBatch) {
    const ModelShape model = small_model();
    const ScoreRule rule{.scale = 0.2F};
    const ForcedMode forced(AttentionMode::kExact);
    for (const char* preset : {"k4v2", "klt-w20-s4", "turned:k3v2-tcq"}) {
        for (const int32_t cut : {70, 100, 120, 130}) {
            const Plan plan = plan_of(preset, model);
            const auto cache = make_kv_cache(plan, {.n_seq_max = 1, .n_ctx = 512, .max_batch_tokens = 256});
            const auto reference = make_reference_handler(plan, 1, 512);
            const auto both = [&](const std::vector<TestToken>& tokens) {
                return max_difference(step(*cache, model, tokens, rule), step(*reference, model, tokens, rule));
            };
            EXPECT_LE(both(text(0, 0, 100)), tolerance());
            EXPECT_LE(both(text(0, 100, 48)), tolerance());
            for (AttentionHandler* handler : {static_cast<AttentionHandler*>(cache.get()), reference.get()}) {
                ASSERT_TRUE(
                    outputs_of(*handler, model, text(0, 148, 60, 9), rule, nullptr, [&](const AttentionCall& call) {
                        run_team(*handler, call, 1);
                    }).has_value());
                handler->rollback();
                ASSERT_TRUE(handler->seq_rm(0, cut, -1));
            }
            EXPECT_LE(both(text(0, cut, 20, 2)), tolerance()) << preset << " " << cut;
        }
    }
}

TEST(ServingCache, AFullCacheSaysNoAndStaysAsItWas) {
    const ModelShape model = small_model();
    const Plan plan = make_uniform_plan(parse_preset("k4v4"), model);
    const auto cache = make_kv_cache(plan, {.n_seq_max = 1, .n_ctx = 100, .max_batch_tokens = 100});
    ASSERT_FALSE(step(*cache, model, text(0, 0, 90)).empty());
    const auto before = cache->save_sequence(0);
    EXPECT_TRUE(step(*cache, model, text(0, 90, 11)).empty());
    EXPECT_TRUE(before == cache->save_sequence(0));
    EXPECT_FALSE(step(*cache, model, text(0, 90, 10)).empty());
}

TEST(ServingCache, RefusesPositionsThatDoNotContinue) {
    const ModelShape model = small_model();
    const auto cache = make_kv_cache(make_uniform_plan(parse_preset("k4v4"), model),
                                     {.n_seq_max = 1, .n_ctx = 100, .max_batch_tokens = 100});
    ASSERT_FALSE(step(*cache, model, text(0, 0, 5)).empty());
    EXPECT_THROW((void)step(*cache, model, text(0, 7, 1)), Error);
    EXPECT_EQ(cache->seq_pos_max(0), 4);
    EXPECT_FALSE(step(*cache, model, text(0, 5, 1)).empty());
}

TEST(ServingCache, AWholeContextIsSavedAndLoadedOrRefusedWithoutAChange) {
    for (const int32_t sliding : {0, 50}) {
        const ModelShape model = small_model(16, 16, sliding);
        const Plan plan = plan_of("k3v2-tcq-w10-s2", model);
        const auto make = [&](size_t n_ctx) {
            return make_kv_cache(plan, {.n_seq_max = 3, .n_ctx = n_ctx, .max_batch_tokens = 300});
        };
        const auto cache = make(600);
        ASSERT_FALSE(step(*cache, model, text(0, 0, 150)).empty());
        ASSERT_TRUE(cache->seq_cp(0, 2, -1, -1));
        ASSERT_FALSE(step(*cache, model, text(2, 150, 40, 3)).empty());
        ASSERT_FALSE(step(*cache, model, text(0, 150, 5, 4)).empty());
        const auto good = cache->save_context();
        EXPECT_EQ(good.size(), cache->context_bytes());
        const auto other = make(600);
        ASSERT_FALSE(step(*other, model, text(1, 0, 70, 9)).empty());
        const auto before = other->save_context();
        std::mt19937 random(20261127);
        for (int i = 0; i < 600; ++i) {
            auto bad = good;
            const size_t at = i < 150 ? static_cast<size_t>(i) : random() % good.size();
            if (i % 3 == 2) {
                bad.resize(at);
            } else {
                bad[at] ^= static_cast<std::byte>(1U << random() % 8);
            }
            EXPECT_THROW(other->load_context(bad), Error) << at;
        }
        EXPECT_THROW(other->load_context(cache->save_sequence(0)), Error);
        EXPECT_TRUE(other->save_context() == before);
        const auto small = make(200);  // shared tokens count once only while they are shared
        ASSERT_FALSE(step(*small, model, text(1, 0, 70, 9)).empty());
        try {
            small->load_context(good);
            ADD_FAILURE() << "there is no room";
        } catch (const Error& error) {
            EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
        }
        EXPECT_TRUE(small->save_context() == before);
        EXPECT_FALSE(step(*small, model, text(1, 70, 10, 9)).empty());
        other->load_context(good);
        EXPECT_TRUE(other->save_context() == good);
        EXPECT_EQ(other->seq_pos_max(1), -1);
        for (const int32_t seq : {0, 2}) {
            const auto tokens = text(seq, cache->seq_pos_max(seq) + 1, 80, 5);
            EXPECT_TRUE(step(*other, model, tokens) == step(*cache, model, tokens)) << seq;
        }
        const auto empty = make(600)->save_context();
        other->load_context(empty);
        EXPECT_EQ(other->use().n_tokens, 0U);
    }
}

TEST(ServingCache, RefusesDamagedSnapshotsAndLeavesTheSequenceAlone) {
    const ModelShape model = small_model();
    const auto make = [&](const char* preset) {
        return make_kv_cache(plan_of(preset, model), {.n_seq_max = 2, .n_ctx = 300, .max_batch_tokens = 300});
    };
    const auto cache = make("k4v4-w10-s2");
    ASSERT_FALSE(step(*cache, model, text(0, 0, 150)).empty());
    const auto good = cache->save_sequence(0);
    std::mt19937 random(20261125);
    for (int i = 0; i < 500; ++i) {
        const size_t size = i < 100 ? static_cast<size_t>(i) : random() % good.size();
        EXPECT_THROW(cache->load_sequence(1, std::span(good).first(size)), Error) << size;
    }
    for (int i = 0; i < 1000; ++i) {
        const size_t at = i < 200 ? static_cast<size_t>(i) : random() % good.size();
        auto bad = good;
        bad[at] ^= static_cast<std::byte>(1U << random() % 8);
        EXPECT_THROW(cache->load_sequence(1, bad), Error) << at;
    }
    EXPECT_EQ(cache->seq_pos_max(1), -1);
    EXPECT_THROW(make("k4v4-w10-s3")->load_sequence(1, good), Error);
    cache->load_sequence(1, good);
    EXPECT_TRUE(cache->save_sequence(1) == good);
}

}  // namespace
}  // namespace kvaq
