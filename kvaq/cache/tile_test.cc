#include "kvaq/cache/tile.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kvaq/base/error.h"
#include "kvaq/cache/tile_decode.h"
#include "kvaq/quant/transform_samples.h"

namespace kvaq {
namespace {

std::vector<CodecSpec> all_codecs() {
    std::vector<CodecSpec> codecs = {CodecSpec{}};
    for (const CodeBits bits : {CodeBits::k1, CodeBits::kTernary, CodeBits::k2, CodeBits::k3, CodeBits::k4,
                                CodeBits::k5, CodeBits::k6, CodeBits::k8}) {
        for (const uint16_t group : {uint16_t{32}, uint16_t{64}, uint16_t{128}}) {
            for (const GroupAxis axis : {GroupAxis::kPerToken, GroupAxis::kPerChannel}) {
                codecs.push_back({.bits = bits, .axis = axis, .group = group});
                codecs.push_back(
                    {.bits = bits, .axis = axis, .group = group, .symmetric = true, .basis = Basis::kHadamard});
            }
        }
        codecs.push_back({.bits = bits, .rule = AffineRule::kHqq, .group = 64});
        codecs.push_back({.bits = bits, .rule = AffineRule::kQuanto, .group = 32, .basis = Basis::kHadamard});
    }
    return codecs;
}

std::vector<float> random_rows(size_t n, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.3F, 2.0F);
    std::vector<float> x(n);
    for (float& value : x) value = normal(random);
    return x;
}

// 8 bits a channel leave half a step: what rounding the basis to int8 would add is several steps of the small gains here.
TEST(Tile, SealedTilesHoldTheInverseOfWhatTurnsThemBack) {
    for (const size_t dim : {40U, 64U, 256U}) {
        for (const Side side : {Side::kKey, Side::kValue}) {
            for (const TransformBasis basis :
                 {TransformBasis::kMatrix, TransformBasis::kHadamard, TransformBasis::kSorted}) {
                const auto fit = with_basis(*sample_fit(side, dim, 4), basis);
                CodecSpec spec;
                const size_t unit = transform_unit(side);
                spec.transform = make_transform_codec(fit, std::vector<uint8_t>((dim + unit - 1) / unit, 8));
                const TileLayout layout = make_tile_layout(spec, side, dim, 64);
                std::vector<float> x = random_rows(64 * dim, 11);
                for (float& value : x) value += 20.0F * static_cast<float>((&value - x.data()) % 7 == 3);
                std::vector<std::byte> packed(layout.bytes);
                encode_tile(layout, x.data(), packed.data());
                std::vector<double> z(64 * dim);
                decode_tile_reference(layout, packed.data(), z.data(), false);
                for (size_t t = 0; t < 64; ++t) {
                    const std::vector<double> row(x.begin() + static_cast<ptrdiff_t>(t * dim),
                                                  x.begin() + static_cast<ptrdiff_t>((t + 1) * dim));
                    std::vector<double> want = row;
                    transform_forward(*fit, want.data());
                    const auto gain =
                        static_cast<double>(transform_gain(static_cast<uint8_t>(packed[layout.gain_offset + t])));
                    double size = 0;
                    for (const double v : row) size += v * v / static_cast<double>(dim);
                    for (size_t c = 0; c < dim; ++c) {
                        const double step = gain * static_cast<double>(fit->scale[c]);
                        const double offset = static_cast<double>(fit->offset[c]);
                        if (std::fabs(want[c] - offset) > 127 * step) continue;  // cut off
                        ASSERT_NEAR(z[t * dim + c], want[c], 0.501 * step + 0.003 * std::sqrt(size))
                            << to_string(side) << " " << dim << " token " << t << " channel " << c;
                    }
                }
            }
        }
    }
}

TEST(Tile, EveryTargetDecodesWhatTheReferenceDecodesAndWritesExactlyItsBytes) {
    std::vector<CodecSpec> specs = all_codecs();
    constexpr size_t kTransforms = 6;
    specs.resize(specs.size() + kTransforms);  // the last ones are made for their head below
    for (size_t s = 0; s < specs.size(); ++s) {
        for (const size_t dim : {32U, 40U, 64U, 72U, 80U, 96U, 128U, 256U}) {
            for (const Side side : {Side::kKey, Side::kValue}) {
                const size_t number = s + kTransforms - specs.size();
                const CodecSpec spec = s + kTransforms < specs.size()
                                           ? specs[s]
                                           : sample_transform(side, dim, 3 + static_cast<unsigned>(number), number);
                const size_t tile = spec.axis == GroupAxis::kPerChannel && spec.group == 128 ? 128 : 64;
                const TileLayout layout = make_tile_layout(spec, side, dim, tile);
                const std::vector<float> x = random_rows(tile * dim, 7);
                std::vector<std::byte> packed(layout.bytes + 64, std::byte{0xA5});
                encode_tile(layout, x.data(), packed.data());
                for (size_t i = layout.bytes; i < packed.size(); ++i) ASSERT_EQ(packed[i], std::byte{0xA5});
                std::vector<std::byte> again(layout.bytes, std::byte{0x3C});
                encode_tile(layout, x.data(), again.data());
                ASSERT_TRUE(std::equal(again.begin(), again.end(), packed.begin())) << to_string(spec);
                std::vector<double> reference(tile * dim);
                decode_tile_reference(layout, packed.data(), reference.data(), false);
                const size_t padded = (dim + 15) / 16 * 16;
                std::vector<float> first;
                for (const SimdTarget target : supported_simd_targets()) {
                    std::vector<float> out(tile * padded, -7.0F);
                    decode_tile_on(target, layout, packed.data(), out.data());
                    for (size_t t = 0; t < tile; ++t) {
                        for (size_t c = 0; c < dim; ++c) {
                            const float got = side == Side::kKey ? out[c * tile + t] : out[t * padded + c];
                            const double want = reference[t * dim + c];
                            ASSERT_NEAR(got, want, 1e-6 * (std::fabs(want) + 30))
                                << to_string(spec) << " " << to_string(target) << " dim " << dim << " "
                                << to_string(side);
                        }
                        for (size_t c = dim; side == Side::kValue && c < padded; ++c)
                            ASSERT_EQ(out[t * padded + c], 0.0F);
                    }
                    if (first.empty()) first = out;
                    ASSERT_TRUE(first == out) << "targets differ: " << to_string(spec) << " " << to_string(target);
                }
            }
        }
    }
}

TEST(Tile, MinMaxErrorStaysWithinHalfAStepAndCodesSurviveReencoding) {
    for (unsigned seed = 1; seed <= 5; ++seed) {
        for (const CodeBits bits :
             {CodeBits::k2, CodeBits::k3, CodeBits::k4, CodeBits::k5, CodeBits::k6, CodeBits::k8}) {
            const CodecSpec spec{.bits = bits, .group = 32};
            const TileLayout layout = make_tile_layout(spec, Side::kKey, 64, 64);
            const std::vector<float> x = random_rows(64 * 64, seed);
            std::vector<std::byte> packed(layout.bytes);
            encode_tile(layout, x.data(), packed.data());
            std::vector<double> decoded(x.size());
            decode_tile_reference(layout, packed.data(), decoded.data(), true);
            const auto* scales = reinterpret_cast<const float16*>(packed.data() + layout.bands[0].scale_offset);
            std::vector<float> again(x.size());
            for (size_t i = 0; i < x.size(); ++i) {
                const double step = static_cast<double>(scales[i / 32]);
                ASSERT_LE(std::fabs(decoded[i] - static_cast<double>(x[i])), step / 2 * 1.0001 + 1e-6)
                    << "seed " << seed;
                again[i] = static_cast<float>(decoded[i]);
            }
            std::vector<std::byte> repacked(layout.bytes);
            encode_tile(layout, again.data(), repacked.data());
            for (size_t t = 0; t < 64; ++t) {
                for (size_t c = 0; c < 64; ++c)
                    ASSERT_EQ(code_at(layout, packed.data(), t, c), code_at(layout, repacked.data(), t, c))
                        << "seed " << seed;
            }
        }
    }
}

TEST(Tile, ThreeBitsTakeThreeBits) {
    // 64 x 64 codes * 3 / 8 = 1536, scales and offsets 64 * 2 * 2 = 256
    EXPECT_EQ(packed_bytes({.bits = CodeBits::k3, .group = 64}, Side::kKey, 64, 64), 1792U);
    EXPECT_EQ(packed_bytes({.bits = CodeBits::k4, .group = 32, .symmetric = true}, Side::kValue, 64, 64), 2048U + 256U);
    EXPECT_EQ(packed_bytes({.bits = CodeBits::k2, .axis = GroupAxis::kPerChannel, .group = 64}, Side::kKey, 128, 64),
              2048U + 512U);
    EXPECT_EQ(packed_bytes({}, Side::kKey, 64, 64), 8192U);
    // five ternary codes in a byte: 4096 / 5 = 819.2 -> 832; parameters 256
    EXPECT_EQ(packed_bytes({.bits = CodeBits::kTernary, .group = 64}, Side::kKey, 64, 64), 832U + 256U);
}

TEST(Tile, BadNumbersDoNotPoisonATile) {
    const TileLayout layout =
        make_tile_layout({.bits = CodeBits::k4, .group = 64, .basis = Basis::kHadamard}, Side::kKey, 64, 64);
    std::vector<float> x = random_rows(64 * 64, 3);
    x[5] = NAN;
    x[70] = INFINITY;
    x[200] = -INFINITY;
    std::vector<std::byte> packed(layout.bytes);
    encode_tile(layout, x.data(), packed.data());
    std::vector<double> decoded(x.size());
    decode_tile_reference(layout, packed.data(), decoded.data(), true);
    for (const double value : decoded) ASSERT_TRUE(std::isfinite(value));
}

TEST(Tile, RefusesCodecsThatDoNotFit) {
    EXPECT_THROW((void)make_tile_layout({.bits = CodeBits::k4, .axis = GroupAxis::kPerChannel, .group = 128},
                                        Side::kKey, 64, 64),
                 Error);
    EXPECT_THROW((void)make_tile_layout({.bits = CodeBits::k4}, Side::kKey, 12, 64), Error);
    EXPECT_THROW(
        (void)make_tile_layout({.bits = CodeBits::k4, .rule = AffineRule::kHqq, .symmetric = true}, Side::kKey, 64, 64),
        Error);
    EXPECT_THROW((void)make_tile_layout({.bits = CodeBits::k4, .group = 48}, Side::kKey, 64, 64), Error);
}

}  // namespace
}  // namespace kvaq
