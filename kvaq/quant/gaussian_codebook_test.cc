#include "kvaq/quant/gaussian_codebook.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace kvaq {
namespace {

TEST(GaussianCodebook, HasTheLevelsOfMaxsTable) {
    // J. Max, Quantizing for minimum distortion, 1960, table I: output levels for 2, 4, 8 and 16 levels.
    const std::vector<std::vector<double>> upper = {{0.7980},
                                                    {0.4528, 1.510},
                                                    {0.2451, 0.7560, 1.344, 2.152},
                                                    {0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733}};
    for (unsigned bits = 1; bits <= 4; ++bits) {
        const std::vector<int8_t> levels = gaussian_codebook(bits);
        ASSERT_EQ(levels.size(), size_t{1} << bits);
        for (size_t k = 0; k < levels.size() / 2; ++k) {
            EXPECT_EQ(levels[levels.size() / 2 + k], std::lround(upper[bits - 1][k] * 32)) << bits << " " << k;
            EXPECT_EQ(levels[levels.size() / 2 - 1 - k], -levels[levels.size() / 2 + k]);
        }
    }
    for (unsigned bits = 5; bits <= 6; ++bits) {
        const std::vector<int8_t> levels = gaussian_codebook(bits);
        EXPECT_TRUE(std::is_sorted(levels.begin(), levels.end()));
        EXPECT_LT(levels.back(), 127);
    }
}

TEST(GaussianCodebook, MakesACodecForEveryHeadSize) {
    for (const size_t dim : {64U, 72U, 128U, 256U}) {
        for (const Side side : {Side::kKey, Side::kValue}) {
            const size_t n_units = (dim + transform_unit(side) - 1) / transform_unit(side);
            EXPECT_NEAR(make_transform_codec(gaussian_fit(side, dim), std::vector<uint8_t>(n_units, 3))->mean_bits(),
                        3.0, 1e-12);
        }
    }
}

}  // namespace
}  // namespace kvaq
