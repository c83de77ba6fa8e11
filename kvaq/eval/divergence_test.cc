#include "kvaq/eval/divergence.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

namespace kvaq {
namespace {

TEST(Divergence, LogSoftmaxAndKlEqualHandComputedValues) {
    // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): KL = 1/2 ln 2 - 1/4 ln 2 = ln 2 / 4
    const std::vector<float> p = {std::log(2.0F), 0.0F, 0.0F};
    const std::vector<float> q = {5.0F, 5.0F + std::log(2.0F), 5.0F};
    std::vector<float> log_p(3), log_q(3);
    EXPECT_EQ(log_softmax(p, log_p), 0U);
    EXPECT_EQ(log_softmax(q, log_q), 1U);
    EXPECT_NEAR(log_p[0], std::log(0.5), 1e-6);
    EXPECT_NEAR(log_q[2], std::log(0.25), 1e-6);
    EXPECT_NEAR(kl_divergence(log_p, log_q), std::log(2.0) / 4, 1e-6);
    EXPECT_EQ(kl_divergence(log_p, log_p), 0.0);
}

TEST(Divergence, FastSumsEqualDoublePrecision) {
    std::mt19937 random(3);
    for (const size_t n : {1UL, 15UL, 16UL, 1023UL, 1024UL, 1025UL, 49152UL}) {
        std::normal_distribution<float> normal(-3.0F, 9.0F);
        std::vector<float> a(n), b(n), log_p(n), log_q(n);
        for (size_t i = 0; i < n; ++i) {
            a[i] = normal(random);
            b[i] = a[i] + 0.02F * normal(random);
        }
        if (n > 20) a[7] = b[7] = -std::numeric_limits<float>::infinity();  // a token that a model rules out
        const auto log_sum = [](const std::vector<float>& x) {
            const double top = *std::max_element(x.begin(), x.end());
            double sum = 0;
            for (const float value : x) sum += std::exp(static_cast<double>(value) - top);
            return top + std::log(sum);
        };
        const double sum_a = log_sum(a);
        const double sum_b = log_sum(b);
        double expected = 0;
        for (size_t i = 0; i < n; ++i) {
            if (std::isinf(a[i])) continue;
            const double lp = static_cast<double>(a[i]) - sum_a;
            expected += std::exp(lp) * (lp - (static_cast<double>(b[i]) - sum_b));
        }
        const SoftmaxNorm norm = softmax_norm(b);
        EXPECT_EQ(norm.arg_max, static_cast<size_t>(std::max_element(b.begin(), b.end()) - b.begin()));
        EXPECT_NEAR(static_cast<double>(norm.top) + static_cast<double>(norm.log_sum), sum_b,
                    2e-6 + 1e-6 * std::abs(sum_b));
        log_softmax(a, log_p);
        EXPECT_EQ(log_softmax(b, log_q), norm.arg_max);
        EXPECT_EQ(log_q[n / 2], norm.log_of(b[n / 2]));
        const double kl = kl_divergence(log_p, b, norm);
        EXPECT_NEAR(kl, expected, 3e-6 + 1e-5 * expected) << n;  // logarithms are kept in f32
        EXPECT_EQ(kl_divergence(log_p, log_q), kl) << n;
    }
}

TEST(Divergence, WhatIsNotANumberIsNotHidden) {
    constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
    for (const size_t at : {0UL, 5UL, 999UL}) {
        std::vector<float> logits(1000, -100.0F);  // one likely token
        logits[3] = 2.0F;
        std::vector<float> log_p(1000);
        log_softmax(logits, log_p);
        logits[at] = kNan;
        const SoftmaxNorm norm = softmax_norm(logits);
        EXPECT_EQ(norm.arg_max, 3U);
        EXPECT_TRUE(std::isnan(norm.log_of(logits[3])));
        EXPECT_TRUE(std::isnan(kl_divergence(log_p, logits, norm)));
    }
    const std::vector<float> none(20, kNan);
    EXPECT_EQ(softmax_norm(none).arg_max, 0U);
    EXPECT_TRUE(std::isnan(softmax_norm(none).log_sum));
}

TEST(Divergence, SummaryEqualsHandComputedValues) {
    // nll 1, 2, 3, 2: mean 2, PPL e^2; variance of the mean ((1+0+1+0)/4)/3 = 1/6
    const std::vector<std::vector<TokenScore>> chunks = {{{1, 0.1, true}, {2, 0.2, false}},
                                                         {{3, 0.3, true}, {2, 0.0, true}}};
    const ScoreSummary s = summarize(chunks);
    EXPECT_EQ(s.n_tokens, 4U);
    EXPECT_NEAR(s.perplexity.value, std::exp(2.0), 1e-9);
    EXPECT_NEAR(s.perplexity.error, std::exp(2.0) * std::sqrt(1.0 / 6), 1e-9);
    EXPECT_NEAR(s.mean_kl.value, 0.15, 1e-12);
    EXPECT_NEAR(s.median_kl, 0.15, 1e-12);
    EXPECT_NEAR(s.kl_99, 0.2 + 0.97 * 0.1, 1e-12);
    EXPECT_EQ(s.max_kl, 0.3);
    EXPECT_EQ(s.same_top.value, 0.75);
    EXPECT_NEAR(s.same_top.error, std::sqrt(0.75 * 0.25 / 4), 1e-12);
    EXPECT_LT(s.mean_kl.error, 1e-9);  // both chunks have mean 0.15: resampling chunks changes nothing
}

TEST(Divergence, BootstrapErrorIsThatOfTheMean) {
    std::vector<double> values, weights;
    for (int i = 0; i < 50; ++i) {
        values.push_back(i % 2);
        weights.push_back(1);
    }
    EXPECT_NEAR(bootstrap_error(values, weights), 0.5 / std::sqrt(49.0), 0.003);
    // Few chunks: s / sqrt(n), s^2 with n - 1.
    EXPECT_NEAR(bootstrap_error(std::vector<double>{1, 3}, std::vector<double>{1, 1}), 1.0, 0.05);
    EXPECT_NEAR(bootstrap_error(std::vector<double>{0, 0, 0, 4}, std::vector<double>{1, 1, 1, 1}), 1.0, 0.05);
}

}  // namespace
}  // namespace kvaq
