#include "kvaq/stats/collector.h"

#include <gtest/gtest.h>

#include <barrier>
#include <cmath>
#include <random>
#include <thread>

#include "kvaq/stats/cache_analysis.h"

namespace kvaq {
namespace {

/// Accepts everything and marks the output.
class CountingHandler final : public AttentionHandler {
  public:
    bool begin(std::span<const BatchToken>) override { return true; }
    void attend(const AttentionCall& call, Team& team) noexcept override {
        if (team.index() == 0) call.out.row(0, 0)[0] = 42.0F;
        team.barrier();
    }
    void end() noexcept override {}
    void rollback() noexcept override {}
    void clear() noexcept override {}
    bool seq_rm(int32_t, int32_t, int32_t) override { return true; }
    bool seq_cp(int32_t, int32_t, int32_t, int32_t) override { return false; }
    void seq_keep(int32_t) noexcept override {}
    [[nodiscard]] int32_t seq_pos_min(int32_t) const noexcept override { return 3; }
    [[nodiscard]] int32_t seq_pos_max(int32_t seq) const noexcept override { return seq; }
};

class ThreadTeam final : public Team {
  public:
    ThreadTeam(size_t index, size_t size, std::barrier<>& barrier) : index_(index), size_(size), barrier_(barrier) {}
    [[nodiscard]] size_t index() const noexcept override { return index_; }
    [[nodiscard]] size_t size() const noexcept override { return size_; }
    void barrier() noexcept override { barrier_.arrive_and_wait(); }

  private:
    size_t index_, size_;
    std::barrier<>& barrier_;
};

constexpr size_t kHeads = 6, kKvHeads = 2, kDimK = 16, kDimV = 24;

ModelShape two_layers() {
    ModelShape shape;
    shape.fingerprint = "f";
    for (const int32_t layer : {1, 4}) {
        shape.layers.push_back(
            {.layer = layer, .n_heads = kHeads, .n_kv_heads = kKvHeads, .head_dim_k = kDimK, .head_dim_v = kDimV});
    }
    return shape;
}

struct Text {
    explicit Text(size_t n)
        : n_tokens(n),
          q(n * kHeads * kDimK),
          k(n * kKvHeads * kDimK),
          v(n * kKvHeads * kDimV),
          out(n * kHeads * kDimV) {
        std::mt19937 random(1);
        std::normal_distribution<float> normal(0.5F, 1.0F);
        for (float& x : q) x = normal(random);
        for (float16& x : k) x = static_cast<float16>(3 * normal(random));
        for (float16& x : v) x = static_cast<float16>(normal(random));
    }
    size_t n_tokens;
    std::vector<float> q;
    std::vector<float16> k, v;
    std::vector<float> out;
};

void feed(StatsCollector& collector, Text& text, size_t batch, size_t n_threads, const RopeRule* rope = nullptr) {
    for (size_t first = 0; first < text.n_tokens; first += batch) {
        const size_t n = std::min(batch, text.n_tokens - first);
        std::vector<BatchToken> tokens(n);
        for (size_t i = 0; i < n; ++i) tokens[i].pos = static_cast<int32_t>(first + i);
        ASSERT_TRUE(collector.begin(tokens));
        for (const int32_t layer : {1, 4}) {
            AttentionCall call;
            call.layer = layer;
            call.n_tokens = n;
            call.rope = rope;
            call.q = {text.q.data() + first * kHeads * kDimK, kHeads * kDimK, kDimK};
            call.k = {text.k.data() + first * kKvHeads * kDimK, kKvHeads * kDimK, kDimK};
            call.v = {text.v.data() + first * kKvHeads * kDimV, kKvHeads * kDimV, kDimV};
            call.out = {text.out.data(), kHeads * kDimV, kDimV};
            std::barrier<> barrier(static_cast<std::ptrdiff_t>(n_threads));
            std::vector<std::thread> threads;
            for (size_t i = 0; i < n_threads; ++i) {
                threads.emplace_back([&, i] {
                    ThreadTeam team(i, n_threads, barrier);
                    collector.attend(call, team);
                });
            }
            for (std::thread& thread : threads) thread.join();
        }
        collector.end();
    }
}

TEST(StatsCollector, SumsWhatWasSeen) {
    Text text(256);
    StatsCollector collector(two_layers(), std::make_unique<CountingHandler>(), 3);
    feed(collector, text, 128, 2);
    const ModelStats stats = collector.stats();
    EXPECT_EQ(stats.n_tokens, 256U);
    EXPECT_EQ(stats.fingerprint, "f");
    EXPECT_EQ(stats.n_sample_tiles, 2U);  // one a micro-batch
    EXPECT_EQ(text.out[0], 42.0F) << "the inner handler did its work";
    for (size_t head = 0; head < kKvHeads; ++head) {
        const HeadStats& h = stats.layers[1].heads[head];
        double qq = 0;
        double kk = 0;
        double energy = 0;
        double mean = 0;
        for (size_t t = 0; t < 256; ++t) {
            for (size_t j = head * 3; j < head * 3 + 3; ++j) {
                qq += static_cast<double>(text.q[(t * kHeads + j) * kDimK + 2]) *
                      static_cast<double>(text.q[(t * kHeads + j) * kDimK + 5]);
            }
            const float16* k = text.k.data() + (t * kKvHeads + head) * kDimK;
            const float16* v = text.v.data() + (t * kKvHeads + head) * kDimV;
            kk += static_cast<double>(k[1]) * static_cast<double>(k[3]);
            mean += static_cast<double>(v[20]);
            for (size_t i = 0; i < kDimV; ++i) energy += static_cast<double>(v[i]) * static_cast<double>(v[i]);
        }
        EXPECT_NEAR(h.query_second[2 * kDimK + 5], qq / 256, 1e-4);
        EXPECT_NEAR(h.key_second[1 * kDimK + 3], kk / 256, 1e-3);
        EXPECT_NEAR(h.value_mean[20], mean / 256, 1e-5);
        EXPECT_NEAR(h.value_norm(), std::sqrt(energy / 256), 1e-4);
        ASSERT_EQ(h.key_tiles.size(), 2 * 64 * kDimK);
        // The first micro-batch gives its second tile (never a sequence's first), the second one its second.
        EXPECT_EQ(h.key_tiles[5 * kDimK + 3], text.k[((64 + 5) * kKvHeads + head) * kDimK + 3]);
        EXPECT_EQ(h.value_tiles[(64 + 5) * kDimV + 3], text.v[((128 + 64 + 5) * kKvHeads + head) * kDimV + 3]);
    }
}

TEST(StatsCollector, DoesNotDependOnThreads) {
    Text text(300);
    StatsCollector one(two_layers(), std::make_unique<CountingHandler>(), 2);
    StatsCollector four(two_layers(), std::make_unique<CountingHandler>(), 2);
    feed(one, text, 70, 1);
    feed(four, text, 70, 4);
    for (size_t h = 0; h < kKvHeads; ++h) {
        EXPECT_EQ(one.stats().layers[0].heads[h].query_second, four.stats().layers[0].heads[h].query_second);
        EXPECT_EQ(one.stats().layers[0].heads[h].key_second, four.stats().layers[0].heads[h].key_second);
        EXPECT_EQ(one.stats().layers[0].heads[h].key_metric, four.stats().layers[0].heads[h].key_metric);
    }
}

TEST(StatsCollector, FollowsQueriesIntoEarlierMicroBatches) {
    Text text(300);
    StatsCollector whole(two_layers(), std::make_unique<CountingHandler>(), 2);
    StatsCollector cut(two_layers(), std::make_unique<CountingHandler>(), 2);
    feed(whole, text, 300, 1);
    feed(cut, text, 70, 2);
    feed(cut, text, 70, 1);  // a second text begins at position 0 again: the same means
    for (size_t h = 0; h < kKvHeads; ++h) {
        const ModelStats all = whole.stats();
        const ModelStats parts = cut.stats();
        const HeadStats& a = all.layers[1].heads[h];
        const HeadStats& b = parts.layers[1].heads[h];
        EXPECT_GT(a.key_metric[0], 0.0);
        EXPECT_GT(a.value_metric[0], 0.0);
        EXPECT_EQ(a.value_metric[1], 0.0) << "no output weights: the identity";
        for (size_t i = 0; i < a.key_metric.size(); ++i)
            EXPECT_NEAR(a.key_metric[i], b.key_metric[i], 1e-4 * a.key_metric[0]);
        for (size_t i = 0; i < a.value_metric.size(); ++i)
            EXPECT_NEAR(a.value_metric[i], b.value_metric[i], 1e-4 * a.value_metric[0]);
    }
}

TEST(StatsCollector, SpreadsKeysAndQueriesOverAllPositionsThatTheModelKnows) {
    // Every key and query is the same but for its turn by RoPE. The text sees a sixteenth of the slow pair's turn.
    constexpr double kPi = 3.14159265358979;
    const RopeRule rope{.n_dims = 4, .frequencies = {2 * kPi / 32, 2 * kPi / 16384}};  // pairs (0, 2) and (1, 3)
    Text text(1024);
    RopeTurn turn;
    for (size_t t = 0; t < text.n_tokens; ++t) {
        turn.set(rope, static_cast<int32_t>(t));
        const std::vector<float> x(kDimK, 2.0F);
        for (size_t h = 0; h < kHeads; ++h) turn.apply(x.data(), &text.q[(t * kHeads + h) * kDimK], kDimK);
        const std::vector<float16> y(kDimK, static_cast<float16>(2.0F));
        for (size_t h = 0; h < kKvHeads; ++h) turn.apply(y.data(), &text.k[(t * kKvHeads + h) * kDimK], kDimK);
    }
    ModelShape shape = two_layers();
    const auto slow_mean = [&](int32_t n_ctx_train) {
        shape.n_ctx_train = n_ctx_train;
        StatsCollector collector(shape, std::make_unique<CountingHandler>(), 4);
        feed(collector, text, 64, 2, &rope);
        const HeadStats h = collector.stats().layers[1].heads[1];
        EXPECT_NEAR(h.key_mean[4], 2.0, 1e-3) << "no RoPE there";
        EXPECT_NEAR(h.key_second[1 * kDimK + 1] + h.key_second[3 * kDimK + 3], 8.0, 1e-2) << "turns keep lengths";
        EXPECT_NEAR(h.query_second[1 * kDimK + 1] + h.query_second[3 * kDimK + 3], 3 * 8.0, 1e-2);
        for (size_t t = 0; t + 1 < 64; ++t) {  // a sample tile stays one run of positions
            const auto angle = [&](size_t i) {
                return std::atan2(static_cast<double>(h.key_tiles[i * kDimK + 2]),
                                  static_cast<double>(h.key_tiles[i * kDimK]));
            };
            EXPECT_NEAR(std::remainder(angle(t + 1) - angle(t) - 2 * kPi / 32, 2 * kPi), 0.0, 1e-2);
        }
        return std::hypot(h.key_mean[1], h.key_mean[3]);
    };
    EXPECT_NEAR(slow_mean(0), std::sqrt(8.0), 0.05) << "as the text has it";
    EXPECT_LT(slow_mean(16384), 0.5);
}

TEST(StatsCollector, KeysAreThoseOfPackedTilesTurnedBackByMultiplesOfThePeriod) {
    const RopeRule rope{.n_dims = 4, .frequencies = {0.2, 1e-3}};  // pairs (0, 2) and (1, 3)
    Text text(512);
    ModelShape shape = two_layers();
    shape.n_ctx_train = 100000;
    StatsCollector collector(shape, std::make_unique<CountingHandler>(), 4, {}, 96);
    feed(collector, text, 128, 2, &rope);
    const ModelStats stats = collector.stats();
    EXPECT_EQ(stats.key_period, 96);
    EXPECT_EQ(stats.layers[0].rope, rope);
    const HeadStats& h = stats.layers[1].heads[1];
    double sum = 0;
    RopeTurn turn;
    for (size_t t = 0; t < 512; ++t) {
        std::vector<float16> k(kDimK);
        turn.set(rope, -static_cast<int32_t>(t / 64 * 64 / 96 * 96));  // as the tile that it lies in
        turn.apply(&text.k[(t * kKvHeads + 1) * kDimK], k.data(), kDimK);
        sum += static_cast<double>(k[1]) * static_cast<double>(k[3]);
    }
    EXPECT_NEAR(h.key_second[1 * kDimK + 3], sum / 512, 1e-3);
    double cached = 0;
    for (size_t t = 0; t < 512; ++t) {
        const float16* k = &text.k[(t * kKvHeads + 1) * kDimK];
        cached += static_cast<double>(k[1]) * static_cast<double>(k[3]);
    }
    EXPECT_NEAR(h.cached_key_second[1 * kDimK + 3], cached / 512, 1e-3) << "as the model caches them";
    EXPECT_EQ(stats.tile_turns.size(), stats.n_sample_tiles);
}

TEST(StatsCollector, WhatIsAnalysedAreTheKeysThatTheModelCaches) {
    const RopeRule rope{.n_dims = 4, .frequencies = {0.2, 1e-3}};
    Text text(512);
    for (size_t i = 0; i < text.k.size();
         ++i) {  // pairs of unlike size: turns move energy from one channel to the other
        if (i % kDimK < 2) text.k[i] = static_cast<float16>(8 * static_cast<float>(text.k[i]));
    }
    StatsCollector plain(two_layers(), std::make_unique<CountingHandler>(), 4);
    StatsCollector turned(two_layers(), std::make_unique<CountingHandler>(), 4, {}, 64);
    feed(plain, text, 128, 1);
    feed(turned, text, 128, 1, &rope);
    ModelStats stats = turned.stats();
    const CacheAnalysis wanted = analyze_cache(plain.stats(), 4, 1, {});
    const CacheAnalysis found = analyze_cache(stats, 4, 1, {});
    EXPECT_TRUE(found.as_cached);
    const SideAnalysis& a = wanted.layers[0].heads[1].key;
    const SideAnalysis& b = found.layers[0].heads[1].key;
    EXPECT_EQ(a.spectrum, b.spectrum);
    for (size_t i = 0; i < a.mse.size(); ++i) EXPECT_NEAR(b.mse[i], a.mse[i], 0.02 * a.mse[i]) << kStudyBits[i];
    stats.tile_turns.clear();  // as files of before
    const CacheAnalysis before = analyze_cache(stats, 4, 1, {});
    EXPECT_FALSE(before.as_cached);
    EXPECT_GT(std::abs(before.layers[0].heads[1].key.mse[1] - a.mse[1]), 0.02 * a.mse[1]) << "turned keys differ";
}

}  // namespace
}  // namespace kvaq
