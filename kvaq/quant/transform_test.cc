#include "kvaq/quant/transform.h"

#include <gtest/gtest.h>

#include <bit>

#include "kvaq/base/error.h"
#include "kvaq/quant/transform_samples.h"

namespace kvaq {
namespace {

constexpr std::array kBases = {TransformBasis::kMatrix, TransformBasis::kHadamard, TransformBasis::kSorted};

TEST(Transform, BackwardUndoesForwardWhateverTheRoundingOfItsMatrix) {
    for (const Side side : {Side::kKey, Side::kValue}) {
        for (const size_t dim : {8U, 40U, 64U, 256U}) {
            for (const TransformBasis basis : kBases) {
                const auto fit = with_basis(*sample_fit(side, dim, 5), basis);
                std::vector<double> x(dim);
                for (size_t i = 0; i < dim; ++i) x[i] = static_cast<double>(i % 11) - 4;
                std::vector<double> y = x;
                transform_forward(*fit, y.data());
                EXPECT_GT(std::fabs(y[0] - x[0]), 1e-3);
                transform_backward(*fit, y.data());
                double error = 0;
                double energy = 0;
                for (size_t i = 0; i < dim; ++i) {
                    error += (y[i] - x[i]) * (y[i] - x[i]);
                    energy += x[i] * x[i];
                }
                EXPECT_LT(error, 1e-18 * energy) << dim;
            }
        }
    }
}

TEST(Transform, BytesOfAFitGiveItBackAndEveryCutIsRefused) {
    for (const TransformBasis basis : kBases) {
        const auto fit = with_basis(*sample_fit(Side::kValue, 32, 9), basis);
        const std::vector<std::byte> bytes = transform_fit_bytes(*fit);
        EXPECT_EQ(parse_transform_fit(bytes), *fit);
        for (size_t n = 0; n < bytes.size(); n += 7)
            EXPECT_THROW((void)parse_transform_fit(std::span(bytes).first(n)), Error) << n;
        std::vector<std::byte> longer = bytes;
        longer.push_back(std::byte{0});
        EXPECT_THROW((void)parse_transform_fit(longer), Error);
        std::vector<std::byte> unsorted = bytes;
        unsorted.back() = std::byte{0x80};  // the last level becomes -128
        EXPECT_THROW((void)parse_transform_fit(unsorted), Error);
    }
}

TEST(Transform, SortedBasesMixTheChannelsOfAUnitInTheirOrder) {
    const auto fit = with_basis(*sample_fit(Side::kValue, 40, 9), TransformBasis::kSorted);  // units of 16, 16 and 8
    std::vector<float> x(40);
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * i % 17) - 6;
    std::vector<float> z(40);
    to_codec_channels(*fit, x.data(), z.data());
    for (size_t i = 0; i < 40; ++i) {
        const size_t first = i / 16 * 16;
        const size_t n = std::min<size_t>(16, 40 - first);
        double want = 0;
        for (size_t k = 0; k < n; ++k) {
            const double sign = std::popcount((i - first) & k) % 2 == 1 ? -1 : 1;
            want += sign * static_cast<double>(x[fit->order[first + k]]) / std::sqrt(static_cast<double>(n));
        }
        EXPECT_NEAR(z[i], want, 1e-5) << i;
    }
    std::vector<float> back(40);
    to_model_channels(*fit, z.data(), back.data());
    for (size_t i = 0; i < 40; ++i) EXPECT_NEAR(back[i], x[i], 1e-5) << i;
    std::vector<double> exact(x.begin(), x.end());
    transform_forward(*fit, exact.data());
    for (size_t i = 0; i < 40; ++i) EXPECT_NEAR(exact[i], static_cast<double>(z[i]), 1e-5) << i;
    TransformFit twice = *fit;
    twice.order[0] = twice.order[1];
    EXPECT_THROW((void)parse_transform_fit(transform_fit_bytes(twice)), Error);
}

TEST(Transform, RefusesBitsThatTheFormatDoesNotHold) {
    const auto fit = sample_fit(Side::kKey, 32, 9);
    EXPECT_NO_THROW((void)make_transform_codec(fit, {8, 4, 4, 0}));
    EXPECT_THROW((void)make_transform_codec(fit, {8, 4, 4}), Error);
    EXPECT_THROW((void)make_transform_codec(fit, {7, 4, 4, 0}), Error);
    EXPECT_THROW((void)make_transform_codec(fit, {4, 5, 4, 0}), Error);
    EXPECT_DOUBLE_EQ(make_transform_codec(fit, {8, 4, 4, 0})->mean_bits(), 4.0);
    EXPECT_NE(make_transform_codec(fit, {8, 4, 4, 0})->digest, make_transform_codec(fit, {8, 4, 3, 0})->digest);
}

TEST(Transform, GainsAreSixteenthsOfAnOctave) {
    EXPECT_FLOAT_EQ(transform_gain(128), 1.0F);
    EXPECT_FLOAT_EQ(transform_gain(144), 2.0F);
    EXPECT_FLOAT_EQ(transform_gain(0), 1.0F / 256);
}

}  // namespace
}  // namespace kvaq
