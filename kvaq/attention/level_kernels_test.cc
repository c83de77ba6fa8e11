#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <vector>

#include "kvaq/attention/block_kernels.h"
#include "kvaq/base/simd_target.h"
#include "kvaq/cache/tile.h"
#include "kvaq/cache/tile_decode.h"
#include "kvaq/cache/tile_levels.h"
#include "kvaq/quant/transform.h"
#include "kvaq/quant/transform_samples.h"

namespace kvaq {
namespace {

TEST(LevelKernels, CoefficientsAreRoundedToOneStepOnEveryTarget) {
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    for (const SimdTarget target : supported_simd_targets()) {
        const BlockKernels& kernels = block_kernels(target);
        for (size_t n = 8; n <= 256; n += 8) {
            std::vector<float> x(n);
            std::vector<float> weight(n);
            for (float& value : x) value = normal(random);
            for (float& value : weight) value = std::fabs(normal(random));
            std::vector<int16_t> coef(n);
            for (const float* w : {static_cast<const float*>(nullptr), static_cast<const float*>(weight.data())}) {
                int32_t sum = 0;
                const float step = kernels.quantize_coefs(x.data(), w, n, coef.data(), &sum);
                int32_t want_sum = 0;
                for (size_t i = 0; i < n; ++i) {
                    const double y = static_cast<double>(x[i]) * (w != nullptr ? static_cast<double>(w[i]) : 1.0);
                    const int32_t c = coef_at(kernels, coef.data(), i);
                    ASSERT_NEAR(c * static_cast<double>(step), y, 0.51 * static_cast<double>(step))
                        << to_string(target) << " " << n;
                    ASSERT_LE(std::abs(c), 16319);
                    want_sum += c;
                }
                ASSERT_EQ(sum, want_sum);
            }
        }
        std::vector<float> zeros(16);
        std::vector<int16_t> coef(16, 7);
        int32_t sum = 1;
        EXPECT_EQ(kernels.quantize_coefs(zeros.data(), nullptr, 16, coef.data(), &sum), 0.0F);
        EXPECT_EQ(sum, 0);
        EXPECT_EQ(coef, std::vector<int16_t>(16));
        for (const float bad : {NAN, INFINITY, -INFINITY}) {
            for (const size_t at : {3U, 19U}) {
                std::vector<float> x(24, 1.0F);
                x[at] = bad;
                coef.assign(24, 7);
                EXPECT_TRUE(std::isnan(kernels.quantize_coefs(x.data(), nullptr, 24, coef.data(), &sum)))
                    << to_string(target) << " " << bad;
                EXPECT_EQ(coef, std::vector<int16_t>(24));
            }
        }
    }
}

TEST(LevelKernels, DotsAreExactAtTheLargestNumbersOnEveryTarget) {
    std::mt19937 random(6);
    for (const SimdTarget target : supported_simd_targets()) {
        for (const size_t lanes16 : {1U, 3U, 4U, 5U, 8U}) {
            for (const size_t n_quads : {2U, 16U, 128U}) {
                for (size_t rows = 1; rows <= 9; ++rows) {
                    const bool extreme = rows == 5;
                    const size_t stride = lanes16 * 64 + 64;
                    std::vector<uint8_t> cells(n_quads * stride);
                    for (uint8_t& u : cells) u = extreme ? 255 : static_cast<uint8_t>(random());
                    const size_t ld = n_quads * 4;
                    std::vector<int16_t> coef(rows * ld);
                    std::vector<int32_t> values(rows * ld);
                    for (size_t j = 0; j < values.size(); ++j) {
                        values[j] = extreme ? -16319 : static_cast<int32_t>(random() % 32639) - 16319;
                        set_coef(block_kernels(target), coef.data(), j, values[j]);
                    }
                    std::vector<int32_t> init(rows);
                    for (int32_t& i : init) i = static_cast<int32_t>(random() % 1000);
                    std::vector<int32_t> out(rows * lanes16 * 16, -1);
                    block_kernels(target).dot_cells(cells.data(), stride, lanes16, n_quads, coef.data(), ld, rows,
                                                    init.data(), out.data(), lanes16 * 16);
                    for (size_t r = 0; r < rows; ++r) {
                        for (size_t i = 0; i < lanes16 * 16; ++i) {
                            int64_t want = init[r];
                            for (size_t j = 0; j < ld; ++j)
                                want += int64_t{values[r * ld + j]} * cells[j / 4 * stride + i * 4 + j % 4];
                            ASSERT_EQ(out[r * lanes16 * 16 + i], want)
                                << to_string(target) << " row " << r << " lane " << i;
                        }
                    }
                }
            }
        }
    }
}

// Every codec's levels and parameters give back what the reference decodes.
TEST(LevelKernels, GainsAreTheTablesBitForBitOnEveryTarget) {
    std::array<uint8_t, 257> bytes;  // not whole registers
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 7);
    for (const SimdTarget target : supported_simd_targets()) {
        std::array<float, 257> gains = {};
        decode_kernels(target).gains(bytes.data(), bytes.size(), gains.data());
        for (size_t i = 0; i < bytes.size(); ++i) EXPECT_EQ(gains[i], transform_gain(bytes[i])) << to_string(target);
    }
}

TEST(LevelKernels, LevelsAreWhatTheReferenceDecodesOnEveryTarget) {
    std::vector<CodecSpec> specs;
    for (const CodeBits bits : {CodeBits::k1, CodeBits::kTernary, CodeBits::k2, CodeBits::k3, CodeBits::k4,
                                CodeBits::k5, CodeBits::k6, CodeBits::k8}) {
        for (const uint16_t group : {uint16_t{32}, uint16_t{64}, uint16_t{128}}) {
            for (const GroupAxis axis : {GroupAxis::kPerToken, GroupAxis::kPerChannel}) {
                specs.push_back(
                    {.bits = bits, .axis = axis, .group = group, .symmetric = axis == GroupAxis::kPerToken});
            }
        }
    }
    const size_t n_affine = specs.size();
    specs.resize(n_affine + 4);
    std::mt19937 random(7);
    std::normal_distribution<float> normal(0.3F, 2.0F);
    for (size_t s = 0; s < specs.size(); ++s) {
        for (const size_t dim : {32U, 40U, 64U, 72U, 128U, 256U}) {
            for (const Side side : {Side::kKey, Side::kValue}) {
                const CodecSpec spec =
                    s < n_affine
                        ? specs[s]
                        : sample_transform(side, dim, 3 + static_cast<unsigned>(s - n_affine), 2 * (s - n_affine));
                const size_t tile = spec.axis == GroupAxis::kPerChannel && spec.group == 128 ? 128 : 64;
                const TileLayout layout = make_tile_layout(spec, side, dim, tile);
                std::vector<float> x(tile * dim);
                for (float& value : x) value = normal(random);
                std::vector<std::byte> packed(layout.bytes);
                encode_tile(layout, x.data(), packed.data());
                std::vector<double> reference(tile * dim);
                decode_tile_reference(layout, packed.data(), reference.data(), false);
                const LevelShape shape = level_shape(layout);
                const TransformFit* fit = spec.transform != nullptr ? spec.transform->fit.get() : nullptr;
                for (const SimdTarget target : supported_simd_targets()) {
                    TileLevels levels;
                    levels.reserve(dim, tile);
                    read_levels(target, layout, packed.data(), levels);
                    for (size_t t = 0; t < tile; ++t) {
                        for (size_t c = 0; c < dim; ++c) {
                            const size_t lane = side == Side::kKey ? t : c;
                            const size_t quad = side == Side::kKey ? c : t;
                            double value = 0;
                            if (c < shape.n_channels) {
                                const size_t at = shape.per_channel ? t / shape.block * shape.stride + c
                                                                    : c / shape.block * shape.stride + t;
                                value =
                                    static_cast<double>(levels.scale[at]) *
                                    (levels.cells[quad / 4 * levels.cell_stride + lane * 4 + quad % 4] - shape.bias);
                                if (shape.has_offset) value += static_cast<double>(levels.offset[at]);
                            }
                            if (fit != nullptr)
                                value =
                                    value * static_cast<double>(fit->scale[c]) + static_cast<double>(fit->offset[c]);
                            const double want = reference[t * dim + c];
                            ASSERT_NEAR(value, want, 1e-6 * (std::fabs(want) + 30))
                                << to_string(spec) << " " << to_string(target) << " dim " << dim;
                        }
                    }
                }
            }
        }
    }
}

}  // namespace
}  // namespace kvaq
