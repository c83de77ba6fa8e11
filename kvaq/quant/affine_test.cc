#include "kvaq/quant/affine.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace kvaq {
namespace {

TEST(Affine, MinMaxEqualsHandComputedValues) {
    // 2 bits: L = 4, scale = (3 - (-3)) / 3 = 2, offset = -3; codes (x + 3) / 2 = 0, 1, 1.75, 3
    const std::vector<double> x = {-3, -1, 0.5, 3};
    const AffineParams params = minmax_params(x, CodeBits::k2);
    EXPECT_EQ(params, (AffineParams{.scale = 2, .offset = -3}));
    EXPECT_EQ(affine_code(-3, params, CodeBits::k2), 0U);
    EXPECT_EQ(affine_code(-1, params, CodeBits::k2), 1U);
    EXPECT_EQ(affine_code(0.5, params, CodeBits::k2), 2U);
    EXPECT_EQ(affine_code(3, params, CodeBits::k2), 3U);
    EXPECT_EQ(affine_code(-2, params, CodeBits::k2), 0U);  // 0.5: half to even
    EXPECT_EQ(affine_code(99, params, CodeBits::k2), 3U);
}

TEST(Affine, QuantoEqualsTheRuleOfThePaper) {
    // 4 bits: scale = (7.5 - 0) / 15 = 0.5, shift = -min = 0; q = round(x / 0.5)
    const AffineParams params = quanto_params(std::vector<double>{0, 1.2, 7.5}, CodeBits::k4);
    EXPECT_EQ(params, (AffineParams{.scale = 0.5, .offset = 0}));
    EXPECT_EQ(affine_code(1.2, params, CodeBits::k4), 2U);  // 2.4
}

TEST(Affine, SymmetricEqualsTheRuleOfThePaper) {
    // item 12 at 3 bits: alpha = max|x| / (2^2 - 1) = 6 / 3 = 2, levels -8 .. 6; code = x / 2 + 4
    const AffineParams params = symmetric_params(std::vector<double>{-6, 1.5, 4}, CodeBits::k3);
    EXPECT_EQ(params, (AffineParams{.scale = 2, .offset = -8}));
    EXPECT_EQ(affine_code(-6, params, CodeBits::k3), 1U);
    EXPECT_EQ(affine_code(4, params, CodeBits::k3), 6U);
    EXPECT_EQ(params.offset, symmetric_offset(CodeBits::k3) * params.scale);
    // 1 bit: levels -a, +a with a = mean|x| = 3; ternary: -4, 0, 4
    EXPECT_EQ(symmetric_params(std::vector<double>{-4, 2, 3}, CodeBits::k1), (AffineParams{.scale = 6, .offset = -3}));
    EXPECT_EQ(symmetric_params(std::vector<double>{-4, 2, 3}, CodeBits::kTernary),
              (AffineParams{.scale = 4, .offset = -4}));
}

TEST(Affine, HqqEqualsAHandComputedRound) {
    // 1 bit, x = (0, 0.2, 1): max_v = 1, s = 1 / (1 - 0) = 1, z = 0; q = round(x) = 0, 0, 1; r = 0, 0.2, 0.
    // |r|^(p-1) / beta = 0.2^-0.3 / 10 = 0.1620657; W_e = 0, 0.0379343, 0.
    // z = mean(q - (x - W_e)) = mean(0, -0.1620657, 0) = -0.0540219.
    // Round 2: q = round(x + z) = round(-0.054), round(0.146), round(0.946) = 0, 0, 1; x^ = q - z = 0.054, 0.054, 1.054;
    // r = -0.0540219, 0.1459781, -0.0540219: mean|r| = 0.0846740 > 0.2 / 3 = 0.0666667, so it stops, keeping this round's z:
    // |r|^-0.3 / 10 = 0.2400 and 0.1781 exceed |r|: W_e = 0, z = mean(q - x) = -0.0666667.
    const std::vector<double> x = {0, 0.2, 1};
    std::vector<AffineParams> params(1);
    std::vector<uint32_t> codes(3);
    hqq_quantize(x, 3, CodeBits::k1, params, codes);
    EXPECT_EQ(codes, (std::vector<uint32_t>{0, 0, 1}));
    EXPECT_NEAR(params[0].scale, 1.0, 1e-12);
    EXPECT_NEAR(params[0].offset, 0.2 / 3, 1e-9);
}

TEST(Affine, ConstantGroupsAreExact) {
    EXPECT_EQ(minmax_params(std::vector<double>{2.5, 2.5}, CodeBits::k4), (AffineParams{.scale = 0, .offset = 2.5}));
    EXPECT_EQ(affine_code(2.5, {.scale = 0, .offset = 2.5}, CodeBits::k4), 0U);
}

}  // namespace
}  // namespace kvaq
