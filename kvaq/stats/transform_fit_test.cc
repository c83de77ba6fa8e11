#include "kvaq/stats/transform_fit.h"

#include <gtest/gtest.h>

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
                    codec.transform = make_transform_codec(fitted.fit, rung.unit_bits);
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
