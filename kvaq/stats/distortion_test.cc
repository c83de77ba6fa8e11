#include "kvaq/stats/distortion.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kvaq/base/error.h"
#include "kvaq/cache/tile.h"

namespace kvaq {
namespace {

std::vector<float16> random_rows(size_t n, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float16> rows(n);
    for (float16& value : rows) value = static_cast<float16>(normal(random));
    return rows;
}

TEST(Distortion, EqualsTheReferenceDecoderForEverySideAndBasis) {
    const size_t dim = 72;  // padded for values, Hadamard in blocks of 8
    const std::vector<float16> rows = random_rows(2 * 64 * dim, 3);
    for (const Side side : {Side::kKey, Side::kValue}) {
        for (const Basis basis : {Basis::kIdentity, Basis::kHadamard}) {
            for (const GroupAxis axis : {GroupAxis::kPerToken, GroupAxis::kPerChannel}) {
                const CodecSpec spec{.bits = CodeBits::k3, .axis = axis, .group = 32, .basis = basis};
                const std::vector<float> errors = quantization_errors(spec, side, rows, dim, 64);
                const TileLayout layout = make_tile_layout(spec, side, dim, 64);
                std::vector<float> x(64 * dim);
                std::vector<double> decoded(64 * dim);
                std::vector<std::byte> packed(layout.bytes);
                for (size_t tile = 0; tile < 2; ++tile) {
                    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(rows[tile * x.size() + i]);
                    encode_tile(layout, x.data(), packed.data());
                    decode_tile_reference(layout, packed.data(), decoded.data(), true);
                    for (size_t i = 0; i < x.size(); ++i) {
                        ASSERT_NEAR(errors[tile * x.size() + i], static_cast<double>(x[i]) - decoded[i], 1e-5)
                            << to_string(spec) << " " << i;
                    }
                }
            }
        }
    }
}

TEST(Distortion, FallsWithBitsAndVanishesForFloat16) {
    const std::vector<float16> rows = random_rows(4 * 64 * 64, 4);
    const auto mse = [&](CodeBits bits) { return quantization_mse({.bits = bits}, Side::kKey, rows, 64, 64); };
    EXPECT_EQ(mse(CodeBits::k16), 0.0);
    double last = 1e9;
    for (const CodeBits bits : {CodeBits::k2, CodeBits::k3, CodeBits::k4, CodeBits::k5, CodeBits::k6, CodeBits::k8}) {
        EXPECT_LT(mse(bits), last);
        last = mse(bits);
    }
    // Uniform noise of step d has variance d^2 / 12; 64 normal numbers span about 4.7 sigma, so d = 4.7 / 15 at 4 bits.
    EXPECT_NEAR(mse(CodeBits::k4), 4.7 * 4.7 / 15 / 15 / 12, 0.002);
}

TEST(Distortion, RefusesACodecThatDoesNotFit) {
    const std::vector<float16> rows = random_rows(64 * 64, 5);
    EXPECT_THROW((void)quantization_errors({.bits = CodeBits::k4, .axis = GroupAxis::kPerChannel, .group = 128},
                                           Side::kKey, rows, 64, 64),
                 Error);
}

}  // namespace
}  // namespace kvaq
