#include "kvaq/stats/transform_fit.h"

#include <gtest/gtest.h>

#include <random>

#include "kvaq/cache/tile.h"
#include "kvaq/plan/damage.h"
#include "kvaq/stats/stats_samples.h"

namespace kvaq {
namespace {

TEST(TransformFit, BeatsTheRotatedAffineCodecOfTheSameBytes) {
    for (const size_t dim : {64U, 72U}) {
        const HeadStats head = correlated_head(dim, 3);
        for (const Side side : {Side::kKey, Side::kValue}) {
            const FittedTransform fitted = fit_transform(head, side, kSampleTiles);
            for (const CodeBits bits : {CodeBits::k2, CodeBits::k3, CodeBits::k4}) {
                const CodecSpec affine{.bits = bits, .group = 64, .basis = Basis::kHadamard};
                const size_t bytes = packed_bytes(affine, side, dim, 64);
                CodecSpec best;
                double predicted = 0;
                for (const TransformChoice& rung : transform_ladder(fitted)) {
                    CodecSpec codec;
                    codec.transform = fitted_codec(fitted, rung.unit_bits, TransformCodes::kCodebook);
                    if (packed_bytes(codec, side, dim, 64) > bytes) break;
                    best = codec;
                    predicted = rung.cost;
                }
                ASSERT_NE(best.transform, nullptr);
                const double measured = codec_noise(head, side, best, kSampleTiles);
                EXPECT_LT(measured, (side == Side::kKey ? 0.5 : 0.9) * codec_noise(head, side, affine, kSampleTiles))
                    << to_string(side) << dim << " " << to_string(bits);
                EXPECT_LT(measured, 1.3 * predicted) << to_string(side) << dim;
                EXPECT_GT(measured, 0.3 * predicted) << to_string(side) << dim;
            }
        }
    }
}

// What a matrix is for, and what it costs: on correlated channels sorted ones do worse at equal bits, on uncorrelated ones as well, for 2 bytes a channel.
TEST(TransformFit, SortedBasesDoAsWellAsMatricesWhereChannelsAreNotCorrelated) {
    constexpr size_t kDim = 64;
    for (const bool correlated : {true, false}) {
        const HeadStats head = correlated ? correlated_head(kDim, 3) : uncorrelated_head(kDim, 3);
        const auto noise = [&](KeyBasis basis) {
            const FittedTransform fitted = fit_transform(head, Side::kKey, kSampleTiles, basis);
            CodecSpec codec;
            codec.transform =
                fitted_codec(fitted, rung_at(fitted, 3, TransformCodes::kTrellis).unit_bits, TransformCodes::kTrellis);
            EXPECT_LE(codec.transform->mean_bits(), 3.0);
            if (basis == KeyBasis::kSorted) {
                EXPECT_EQ(fitted.fit->bytes(), 10 * kDim + 126);
            }
            return codec_noise(head, Side::kKey, codec, kSampleTiles);
        };
        const double matrix = noise(KeyBasis::kEigen);
        const double sorted = noise(KeyBasis::kSorted);
        if (correlated) {
            EXPECT_GT(sorted, 1.5 * matrix);
        } else {
            EXPECT_NEAR(sorted / matrix, 1.0, 0.15);
        }
    }
}

// Tokens of a quarter of the usual size with one channel of 8 bits far out: no gain near their size reaches it, even with wide steps.
TEST(TransformFit, AChannelOfManyBitsIsNotCutOffInSmallTokens) {
    constexpr size_t kDim = 64;
    HeadStats head = uncorrelated_head(kDim, 5);
    const FittedTransform fitted = fit_transform(head, Side::kKey, kSampleTiles, KeyBasis::kSorted);
    const std::vector<uint8_t> unit_bits = {8, 4, 4, 4, 4, 3, 3, 2};
    CodecSpec codec;
    codec.transform = fitted_codec(fitted, unit_bits, TransformCodes::kTrellis);
    const TransformFit& fit = *codec.transform->fit;
    for (size_t i = 0; i < kDim; ++i)
        EXPECT_FLOAT_EQ(fit.scale[i], fitted.fit->scale[i] * (i < 8 ? kWideStep : 1.0F)) << i;
    std::vector<float> rows(64 * kDim);
    std::mt19937 random(9);
    std::normal_distribution<float> normal;
    for (size_t t = 0; t < 64; ++t) {
        std::vector<double> z(kDim);
        for (size_t i = 0; i < kDim; ++i) {
            const double sigma = static_cast<double>(fitted.fit->scale[i] * kLevelsPerSigma);
            z[i] = static_cast<double>(fit.offset[i]) +
                   sigma * (i == 2 ? 5.5 : 0.25 * static_cast<double>(normal(random)));
        }
        transform_backward(fit, z.data());
        for (size_t j = 0; j < kDim; ++j) rows[t * kDim + j] = static_cast<float>(z[j]);
    }
    const TileLayout layout = make_tile_layout(codec, Side::kKey, kDim, 64);
    std::vector<std::byte> packed(layout.bytes);
    encode_tile(layout, rows.data(), packed.data());
    std::vector<double> got(64 * kDim);
    decode_tile_reference(layout, packed.data(), got.data(), false);
    const double sigma = static_cast<double>(fitted.fit->scale[2] * kLevelsPerSigma);
    for (size_t t = 0; t < 64; ++t)
        EXPECT_NEAR((got[t * kDim + 2] - static_cast<double>(fit.offset[2])) / sigma, 5.5, 0.06) << t;
}

TEST(TransformFit, TrellisCodesHaveThePredictedNoiseAndLessThanCodebooks) {
    for (const size_t dim : {64U, 72U}) {
        const HeadStats head = correlated_head(dim, 3);
        for (const Side side : {Side::kKey, Side::kValue}) {
            const FittedTransform fitted = fit_transform(head, side, kSampleTiles);
            for (const uint8_t bits : {uint8_t{2}, uint8_t{3}, uint8_t{4}}) {
                const std::vector<uint8_t> unit_bits(rung_at(fitted, 3).unit_bits.size(), bits);
                CodecSpec trellis;
                trellis.transform = make_transform_codec(fitted.fit, unit_bits, TransformCodes::kTrellis);
                CodecSpec codebook;
                codebook.transform = make_transform_codec(fitted.fit, unit_bits);
                double predicted = 0;
                for (const std::array<double, 9>& cost : fitted.trellis_cost) predicted += cost[bits];
                const double noise = codec_noise(head, side, trellis, kSampleTiles);
                // The sample's values have a mean, which is not taken out of values: far from normal, codebooks follow it.
                if (side == Side::kKey) {
                    EXPECT_LT(noise, 0.85 * codec_noise(head, side, codebook, kSampleTiles))
                        << to_string(side) << dim << " " << int{bits};
                }
                EXPECT_NEAR(noise / predicted, 1.0, 0.3) << to_string(side) << dim << " " << int{bits};
                EXPECT_EQ(packed_bytes(trellis, side, dim, 64), packed_bytes(codebook, side, dim, 64));
            }
        }
    }
}

TEST(TransformFit, EveryRungOfTheLadderCostsMoreBitsAndDoesLessDamage) {
    const FittedTransform fitted = fit_transform(correlated_head(64, 4), Side::kKey, kSampleTiles);
    for (const TransformCodes codes : {TransformCodes::kCodebook, TransformCodes::kTrellis}) {
        const std::vector<TransformChoice> ladder = transform_ladder(fitted, codes);
        ASSERT_GT(ladder.size(), 20U);
        EXPECT_EQ(ladder.front().unit_bits, std::vector<uint8_t>(8, 0));
        EXPECT_EQ(ladder.back().unit_bits, std::vector<uint8_t>(8, 8));
        for (size_t i = 1; i < ladder.size(); ++i) {
            EXPECT_GT(make_transform_codec(fitted.fit, ladder[i].unit_bits)->mean_bits(),
                      make_transform_codec(fitted.fit, ladder[i - 1].unit_bits)->mean_bits());
            EXPECT_LE(ladder[i].cost, ladder[i - 1].cost);
        }
    }
}

}  // namespace
}  // namespace kvaq
