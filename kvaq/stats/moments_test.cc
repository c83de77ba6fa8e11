#include "kvaq/stats/moments.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace kvaq {
namespace {

struct Sums {
    std::vector<double> mean, second;
};
Sums in_double(const std::vector<float>& x, size_t n, size_t dim, size_t stride) {
    Sums out{std::vector<double>(dim), std::vector<double>(dim * dim)};
    for (size_t t = 0; t < n; ++t) {
        for (size_t i = 0; i < dim; ++i) {
            const double a = static_cast<double>(x[t * stride + i]);
            out.mean[i] += a / static_cast<double>(n);
            for (size_t j = 0; j < dim; ++j)
                out.second[i * dim + j] += a * static_cast<double>(x[t * stride + j]) / static_cast<double>(n);
        }
    }
    return out;
}

TEST(Moments, AgreesWithSumsInDouble) {
    std::mt19937 random(11);
    std::normal_distribution<float> normal(0.3F, 2.0F);
    for (const size_t dim : {size_t{1}, size_t{8}, size_t{40}, size_t{64}, size_t{96}, size_t{256}}) {
        for (const size_t n : {size_t{1}, size_t{3}, size_t{64}, size_t{65}, size_t{500}}) {
            const size_t stride = dim + 5;
            std::vector<float> x(n * stride);
            for (float& value : x) value = normal(random);
            Moments moments(dim);
            moments.add(x.data(), n, stride);
            const Sums wanted = in_double(x, n, dim, stride);
            const std::vector<double> second = moments.second_moment();
            const std::vector<double> mean = moments.mean();
            EXPECT_EQ(moments.count(), n);
            // A float sum of at most 64 products: 64 * 2^-24 of the sum of magnitudes, here under 20 per term.
            for (size_t i = 0; i < dim; ++i) ASSERT_NEAR(mean[i], wanted.mean[i], 1e-9);
            for (size_t i = 0; i < dim * dim; ++i)
                ASSERT_NEAR(second[i], wanted.second[i], 64 * 20 * 6e-8) << dim << " " << n;
            for (size_t i = 0; i < dim; ++i) {
                for (size_t j = 0; j < i; ++j) ASSERT_EQ(second[i * dim + j], second[j * dim + i]);
            }
        }
    }
}

TEST(Moments, TakesFloat16AndAnySplitIntoCalls) {
    std::mt19937 random(12);
    std::normal_distribution<float> normal;
    const size_t dim = 24;
    const size_t n = 300;
    std::vector<float16> halves(n * dim);
    std::vector<float> floats(n * dim);
    for (size_t i = 0; i < n * dim; ++i) {
        halves[i] = static_cast<float16>(normal(random));
        floats[i] = static_cast<float>(halves[i]);
    }
    Moments all(dim);
    all.add(floats.data(), n, dim);
    Moments pieces(dim);
    for (size_t first = 0; first < n; first += 7)
        pieces.add(halves.data() + first * dim, std::min<size_t>(7, n - first), dim);
    EXPECT_EQ(pieces.count(), n);
    for (size_t i = 0; i < dim * dim; ++i) ASSERT_NEAR(all.second_moment()[i], pieces.second_moment()[i], 1e-5);
}

TEST(Moments, OfNothingAreZero) {
    const Moments moments(4);
    EXPECT_EQ(moments.mean(), std::vector<double>(4, 0.0));
    EXPECT_EQ(moments.second_moment(), std::vector<double>(16, 0.0));
}

TEST(Moments, KeepsDigitsOverManyTokens) {
    // 2^20 equal vectors: sums in float alone would stop growing near 2^24.
    Moments moments(8);
    const std::vector<float> x(64 * 8, 5.0F);
    for (int i = 0; i < (1 << 14); ++i) moments.add(x.data(), 64, 8);
    EXPECT_DOUBLE_EQ(moments.second_moment()[9], 25.0);
    EXPECT_DOUBLE_EQ(moments.mean()[3], 5.0);
}

}  // namespace
}  // namespace kvaq
