#pragma once

// For tests: small models, tokens whose q, k and v follow from their number, and micro-batches run through a handler.

#include <gtest/gtest.h>

#include <array>
#include <barrier>
#include <cmath>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "kvaq/attention/tile_attention.h"
#include "kvaq/base/attention_call.h"
#include "kvaq/plan/plan.h"
#include "kvaq/quant/transform_samples.h"

namespace kvaq {

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

inline void run_team(AttentionHandler& handler, const AttentionCall& call, size_t n_threads) {
    std::barrier barrier(static_cast<ptrdiff_t>(n_threads));
    std::vector<std::thread> threads;
    for (size_t i = 0; i < n_threads; ++i) {
        threads.emplace_back([&, i] {
            ThreadTeam team(i, n_threads, barrier);
            handler.attend(call, team);
        });
    }
    for (std::thread& thread : threads) thread.join();
}

inline ModelShape small_model(size_t head_dim_k = 32, size_t head_dim_v = 32, int32_t sliding_window = 0) {
    ModelShape shape;
    shape.architecture = "test";
    for (const int32_t layer : {0, 3}) {
        shape.layers.push_back({.layer = layer,
                                .n_heads = 6,
                                .n_kv_heads = 2,
                                .head_dim_k = head_dim_k,
                                .head_dim_v = head_dim_v,
                                .sliding_window = layer == 3 ? sliding_window : 0});
    }
    return shape;
}

/// Of a name as plan_of() takes it: with "128:" before it heads of 128 channels, else of 32.
inline ModelShape model_of(const std::string& name) {
    return name.rfind("128:", 0) == 0 ? small_model(128, 128) : small_model();
}

/// A preset, or "klt" and suffixes: sample transform codecs, another one for every head; "bytes": such keys of 5 to 0 bits, values of 8. With "turned:" before it packed keys are turned back by
/// multiples of 96 positions, in layer 3 only and by pairs of their own.
inline Plan plan_of(const std::string& name, const ModelShape& model) {
    if (name.rfind("128:", 0) == 0) return plan_of(name.substr(4), model);
    if (name.rfind("turned:", 0) == 0) {
        Plan plan = plan_of(name.substr(7), model);
        plan.key_period = 96;
        plan.layers.back().key_turn = {
            .interleaved = true, .first_channel = 2, .n_dims = 6, .frequencies = {0.3, 0.01, 2e-4}};
        return plan;
    }
    if (name == "bytes") {
        Plan plan = make_uniform_plan(parse_preset("k4v8-s4"), model);
        unsigned seed = 1;
        for (LayerPlan& layer : plan.layers) {
            for (HeadPlan& head : layer.heads)
                head.key = sample_transform(Side::kKey, layer.shape.head_dim_k, seed++, 2);
        }
        return plan;
    }
    if (name.rfind("klt", 0) != 0) return make_uniform_plan(parse_preset(name), model);
    Plan plan = make_uniform_plan(parse_preset("k4v4" + name.substr(3)), model);
    unsigned seed = 1;
    for (LayerPlan& layer : plan.layers) {
        for (HeadPlan& head : layer.heads) {
            head.key = sample_transform(Side::kKey, layer.shape.head_dim_k, seed, seed % 3);
            head.value = sample_transform(Side::kValue, layer.shape.head_dim_v, seed + 100, seed % 4);
            ++seed;
        }
    }
    return plan;
}

/// One token of a test: which sequences it belongs to, at which position. Its q, k, v follow from (layer, content).
struct TestToken {
    int32_t pos;
    std::vector<int32_t> seq_ids;
    uint32_t content;
};

struct Rows {
    std::vector<float> q, out;
    std::vector<float16> k, v;
};

inline Rows rows_of(const LayerShape& shape, const std::vector<TestToken>& tokens) {
    Rows rows;
    for (const TestToken& token : tokens) {
        std::mt19937 random(token.content * 7919U + static_cast<uint32_t>(shape.layer));
        std::normal_distribution<float> normal;
        for (size_t i = 0; i < shape.n_heads * shape.head_dim_k; ++i) rows.q.push_back(normal(random) * 1.5F);
        for (size_t i = 0; i < shape.n_kv_heads * shape.head_dim_k; ++i)
            rows.k.push_back(to_float16(normal(random) + (i % 7 == 0 ? 3.0F : 0.0F)));
        for (size_t i = 0; i < shape.n_kv_heads * shape.head_dim_v; ++i) rows.v.push_back(to_float16(normal(random)));
    }
    rows.out.assign(tokens.size() * shape.n_heads * shape.head_dim_v, -1.0F);
    return rows;
}

inline RopeRule rope_of(size_t n_dims, double base = 10000.0, bool interleaved = false) {
    RopeRule rule{.interleaved = interleaved, .n_dims = n_dims, .frequencies = {}};
    for (size_t i = 0; i < n_dims / 2; ++i)
        rule.frequencies.push_back(std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(n_dims)));
    return rule;
}

/// As a model does before it calls attention.
inline void rotate(const RopeRule& rope, const LayerShape& shape, const std::vector<TestToken>& tokens, Rows& rows) {
    RopeTurn turn;
    for (size_t t = 0; t < tokens.size(); ++t) {
        turn.set(rope, tokens[t].pos);
        for (size_t h = 0; h < shape.n_heads; ++h) {
            float* q = &rows.q[(t * shape.n_heads + h) * shape.head_dim_k];
            turn.apply(q, q, shape.head_dim_k);
        }
        for (size_t h = 0; h < shape.n_kv_heads; ++h) {
            float16* k = &rows.k[(t * shape.n_kv_heads + h) * shape.head_dim_k];
            turn.apply(k, k, shape.head_dim_k);
        }
    }
}

/// Begins a micro-batch and lets attend(call) do every layer; all outputs, layer after layer, or nothing if there was no room. end() or rollback() is
/// left to the caller.
template <typename Attend>
std::optional<std::vector<float>> outputs_of(AttentionHandler& handler, const ModelShape& model,
                                             const std::vector<TestToken>& tokens, const ScoreRule& rule,
                                             const RopeRule* rope, Attend attend) {
    std::vector<BatchToken> batch;
    for (const TestToken& token : tokens) batch.push_back({.pos = token.pos, .seq_ids = token.seq_ids});
    if (!handler.begin(batch)) return std::nullopt;
    std::vector<float> all;
    for (const LayerShape& shape : model.layers) {
        Rows rows = rows_of(shape, tokens);
        if (rope != nullptr) rotate(*rope, shape, tokens, rows);
        AttentionCall call;
        call.rope = rope;
        call.layer = shape.layer;
        call.n_tokens = tokens.size();
        call.q = {rows.q.data(), shape.n_heads * shape.head_dim_k, shape.head_dim_k};
        call.k = {rows.k.data(), shape.n_kv_heads * shape.head_dim_k, shape.head_dim_k};
        call.v = {rows.v.data(), shape.n_kv_heads * shape.head_dim_v, shape.head_dim_v};
        call.out = {rows.out.data(), shape.n_heads * shape.head_dim_v, shape.head_dim_v};
        call.rule = rule;
        if (shape.sliding_window > 0) call.rule.sliding_window = shape.sliding_window;
        attend(call);
        all.insert(all.end(), rows.out.begin(), rows.out.end());
    }
    return all;
}

/// Runs one micro-batch through every layer; returns all outputs, layer after layer. Empty if there was no room.
inline std::vector<float> step(AttentionHandler& handler, const ModelShape& model, const std::vector<TestToken>& tokens,
                               const ScoreRule& rule = {.scale = 0.2F}, size_t n_threads = 1,
                               const RopeRule* rope = nullptr) {
    std::optional<std::vector<float>> all = outputs_of(
        handler, model, tokens, rule, rope, [&](const AttentionCall& call) { run_team(handler, call, n_threads); });
    if (!all) return {};
    handler.end();
    return std::move(*all);
}

inline std::vector<TestToken> text(int32_t seq, int32_t first, int32_t n, uint32_t salt = 0) {
    std::vector<TestToken> tokens;
    for (int32_t i = 0; i < n; ++i)
        tokens.push_back({first + i, {seq}, static_cast<uint32_t>(first + i) + salt * 100003U});
    return tokens;
}

/// Every way to mask and bend scores, for six heads: softcap, ALiBi, learned sinks, sliding and chunked windows, and all at once.
inline std::vector<ScoreRule> bent_rules() {
    static const std::vector<float> sink_logits = {0.5F, -1.0F, 2.0F, 0.0F, 1.0F, -3.0F};
    std::vector<ScoreRule> rules(6, ScoreRule{.scale = 0.2F});
    rules[0].softcap = 5.0F;
    rules[1].alibi_max_bias = 8.0F;
    rules[2].sink_logits = sink_logits.data();
    rules[3].sliding_window = 40;
    rules[4].sliding_window = 100;
    rules[4].chunked_window = true;
    rules[5] = {.scale = 0.3F,
                .softcap = 3.0F,
                .alibi_max_bias = 4.0F,
                .sliding_window = 77,
                .sink_logits = sink_logits.data()};
    return rules;
}

/// Which tokens sequences have, as cells of llama.cpp's unified cache: the plain model of CacheUse::n_tokens.
class TokenLedger {
  public:
    explicit TokenLedger(size_t n_seq_max) : sequences_(n_seq_max) {}
    void add(const std::vector<TestToken>& tokens) {
        for (const TestToken& token : tokens) {
            ++newest_;
            for (const int32_t s : token.seq_ids) at(s)[token.pos] = newest_;
        }
    }
    void seq_rm(int32_t seq, int32_t p0, int32_t p1) {
        std::erase_if(at(seq), [&](const auto& token) { return inside(token.first, p0, p1); });
    }
    void seq_cp(int32_t src, int32_t dst, int32_t p0, int32_t p1) {
        if (src == dst) return;
        for (const auto& [pos, token] : at(src)) {
            if (inside(pos, p0, p1)) at(dst)[pos] = token;
        }
    }
    void seq_add(int32_t seq, int32_t p0, int32_t p1, int32_t delta) {
        std::map<int32_t, int64_t> moved;
        for (const auto& [pos, token] : at(seq)) moved[inside(pos, p0, p1) ? pos + delta : pos] = token;
        at(seq) = std::move(moved);
    }
    void seq_keep(int32_t seq) {
        for (size_t s = 0; s < sequences_.size(); ++s) {
            if (s != static_cast<size_t>(seq)) sequences_[s].clear();
        }
    }
    /// What was saved of `src` becomes dst's: as many tokens, its own.
    void load(int32_t src, int32_t dst) {
        std::map<int32_t, int64_t> loaded = at(src);
        for (auto& [pos, token] : loaded) token = ++newest_;
        at(dst) = std::move(loaded);
    }
    void clear() {
        for (auto& sequence : sequences_) sequence.clear();
    }
    [[nodiscard]] size_t size() const {
        std::set<int64_t> all;
        for (const auto& sequence : sequences_) {
            for (const auto& [pos, token] : sequence) all.insert(token);
        }
        return all.size();
    }

  private:
    static bool inside(int32_t pos, int32_t p0, int32_t p1) { return pos >= p0 && (p1 < 0 || pos < p1); }
    [[nodiscard]] std::map<int32_t, int64_t>& at(int32_t seq) { return sequences_[static_cast<size_t>(seq)]; }
    std::vector<std::map<int32_t, int64_t>> sequences_;  ///< position -> token
    int64_t newest_ = 0;
};

inline double max_difference(const std::vector<float>& a, const std::vector<float>& b) {
    EXPECT_EQ(a.size(), b.size());
    double worst = 0;
    for (size_t i = 0; i < a.size() && i < b.size(); ++i) {
        const double difference = std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
        if (!(difference <= worst)) worst = difference;  // NaN counts
    }
    return worst;
}

// f32 sums of at most 512 terms of size <= 4 with weights that sum to 1: 512 * 2^-24 * 4, and the same once more for the
// scores, whose error of 64 terms * 2^-24 * |q||k| (<= 200) enters as a relative error of p.
inline constexpr double kTolerance = 4e-4;
// Wide integers round q and p to 15 bits, with errors of at most e = 1/32638 of the largest (uniform: a standard deviation of .58 e). A score
// of 32 channels moves by .2 * 5 * 1.5 (scale, largest q, size of x) * sqrt(32) * .58 e = 1.5e-4 sd, thus every p by as much in
// proportion, thus the output by at most 1.5e-4 |v|; and rounding p * scale of 64 tokens moves it by sqrt(64) * .58 e * range / 2 <= 4e-4 sd
// (the codec's range of 6 sd of v). Together 5e-4 sd where one token holds all the weight; six of them, for the largest of 1e5 outputs.
inline constexpr double kWideTolerance = 3e-3;
// With q in bytes e = 1/254 of the largest: a score moves by .0195 sd, and the output by as much of |v|, again six times that.
inline constexpr double kIntegerTolerance = 0.12;

inline constexpr std::array kModes = {AttentionMode::kExact, AttentionMode::kWideIntegers, AttentionMode::kIntegers};

inline double tolerance_of(AttentionMode mode) {
    return mode == AttentionMode::kExact          ? kTolerance
           : mode == AttentionMode::kWideIntegers ? kWideTolerance
                                                  : kIntegerTolerance;
}
inline double tolerance() { return tolerance_of(attention_mode()); }

class ForcedMode {
  public:
    explicit ForcedMode(AttentionMode mode) : before_(attention_mode()) { force_attention_mode(mode); }
    ~ForcedMode() { force_attention_mode(before_); }
    ForcedMode(const ForcedMode&) = delete;
    ForcedMode& operator=(const ForcedMode&) = delete;

  private:
    AttentionMode before_;
};

}  // namespace kvaq
