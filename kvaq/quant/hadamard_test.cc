#include "kvaq/quant/hadamard.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

namespace kvaq {
namespace {

std::vector<float> drawn(size_t n) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    std::vector<float> x(n);
    for (float& value : x) value = normal(random);
    return x;
}

/// sum_j H_ij x_j / sqrt(block), H_ij = (-1)^(common bits of i and j).
double entry(const std::vector<float>& x, size_t first, size_t block, size_t i) {
    double sum = 0;
    for (size_t j = 0; j < block; ++j) {
        const double value = x[first + j];
        sum += std::popcount(i & j) % 2 == 0 ? value : -value;
    }
    return sum / std::sqrt(static_cast<double>(block));
}

TEST(Hadamard, IsTheMatrixOfEveryBlockAndItsOwnInverse) {
    for (const size_t n : {1U, 2U, 4U, 6U, 8U, 12U, 16U, 24U, 40U, 64U, 96U, 128U, 256U, 512U}) {
        const size_t block = n & (~n + 1);
        const std::vector<float> x = drawn(n);
        std::vector<float> y = x;
        hadamard_transform(y.data(), n);
        for (size_t i = 0; i < n; ++i) EXPECT_NEAR(y[i], entry(x, i / block * block, block, i % block), 2e-6) << n;
        hadamard_transform(y.data(), n);
        for (size_t i = 0; i < n; ++i) EXPECT_NEAR(y[i], x[i], 2e-6) << n;
    }
}

TEST(Hadamard, UnitsAreTransformedByThemselves) {
    for (const size_t unit : {8U, 16U}) {
        for (const size_t n : {8U, 16U, 24U, 40U, 64U, 72U}) {
            const std::vector<float> x = drawn(n);
            std::vector<float> y = x;
            hadamard_units(y.data(), n, unit);
            std::vector<double> z(x.begin(), x.end());
            hadamard_units(z.data(), n, unit);
            for (size_t first = 0; first < n; first += unit) {
                std::vector<float> alone(x.begin() + static_cast<std::ptrdiff_t>(first),
                                         x.begin() + static_cast<std::ptrdiff_t>(std::min(first + unit, n)));
                hadamard_transform(alone.data(), alone.size());
                for (size_t i = 0; i < alone.size(); ++i) {
                    EXPECT_EQ(y[first + i], alone[i]) << unit << " of " << n;
                    EXPECT_NEAR(z[first + i], alone[i], 2e-6) << unit << " of " << n;
                }
            }
        }
    }
}

TEST(Hadamard, ColumnsHaveTheBitsOfEachAlone) {
    for (const size_t n : {8U, 24U, 64U}) {
        constexpr size_t kColumns = 19, kStride = 21;
        const std::vector<float> x = drawn(n * kStride);
        std::vector<float> y = x;
        hadamard_columns(y.data(), n, kColumns, kStride);
        for (size_t t = 0; t < kStride; ++t) {
            std::vector<float> column(n);
            for (size_t i = 0; i < n; ++i) column[i] = x[i * kStride + t];
            if (t < kColumns) hadamard_transform(column.data(), n);
            for (size_t i = 0; i < n; ++i) EXPECT_EQ(y[i * kStride + t], column[i]) << n << " column " << t;
        }
    }
}

}  // namespace
}  // namespace kvaq
