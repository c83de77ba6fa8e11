#include "kvaq/quant/transform.h"

#include <gtest/gtest.h>

#include "kvaq/base/error.h"
#include "kvaq/quant/transform_samples.h"

namespace kvaq {
namespace {

TEST(Transform, BackwardUndoesForwardWhateverTheRoundingOfItsMatrix) {
    for (const Side side : {Side::kKey, Side::kValue}) {
        for (const size_t dim : {8U, 40U, 64U, 256U}) {
            const auto fit = sample_fit(side, dim, 5);
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

TEST(Transform, BytesOfAFitGiveItBackAndEveryCutIsRefused) {
    const auto fit = sample_fit(Side::kValue, 32, 9);
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
