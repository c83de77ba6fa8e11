#include "kvaq/eval/paired_stats.h"

#include <gtest/gtest.h>

#include <cmath>

namespace kvaq {
namespace {

std::vector<Sample> one_each(const std::vector<double>& values) {
    std::vector<Sample> samples;
    for (size_t i = 0; i < values.size(); ++i) samples.push_back({.item = i, .weight = 1, .value = values[i]});
    return samples;
}

TEST(PairedStats, MeanOfOneSampleAnItemHasTheUsualStandardError) {
    // 1, 2, 3, 6: mean 3, s^2 = (4 + 1 + 0 + 9) / 3, error sqrt(s^2 / 4)
    const Estimate mean = clustered_mean(one_each({1, 2, 3, 6}));
    EXPECT_DOUBLE_EQ(mean.value, 3);
    EXPECT_NEAR(mean.error, std::sqrt(14.0 / 3 / 4), 1e-12);
}

TEST(PairedStats, ItemsCountNotTheirSamples) {
    // Two items of two equal samples each: as uncertain as two samples.
    const std::vector<Sample> twice = {{0, 1, 1}, {0, 1, 1}, {1, 1, 0}, {1, 1, 0}};
    EXPECT_NEAR(clustered_mean(twice).error, clustered_mean(one_each({1, 0})).error, 1e-12);
    // One item only: its samples are all there is.
    const std::vector<Sample> single = {{0, 1, 1}, {0, 1, 0}};
    EXPECT_NEAR(clustered_mean(single).error, clustered_mean(one_each({1, 0})).error, 1e-12);
    EXPECT_EQ(clustered_mean(one_each({5})).error, 0);
}

TEST(PairedStats, WeightsAreTokens) {
    // Item 0: 3 tokens of mean 1; item 1: 1 token of 5. m = 8 / 4; residuals 3 - 6, 5 - 2; 2/1 * 18 / 16
    const std::vector<Sample> samples = {{0, 3, 1}, {1, 1, 5}};
    const Estimate mean = clustered_mean(samples);
    EXPECT_DOUBLE_EQ(mean.value, 2);
    EXPECT_NEAR(mean.error, std::sqrt(2.0 * 18) / 4, 1e-12);
}

TEST(PairedStats, McNemarIsTheExactBinomialTest) {
    EXPECT_EQ(mcnemar_p(0, 0), 1);
    EXPECT_EQ(mcnemar_p(5, 5), 1);
    EXPECT_NEAR(mcnemar_p(0, 5), 2.0 / 32, 1e-12);
    EXPECT_NEAR(mcnemar_p(8, 2), 2.0 * (1 + 10 + 45) / 1024, 1e-12);
    EXPECT_NEAR(mcnemar_p(8, 2), mcnemar_p(2, 8), 1e-15);
    EXPECT_LT(mcnemar_p(1000, 1300), 1e-6);  // no overflow
}

TEST(PairedStats, SignFlipCountsPatterns) {
    // Totals of +-1 +-2 +-3: |total| >= 6 for 2 of 8 patterns.
    EXPECT_NEAR(sign_flip_p(std::vector<double>{1, 2, 3}), 2.0 / 8, 1e-12);
    EXPECT_NEAR(sign_flip_p(std::vector<double>{-1, -2, -3}), 2.0 / 8, 1e-12);
    EXPECT_NEAR(sign_flip_p(std::vector<double>{1, -1}), 1, 1e-12);
    EXPECT_EQ(sign_flip_p(std::vector<double>{0, 0}), 1);
    // Many items: drawn patterns, close to what the normal law gives (z = 1.5: p .134).
    std::vector<double> sums;
    for (int i = 0; i < 100; ++i) sums.push_back(i < 70 ? 1 : -1);
    EXPECT_NEAR(sign_flip_p(std::vector<double>(sums.begin(), sums.end())), 2 * 3.9e-5, 2e-4);
    for (int i = 58; i < 70; ++i) sums[static_cast<size_t>(i)] = -1;  // 58 of 100: exactly .133
    EXPECT_NEAR(sign_flip_p(sums), 0.133, 0.01);
}

TEST(PairedStats, DifferencesOfTheSameItemsAreTighterThanTheirMeans) {
    const std::vector<Sample> reference = one_each({1, 5, 9, 13});
    const std::vector<Sample> row = one_each({1.5, 5.5, 9.5, 13.7});
    const PairedDifference paired = paired_difference(row, reference);
    EXPECT_NEAR(paired.difference.value, 0.55, 1e-12);
    EXPECT_LT(paired.difference.error, 0.06);
    EXPECT_GT(clustered_mean(row).error, 2);
    EXPECT_EQ(paired.test, "sign flip");
    EXPECT_NEAR(paired.p, 2.0 / 16, 1e-12);
}

TEST(PairedStats, RightAndWrongAnswersGetMcNemarUnlessAnItemHasSeveral) {
    const std::vector<Sample> reference = one_each({1, 1, 1, 1, 1, 1, 0});
    const std::vector<Sample> row = one_each({0, 0, 0, 0, 0, 1, 0});
    const PairedDifference paired = paired_difference(row, reference);
    EXPECT_EQ(paired.test, "McNemar");
    EXPECT_EQ(paired.lost, 5U);
    EXPECT_EQ(paired.gained, 0U);
    EXPECT_NEAR(paired.p, 2.0 / 32, 1e-12);
    EXPECT_NEAR(paired.difference.value, -5.0 / 7, 1e-12);
    std::vector<Sample> grouped_row = row;
    std::vector<Sample> grouped_reference = reference;
    grouped_row[1].item = grouped_reference[1].item = 0;
    EXPECT_EQ(paired_difference(grouped_row, grouped_reference).test, "sign flip");
}

}  // namespace
}  // namespace kvaq
