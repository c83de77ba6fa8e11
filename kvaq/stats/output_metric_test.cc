#include "kvaq/stats/output_metric.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace kvaq {
namespace {

constexpr size_t kGroup = 2, kHeads = 6, kFirstHead = 2, kDimK = 8, kDimV = 6, kTokens = 40, kEmbd = 10;

struct Head {
    std::vector<float16> k, v;
    std::vector<float> q;                     ///< [token, heads, dk]
    std::vector<std::vector<double>> output;  ///< [group][embd, dv] W_O
    ScoreRule rule;

    explicit Head(unsigned seed) : k(kTokens * kDimK), v(kTokens * kDimV), q(kTokens * kHeads * kDimK) {
        std::mt19937 random(seed);
        std::normal_distribution<float> normal;
        for (float16& x : k) x = static_cast<float16>(normal(random));
        for (float16& x : v) x = static_cast<float16>(normal(random) + 0.3F);
        for (float& x : q) x = 2 * normal(random);
        for (size_t g = 0; g < kGroup; ++g) {
            output.emplace_back(kEmbd * kDimV);
            for (double& x : output.back()) x = static_cast<double>(normal(random));
        }
        rule.scale = 0.4F;
    }

    [[nodiscard]] std::vector<std::vector<double>> grams() const {
        std::vector<std::vector<double>> out;
        for (const std::vector<double>& w : output) {
            std::vector<double> gram(kDimV * kDimV, 0.0);
            for (size_t i = 0; i < kDimV; ++i) {
                for (size_t j = 0; j < kDimV; ++j) {
                    for (size_t e = 0; e < kEmbd; ++e) gram[i * kDimV + j] += w[e * kDimV + i] * w[e * kDimV + j];
                }
            }
            out.push_back(std::move(gram));
        }
        return out;
    }

    /// Output of the group at one query, in double.
    [[nodiscard]] std::vector<double> attend(const std::vector<double>& keys, const std::vector<double>& values,
                                             size_t pos, size_t g) const {
        std::vector<double> score(pos + 1);
        double sum = rule.sink_logits != nullptr ? std::exp(static_cast<double>(rule.sink_logits[kFirstHead + g])) : 0;
        for (size_t t = 0; t <= pos; ++t) {
            double s = 0;
            for (size_t c = 0; c < kDimK; ++c)
                s += static_cast<double>(q[(pos * kHeads + kFirstHead + g) * kDimK + c]) * keys[t * kDimK + c];
            s *= static_cast<double>(rule.scale);
            const auto cap = static_cast<double>(rule.softcap);
            if (cap > 0) s = cap * std::tanh(s / cap);
            const bool seen = rule.sliding_window == 0 || pos - t < static_cast<size_t>(rule.sliding_window);
            score[t] = seen ? std::exp(s) : 0.0;
            sum += score[t];
        }
        std::vector<double> out(kEmbd, 0.0);
        for (size_t t = 0; t <= pos; ++t) {
            for (size_t e = 0; e < kEmbd; ++e) {
                for (size_t c = 0; c < kDimV; ++c)
                    out[e] += score[t] / sum * output[g][e * kDimV + c] * values[t * kDimV + c];
            }
        }
        return out;
    }
};

double quadratic(const std::vector<double>& m, const std::vector<double>& e_moment) {
    double sum = 0;
    for (size_t i = 0; i < m.size(); ++i) sum += m[i] * e_moment[i];
    return sum;
}

/// The metric times the errors' second moment must be the power that independent errors have at the layer's output.
void check(const Head& head, unsigned seed) {
    const std::vector<size_t> tokens = {7, 20, 39};
    OutputMetric metric(kDimK, kDimV, head.grams());
    metric.add(
        {.keys = head.k,
         .values = head.v,
         .queries = {.data = head.q.data() + kFirstHead * kDimK, .token_stride = kHeads * kDimK, .head_stride = kDimK},
         .query_tokens = tokens,
         .query_positions = tokens,
         .first_head = kFirstHead,
         .n_heads = kHeads,
         .rule = head.rule});
    ASSERT_EQ(metric.n_queries(), tokens.size());
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    const std::vector<double> k(head.k.begin(), head.k.end());
    const std::vector<double> v(head.v.begin(), head.v.end());
    for (const bool key : {true, false}) {
        const size_t dim = key ? kDimK : kDimV;
        std::vector<double> size(dim);  // unequal channels
        for (size_t c = 0; c < dim; ++c) size[c] = 1e-3 * static_cast<double>(1 + c);
        std::vector<double> moment(dim * dim, 0.0);
        for (size_t c = 0; c < dim; ++c) moment[c * dim + c] = size[c] * size[c];
        double power = 0;
        constexpr int kDraws = 3000;
        for (int draw = 0; draw < kDraws; ++draw) {
            std::vector<double> k2 = k;
            std::vector<double> v2 = v;
            for (size_t i = 0; i < (key ? k2 : v2).size(); ++i) (key ? k2 : v2)[i] += size[i % dim] * normal(random);
            for (const size_t pos : tokens) {
                for (size_t g = 0; g < kGroup; ++g) {
                    const std::vector<double> a = head.attend(k, v, pos, g);
                    const std::vector<double> b = head.attend(k2, v2, pos, g);
                    for (size_t e = 0; e < kEmbd; ++e) power += (a[e] - b[e]) * (a[e] - b[e]);
                }
            }
        }
        power /= kDraws * static_cast<double>(tokens.size());
        EXPECT_NEAR(quadratic(key ? metric.keys() : metric.values(), moment) / power, 1.0, 0.06) << (key ? "K" : "V");
    }
}

TEST(OutputMetric, IsThePowerOfTheErrorAtTheLayersOutput) {
    Head head(1);
    check(head, 2);
    head.rule.sliding_window = 9;
    check(head, 3);
}

TEST(OutputMetric, KnowsSoftcapsAndLearnedSinks) {
    Head head(4);
    head.rule.softcap = 1.5F;
    const std::vector<float> sinks(kHeads, 1.0F);
    head.rule.sink_logits = sinks.data();
    check(head, 5);
}

TEST(OutputMetric, WithoutWeightsTheOutputIsTheHeadsOwn) {
    const Head head(6);
    std::vector<std::vector<double>> identity = head.grams();
    for (std::vector<double>& gram : identity) {
        gram.assign(kDimV * kDimV, 0.0);
        for (size_t i = 0; i < kDimV; ++i) gram[i * kDimV + i] = 1;
    }
    const std::vector<size_t> tokens = {5, 30};
    OutputMetric given(kDimK, kDimV, identity);
    OutputMetric none(kDimK, kDimV, std::vector<std::vector<double>>(kGroup));
    for (OutputMetric* metric : {&given, &none}) {
        metric->add({.keys = head.k,
                     .values = head.v,
                     .queries = {.data = head.q.data(), .token_stride = kHeads * kDimK, .head_stride = kDimK},
                     .query_tokens = tokens,
                     .query_positions = tokens,
                     .first_head = 0,
                     .n_heads = kHeads,
                     .rule = head.rule});
    }
    for (size_t i = 0; i < kDimK * kDimK; ++i) EXPECT_NEAR(given.keys()[i], none.keys()[i], 1e-4);
    for (size_t i = 0; i < kDimV * kDimV; ++i) EXPECT_NEAR(given.values()[i], none.values()[i], 1e-6);
}

}  // namespace
}  // namespace kvaq
