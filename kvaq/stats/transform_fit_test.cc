#include "kvaq/stats/transform_fit.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kvaq/cache/tile.h"
#include "kvaq/plan/damage.h"

namespace kvaq {
namespace {

constexpr size_t kTiles = 6;
constexpr size_t kTokens = kTiles * 64;

/// Correlated keys and values with a mean and tokens of unequal size; queries that look at some directions more than at others.
HeadStats correlated_head(size_t dim, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    std::vector<double> mix(dim * dim);
    for (double& x : mix) x = normal(random) / std::sqrt(static_cast<double>(dim));
    HeadStats head;
    head.key_mean.assign(dim, 0);
    head.value_mean.assign(dim, 0);
    head.key_second.assign(dim * dim, 0);
    head.value_second.assign(dim * dim, 0);
    head.query_second.assign(dim * dim, 0);
    const auto draw = [&](double size, double mean) {
        std::vector<double> z(dim), x(dim, mean);
        for (size_t i = 0; i < dim; ++i) z[i] = size * normal(random) * std::exp(-4.0 * static_cast<double>(i) / static_cast<double>(dim));
        for (size_t i = 0; i < dim; ++i) {
            for (size_t j = 0; j < dim; ++j) x[j] += z[i] * mix[i * dim + j];
        }
        return x;
    };
    const auto add = [&](const std::vector<double>& x, std::vector<double>& second, std::vector<double>* mean, std::vector<float16>* rows) {
        for (size_t i = 0; i < dim; ++i) {
            if (mean != nullptr) (*mean)[i] += x[i] / kTokens;
            if (rows != nullptr) rows->push_back(static_cast<float16>(x[i]));
            for (size_t j = 0; j < dim; ++j) second[i * dim + j] += x[i] * x[j] / kTokens;
        }
    };
    for (size_t t = 0; t < kTokens; ++t) {
        const double size = t % 50 == 49 ? 3.0 : std::exp(0.4 * normal(random));
        add(draw(4 * size, 1.0), head.key_second, &head.key_mean, &head.key_tiles);
        add(draw(size, -0.5), head.value_second, &head.value_mean, &head.value_tiles);
        add(draw(1, 0), head.query_second, nullptr, nullptr);
    }
    return head;
}

TEST(TransformFit, BeatsTheRotatedAffineCodecOfTheSameBytes) {
    for (const size_t dim : {64U, 72U}) {
        const HeadStats head = correlated_head(dim, 3);
        for (const Side side : {Side::kKey, Side::kValue}) {
            const FittedTransform fitted = fit_transform(head, side, kTiles);
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
                const double measured = codec_noise(head, side, best, kTiles);
                EXPECT_LT(measured, (side == Side::kKey ? 0.5 : 0.9) * codec_noise(head, side, affine, kTiles)) << to_string(side) << dim << " " << to_string(bits);
                EXPECT_LT(measured, 1.3 * predicted) << to_string(side) << dim;
                EXPECT_GT(measured, 0.3 * predicted) << to_string(side) << dim;
            }
        }
    }
}

TEST(TransformFit, EveryRungOfTheLadderCostsMoreBitsAndDoesLessDamage) {
    const FittedTransform fitted = fit_transform(correlated_head(64, 4), Side::kKey, kTiles);
    const std::vector<TransformChoice> ladder = transform_ladder(fitted);
    ASSERT_GT(ladder.size(), 20U);
    EXPECT_EQ(ladder.front().unit_bits, std::vector<uint8_t>(8, 0));
    EXPECT_EQ(ladder.back().unit_bits, std::vector<uint8_t>(8, 8));
    for (size_t i = 1; i < ladder.size(); ++i) {
        EXPECT_GT(make_transform_codec(fitted.fit, ladder[i].unit_bits)->mean_bits(), make_transform_codec(fitted.fit, ladder[i - 1].unit_bits)->mean_bits());
        EXPECT_LE(ladder[i].cost, ladder[i - 1].cost);
    }
}

}  // namespace
}  // namespace kvaq
