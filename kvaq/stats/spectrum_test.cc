#include "kvaq/stats/spectrum.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace kvaq {
namespace {

TEST(Spectrum, GivesTheSingularValuesOfAKnownMatrix) {
    // X = 2x2 rows (3, 0), (0, 4), four copies of each: X^T X = diag(36, 64), singular values 8 and 6.
    const std::vector<double> second = {36.0 / 8, 0, 0, 64.0 / 8};
    const std::vector<double> values = singular_values(second, 2, 8);
    ASSERT_EQ(values.size(), 2U);
    EXPECT_NEAR(values[0], 8.0, 1e-12);
    EXPECT_NEAR(values[1], 6.0, 1e-12);
    EXPECT_NEAR(frobenius_norm(second, 2, 8), 10.0, 1e-12);
    EXPECT_NEAR(spectral_norm(second, 2, 8), 8.0, 1e-12);
}

TEST(Spectrum, OfARotatedRankOneMatrixIsOneValue) {
    // 10 rows equal to (1, 2, 2): sigma = 3 * sqrt(10).
    const std::vector<double> second = {1, 2, 2, 2, 4, 4, 2, 4, 4};
    const std::vector<double> values = singular_values(second, 3, 10);
    EXPECT_NEAR(values[0], 3 * std::sqrt(10.0), 1e-12);
    EXPECT_NEAR(values[1], 0.0, 1e-6);
    EXPECT_NEAR(effective_rank(values), 1.0, 1e-9);
}

TEST(Spectrum, EffectiveRankCountsEqualDirections) {
    EXPECT_NEAR(effective_rank(std::vector<double>{2, 2, 2, 0}), 3.0, 1e-12);
    EXPECT_EQ(effective_rank(std::vector<double>{0, 0}), 0.0);
    EXPECT_EQ(singular_values(std::vector<double>(4, 0.0), 2, 0), std::vector<double>(2, 0.0));
}

}  // namespace
}  // namespace kvaq
