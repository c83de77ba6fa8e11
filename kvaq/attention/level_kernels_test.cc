#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <utility>
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
            const CoefSize size = n / 8 % 3 == 0 ? CoefSize::kWide : CoefSize::kByte;
            const int most = size == CoefSize::kByte ? kByteCoef : kWideCoef;
            std::vector<float> x(n);
            std::vector<float> weight(n);
            for (float& value : x) value = normal(random);
            for (float& value : weight) value = std::fabs(normal(random));
            std::vector<int16_t> coef(n);
            for (const float* w : {static_cast<const float*>(nullptr), static_cast<const float*>(weight.data())}) {
                int32_t sum = 0;
                float step = 0;
                kernels.quantize_coefs(x.data(), n, w, 1, n, size, coef.data(), n, &step, &sum);
                int32_t want_sum = 0;
                for (size_t i = 0; i < n; ++i) {
                    const double y = static_cast<double>(x[i]) * (w != nullptr ? static_cast<double>(w[i]) : 1.0);
                    const int32_t c = coef_at(kernels, coef.data(), i);
                    ASSERT_NEAR(c * static_cast<double>(step), y, 0.51 * static_cast<double>(step))
                        << to_string(target) << " " << n;
                    ASSERT_LE(std::abs(c), most);
                    want_sum += c;
                }
                ASSERT_EQ(sum, want_sum);
            }
        }
        std::vector<float> zeros(16);
        std::vector<int16_t> coef(16, 7);
        int32_t sum = 1;
        float step = 1;
        kernels.quantize_coefs(zeros.data(), 16, nullptr, 1, 16, CoefSize::kWide, coef.data(), 16, &step, &sum);
        EXPECT_EQ(step, 0.0F);
        EXPECT_EQ(sum, 0);
        EXPECT_EQ(coef, std::vector<int16_t>(16));
        for (const float bad : {NAN, INFINITY, -INFINITY}) {
            for (const size_t at : {3U, 19U}) {
                std::vector<float> x(24, 1.0F);
                x[at] = bad;
                coef.assign(24, 7);
                kernels.quantize_coefs(x.data(), 24, nullptr, 1, 24, at == 3 ? CoefSize::kWide : CoefSize::kByte,
                                       coef.data(), 24, &step, &sum);
                EXPECT_TRUE(std::isnan(step)) << to_string(target) << " " << bad;
                EXPECT_EQ(coef, std::vector<int16_t>(24));
            }
        }
    }
}

// Rows taken together (up to four share registers) give the bits that each gives alone.
TEST(LevelKernels, RowsRoundedTogetherAreAsEachAlone) {
    std::mt19937 random(8);
    std::normal_distribution<float> normal;
    constexpr size_t kN = 40, kLd = 44;
    std::vector<float> weight(kN);
    for (float& value : weight) value = std::fabs(normal(random));
    for (const SimdTarget target : supported_simd_targets()) {
        const BlockKernels& kernels = block_kernels(target);
        for (size_t n_rows = 1; n_rows <= 9; ++n_rows) {
            for (const float* w : {static_cast<const float*>(nullptr), static_cast<const float*>(weight.data())}) {
                std::vector<float> x(n_rows * kLd);
                for (float& value : x) value = normal(random);
                if (n_rows > 3) {  // their neighbours do not notice
                    x[2 * kLd + 5] = INFINITY;
                    for (const size_t at : {5U, 21U, 37U, 38U}) x[kLd + at] = NAN;
                }
                std::vector<int16_t> coef(n_rows * kLd, 7), alone(kLd, 7);
                std::vector<float> steps(n_rows);
                std::vector<int32_t> sums(n_rows);
                kernels.quantize_coefs(x.data(), kLd, w, n_rows, kN, CoefSize::kWide, coef.data(), kLd, steps.data(),
                                       sums.data());
                for (size_t r = 0; r < n_rows; ++r) {
                    float step = 0;
                    int32_t sum = 0;
                    kernels.quantize_coefs(&x[r * kLd], kLd, w, 1, kN, CoefSize::kWide, alone.data(), kLd, &step, &sum);
                    const bool bad = n_rows > 3 && (r == 1 || r == 2);
                    EXPECT_EQ(std::isnan(steps[r]), bad) << to_string(target) << " row " << r;
                    EXPECT_TRUE(bad || step == steps[r]) << to_string(target) << " row " << r;
                    EXPECT_EQ(sum, sums[r]);
                    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), &coef[r * kLd]))
                        << to_string(target) << " row " << r;
                }
            }
        }
    }
}

TEST(LevelKernels, LevelsAreAddedToWhatWasThereOrToAStart) {
    std::mt19937 random(10);
    std::normal_distribution<float> normal;
    constexpr size_t kN = 48, kLdAcc = 64, kLd = 80;
    const auto filled = [&](size_t n) {
        std::vector<float> x(n);
        for (float& value : x) value = normal(random);
        return x;
    };
    for (const SimdTarget target : supported_simd_targets()) {
        for (size_t n_rows = 1; n_rows <= 5; ++n_rows) {
            const std::vector<float> steps = filled(n_rows), factors = filled(n_rows), starts = filled(n_rows);
            const std::vector<float> scale = filled(kN), offset = filled(kN), before = filled(n_rows * kLd);
            std::vector<int32_t> acc(n_rows * kLdAcc);
            for (int32_t& value : acc) value = static_cast<int32_t>(random() % 2001) - 1000;
            for (int which = 0; which < 8; ++which) {
                const bool has_scale = (which & 1) != 0, has_offset = (which & 2) != 0, has_start = (which & 4) != 0;
                std::vector<float> out = before;
                block_kernels(target).add_levels(
                    acc.data(), kLdAcc, n_rows, kN, steps.data(), has_scale ? scale.data() : nullptr,
                    has_offset ? offset.data() : nullptr, has_offset ? factors.data() : nullptr,
                    has_start ? starts.data() : nullptr, out.data(), kLd);
                for (size_t r = 0; r < n_rows; ++r) {
                    for (size_t i = 0; i < kLd; ++i) {
                        const size_t at = r * kLd + i;
                        if (i >= kN) {
                            EXPECT_EQ(out[at], before[at]) << to_string(target);
                            continue;
                        }
                        double want = has_start ? starts[r] : before[at];
                        want += double{steps[r]} * acc[r * kLdAcc + i] * (has_scale ? double{scale[i]} : 1.0);
                        if (has_offset) want += double{factors[r]} * offset[i];
                        EXPECT_NEAR(out[at], want, 2e-6 * (std::fabs(want) + 1000 * std::fabs(steps[r])))
                            << to_string(target) << " row " << r << " " << i;
                    }
                }
            }
        }
    }
}

TEST(LevelKernels, SoftmaxOfRowsIsTheDoublesAndAsOfEachAloneOnEveryTarget) {
    std::mt19937 random(9);
    std::normal_distribution<float> normal;
    for (const SimdTarget target : supported_simd_targets()) {
        const BlockKernels& kernels = block_kernels(target);
        for (size_t n_rows = 1; n_rows <= 9; ++n_rows) {
            constexpr size_t kN = 48, kLd = 64;
            std::vector<float> s(n_rows * kLd);
            for (float& value : s) value = 25.0F * normal(random);  // some more than 87 below the largest
            std::vector<float> m(n_rows), l(n_rows, 2.0F);
            for (float& value : m) value = 30.0F * normal(random);  // some above all scores, some below
            m[0] = -INFINITY;
            l[0] = 0;
            if (n_rows > 1) std::fill_n(&s[kLd], kN, -INFINITY);  // a row that sees nothing
            const std::vector<float> before = s, m_before = m, l_before = l;
            for (const auto& [lo, hi] : std::vector<std::pair<size_t, size_t>>{{0, kN}, {3, 17}, {47, 48}, {5, 5}}) {
                std::vector<float> p = before, tops = m_before, totals = l_before, sums(n_rows), factors(n_rows);
                kernels.softmax_step(p.data(), kLd, n_rows, kN, lo, hi, tops.data(), totals.data(), sums.data(),
                                     factors.data());
                for (size_t r = 0; r < n_rows; ++r) {
                    const std::string where =
                        to_string(target) + " row " + std::to_string(r) + " from " + std::to_string(lo);
                    std::vector<float> row(&before[r * kLd], &before[r * kLd] + kN);
                    float top = m_before[r], total = l_before[r], sum = 0, factor = 0;
                    kernels.softmax_step(row.data(), kLd, 1, kN, lo, hi, &top, &total, &sum, &factor);
                    EXPECT_TRUE(std::equal(row.begin(), row.end(), &p[r * kLd])) << where;
                    EXPECT_TRUE(top == tops[r] && total == totals[r] && sum == sums[r] && factor == factors[r])
                        << where;
                    double best = m_before[r];
                    for (size_t t = lo; t < hi; ++t) best = std::max(best, double{before[r * kLd + t]});
                    double want_sum = 0;
                    for (size_t t = 0; t < kN; ++t) {
                        const bool seen = t >= lo && t < hi && before[r * kLd + t] - best > -87.0;
                        const double want = seen ? std::exp(before[r * kLd + t] - best) : 0.0;
                        const double down =
                            before[r * kLd + t] - best;  // a difference rounded to f32, and exp's own error
                        EXPECT_NEAR(p[r * kLd + t], want, want > 0 ? want * 6e-7 * std::max(1.0, std::fabs(down)) : 0.0)
                            << where << " " << down;
                        want_sum += want;
                    }
                    const double carried = m_before[r] == -INFINITY ? 0.0 : l_before[r] * std::exp(m_before[r] - best);
                    EXPECT_NEAR(totals[r], best == -INFINITY ? l_before[r] : carried + want_sum, 1e-5) << where;
                    EXPECT_EQ(tops[r], static_cast<float>(best)) << where;
                    EXPECT_NEAR(sums[r], want_sum, 1e-5) << where;
                }
            }
            // What is not a number stays none.
            s[5] = NAN;
            std::vector<float> sums(n_rows), factors(n_rows);
            kernels.softmax_step(s.data(), kLd, n_rows, kN, 0, kN, m.data(), l.data(), sums.data(), factors.data());
            EXPECT_TRUE(std::isnan(s[5]) && std::isnan(l[0])) << to_string(target);
            if (n_rows > 2) {
                EXPECT_TRUE(std::isfinite(l[2]));
            }
            std::fill_n(s.data(), kN, NAN);  // nor is a row of nothing else
            l[0] = 1;
            kernels.softmax_step(s.data(), kLd, 1, kN, 0, kN, m.data(), l.data(), sums.data(), factors.data());
            EXPECT_TRUE(std::isnan(s[7]) && std::isnan(l[0])) << to_string(target);
        }
    }
}

// One pass over the scores does what the softmax, the rounding and the sum with the offsets do one after the other, bit for bit.
TEST(LevelKernels, WeighedCoefficientsAreTheSoftmaxsRoundedOnEveryTarget) {
    constexpr size_t kN = 48, kLd = 64, kLdCoef = 56;
    const auto same = [](const auto& a, const auto& b) {  // NaN is NaN
        return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                          [](auto x, auto y) { return x == y || (std::isnan(x) && std::isnan(y)); });
    };
    struct Outcome {
        explicit Outcome(size_t n) : sums(n), factors(n), steps(n), offset_sums(n), coef(n * kLdCoef), coef_sums(n) {}
        std::vector<float> s, m, l, sums, factors, steps, offset_sums;
        std::vector<int16_t> coef;
        std::vector<int32_t> coef_sums;
    };
    std::mt19937 random(12);
    std::normal_distribution<float> normal;
    for (const SimdTarget target : supported_simd_targets()) {
        const BlockKernels& kernels = block_kernels(target);
        for (size_t n_rows = 1; n_rows <= 9; ++n_rows) {
            std::vector<float> s(n_rows * kLd), scale(kN), offset(kN), m(n_rows, 0.0F), l(n_rows, 1.0F);
            for (float& value : s) value = 3.0F * normal(random);
            for (float& value : scale) value = std::fabs(normal(random));
            for (float& value : offset) value = normal(random);
            m[0] = -INFINITY;
            if (n_rows > 1) std::fill_n(&s[kLd], kN, -INFINITY);  // a row that sees nothing
            if (n_rows > 2) s[2 * kLd + 9] = NAN;
            for (const auto& [lo, hi] : std::vector<std::pair<size_t, size_t>>{{0, kN}, {3, 17}, {47, 48}, {5, 5}}) {
                for (const bool has_offset : {false, true}) {
                    Outcome together(n_rows), apart(n_rows);
                    together.s = apart.s = s;
                    together.m = apart.m = m;
                    together.l = apart.l = l;
                    kernels.softmax_coefs(together.s.data(), kLd, n_rows, kN, lo, hi, scale.data(),
                                          has_offset ? offset.data() : nullptr, together.m.data(), together.l.data(),
                                          together.sums.data(), together.factors.data(), together.coef.data(), kLdCoef,
                                          together.steps.data(), together.coef_sums.data(),
                                          together.offset_sums.data());
                    kernels.softmax_step(apart.s.data(), kLd, n_rows, kN, lo, hi, apart.m.data(), apart.l.data(),
                                         apart.sums.data(), apart.factors.data());
                    kernels.quantize_coefs(apart.s.data(), kLd, scale.data(), n_rows, kN, CoefSize::kWide,
                                           apart.coef.data(), kLdCoef, apart.steps.data(), apart.coef_sums.data());
                    for (size_t r = 0; r < n_rows; ++r) {
                        if (has_offset) apart.offset_sums[r] = kernels.dot(&apart.s[r * kLd], offset.data(), kN);
                        for (size_t t = 0; t < kN; ++t) apart.s[r * kLd + t] *= scale[t];
                    }
                    const std::string where = to_string(target) + ", " + std::to_string(n_rows) + " rows from " +
                                              std::to_string(lo) + (has_offset ? ", offsets" : "");
                    EXPECT_TRUE(same(together.s, apart.s)) << where;
                    EXPECT_TRUE(same(together.m, apart.m) && same(together.l, apart.l)) << where;
                    EXPECT_TRUE(same(together.sums, apart.sums) && same(together.factors, apart.factors)) << where;
                    EXPECT_EQ(together.coef, apart.coef) << where;
                    EXPECT_EQ(together.coef_sums, apart.coef_sums) << where;
                    EXPECT_TRUE(same(together.steps, apart.steps)) << where;
                    EXPECT_TRUE(same(together.offset_sums, apart.offset_sums)) << where;
                }
            }
        }
    }
}

TEST(LevelKernels, DotsAreExactAtTheLargestNumbersOnEveryTarget) {
    std::mt19937 random(6);
    for (const SimdTarget target : supported_simd_targets()) {
        for (const size_t lanes16 : {1U, 3U, 4U, 5U, 8U}) {
            for (const size_t n_quads : {2U, 16U, 128U}) {
                for (size_t rows = 1; rows <= 18; ++rows) {
                    const CoefSize size = rows > 9 ? CoefSize::kByte : CoefSize::kWide;
                    const int most = size == CoefSize::kByte ? kByteCoef : kWideCoef;
                    const bool extreme = rows % 9 == 5;
                    const size_t stride = lanes16 * 64 + 64;
                    std::vector<uint8_t> cells(n_quads * stride);
                    for (uint8_t& u : cells) u = extreme ? 255 : static_cast<uint8_t>(random());
                    const size_t ld = n_quads * 4;
                    std::vector<int16_t> coef(rows * ld);
                    std::vector<int32_t> values(rows * ld);
                    for (size_t j = 0; j < values.size(); ++j) {
                        values[j] = extreme
                                        ? -most
                                        : static_cast<int32_t>(random() % static_cast<uint32_t>(2 * most + 1)) - most;
                        set_coef(block_kernels(target), coef.data(), j, values[j]);
                    }
                    std::vector<int32_t> init(rows);
                    for (int32_t& i : init) i = static_cast<int32_t>(random() % 1000);
                    std::vector<int32_t> out(rows * lanes16 * 16, -1);
                    block_kernels(target).dot_cells(cells.data(), stride, lanes16, n_quads, size, coef.data(), ld, rows,
                                                    init.data(), out.data(), lanes16 * 16);
                    if (block_kernels(target).dot_codes != nullptr) {  // codes of 8 bits are the bytes, cell after cell
                        std::vector<uint8_t> plane;
                        for (size_t quad = 0; quad < n_quads; ++quad)
                            plane.insert(plane.end(), &cells[quad * stride], &cells[quad * stride + lanes16 * 64]);
                        const PackedCodes run = {
                            .planes = {.low = plane.data(), .low_bits = 8, .n_lanes16 = lanes16, .n_quads = n_quads}};
                        std::vector<int32_t> of_codes(out.size(), -1);
                        block_kernels(target).dot_codes(&run, 1, 0, lanes16, size, coef.data(), ld, rows, init.data(),
                                                        of_codes.data(), lanes16 * 16);
                        ASSERT_EQ(of_codes, out) << to_string(target);
                    }
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

// Codes multiplied where they lie give the sums of their unpacked bytes: all codings and bits, several runs, any number of lanes.
TEST(LevelKernels, DotsOfPackedCodesAreThoseOfTheirBytesOnEveryTarget) {
    std::mt19937 random(11);
    size_t n_targets = 0;
    for (const SimdTarget target : supported_simd_targets()) {
        const BlockKernels& kernels = block_kernels(target);
        if (kernels.dot_codes == nullptr) continue;
        ++n_targets;
        struct Coding {
            unsigned low, high;
            CodeLevels levels;
        };
        std::vector<Coding> codings = {{8, 0, CodeLevels::kPlain}};
        for (const auto& [low, high] : {std::pair{1U, 0U}, std::pair{2U, 0U}, std::pair{2U, 1U}, std::pair{4U, 0U},
                                        std::pair{4U, 1U}, std::pair{4U, 2U}}) {
            for (const CodeLevels levels : {CodeLevels::kPlain, CodeLevels::kTable, CodeLevels::kTrellis})
                codings.push_back({low, high, levels});
        }
        for (const size_t lanes16 : {1U, 2U, 3U, 4U, 5U, 6U, 8U}) {
            for (size_t rows = 1; rows <= 6; ++rows) {
                for (const CoefSize size : {CoefSize::kByte, CoefSize::kWide}) {
                    for (size_t first = 0; first < codings.size(); ++first) {
                        const size_t n_runs = 1 + random() % 3;
                        std::array<PackedCodes, 3> runs;
                        std::array<std::vector<uint8_t>, 3> planes, tables;
                        size_t n_quads = 0;
                        for (size_t i = 0; i < n_runs; ++i) {
                            const Coding& coding = codings[(first + i * 5) % codings.size()];
                            CodePlanes& of = runs[i].planes;
                            of = {.low_bits = coding.low, .high_bits = coding.high, .n_lanes16 = lanes16};
                            of.n_quads =
                                lanes16 % 4 == 0 ? 2 + 2 * (random() % 8) : 8 * (1 + random() % 2);  // whole blocks
                            const size_t cells = of.n_quads * lanes16;
                            planes[i].resize(cells * 8 * (coding.low + coding.high));
                            tables[i].resize(coding.levels == CodeLevels::kTrellis ? 256 : 64);
                            for (uint8_t& byte : planes[i]) byte = static_cast<uint8_t>(random());
                            for (uint8_t& byte : tables[i]) byte = static_cast<uint8_t>(random());
                            of.low = planes[i].data();
                            if (coding.high > 0) of.high = of.low + cells * 8 * coding.low;
                            runs[i].levels = coding.levels;
                            if (coding.levels != CodeLevels::kPlain) runs[i].table = tables[i].data();
                            n_quads += of.n_quads;
                        }
                        const size_t stride = lanes16 * 64, n = lanes16 * 16, ld = n_quads * 4 + 4;
                        std::vector<uint8_t> cells(n_quads * stride);
                        for (size_t i = 0, quad = 0; i < n_runs; quad += runs[i++].planes.n_quads) {
                            const DecodeKernels& decode = decode_kernels(SimdTarget::kScalar);
                            const auto unpack = runs[i].levels == CodeLevels::kTrellis ? decode.trellis : decode.levels;
                            unpack(runs[i].planes, runs[i].table, &cells[quad * stride], stride);
                        }
                        const int most = size == CoefSize::kByte ? kByteCoef : kWideCoef;
                        std::vector<int16_t> coef(rows * ld);
                        for (size_t j = 0; j < coef.size(); ++j) {
                            set_coef(kernels, coef.data(), j,
                                     static_cast<int32_t>(random() % static_cast<uint32_t>(2 * most + 1)) - most);
                        }
                        std::vector<int32_t> init(rows), want(rows * n, -1), got(rows * n, -2);
                        for (int32_t& x : init) x = static_cast<int32_t>(random() % 1000);
                        kernels.dot_cells(cells.data(), stride, lanes16, n_quads, size, coef.data(), ld, rows,
                                          init.data(), want.data(), n);
                        kernels.dot_codes(runs.data(), n_runs, 0, lanes16, size, coef.data(), ld, rows, init.data(),
                                          got.data(), n);
                        ASSERT_EQ(got, want) << to_string(target) << " lanes " << lanes16 << " rows " << rows
                                             << " coding " << first << " of " << n_runs;
                        const size_t from = random() % lanes16, n_some = 1 + random() % (lanes16 - from);
                        std::fill(got.begin(), got.end(), -2);
                        kernels.dot_codes(runs.data(), n_runs, from, n_some, size, coef.data(), ld, rows, init.data(),
                                          got.data(), n);
                        for (size_t i = 0; i < got.size(); ++i) {
                            ASSERT_EQ(got[i], i % n < 16 * n_some ? want[i + 16 * from] : -2)
                                << to_string(target) << " lanes " << from << " to " << from + n_some << " of "
                                << lanes16;
                        }
                    }
                }
            }
        }
    }
    if (n_targets == 0) GTEST_SKIP() << "no instruction set of this CPU multiplies packed codes where they lie";
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

/// The tile read four times, side by side, is `one` four times.
void expect_four_side_by_side(SimdTarget target, const TileLayout& layout, const std::byte* packed,
                              const TileLevels& one) {
    const bool key = layout.side == Side::kKey;
    const size_t n = layout.tile_tokens, dim = layout.head_dim;
    TileLevels four;
    four.reserve(dim, 4 * n);
    LevelReader reader(target, layout, packed);
    for (size_t tile = 0; tile < 4; ++tile) reader.read(packed, four, tile, 4);
    const LevelShape& shape = reader.shape();
    ASSERT_EQ(shape.stride, 4 * n);
    const auto byte = [&](const TileLevels& levels, size_t t, size_t c) {
        const size_t lane = key ? t : c, quad = key ? c : t;
        return levels.cells[quad / 4 * levels.cell_stride + lane * 4 + quad % 4];
    };
    for (size_t t = 0; t < 4 * n; ++t) {
        for (size_t c = 0; c < shape.n_channels; ++c) {
            ASSERT_EQ(byte(four, t, c), byte(one, t % n, c)) << to_string(layout.spec) << " " << to_string(target);
            const size_t block = c / shape.block;
            ASSERT_EQ(four.scale[block * 4 * n + t], one.scale[block * n + t % n]) << to_string(layout.spec);
            if (!shape.has_offset) continue;
            ASSERT_EQ(four.offset[block * 4 * n + t], one.offset[block * n + t % n]) << to_string(layout.spec);
        }
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
    specs.resize(n_affine + 6);
    std::mt19937 random(7);
    std::normal_distribution<float> normal(0.3F, 2.0F);
    for (size_t s = 0; s < specs.size(); ++s) {
        for (const size_t dim : {32U, 40U, 64U, 72U, 128U, 256U}) {
            for (const Side side : {Side::kKey, Side::kValue}) {
                const CodecSpec spec =
                    s < n_affine ? specs[s]
                                 : sample_transform(side, dim, 3 + static_cast<unsigned>(s - n_affine), s - n_affine);
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
                    LevelReader(target, layout, packed.data()).read(packed.data(), levels);
                    if (joins_tiles(layout)) expect_four_side_by_side(target, layout, packed.data(), levels);
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
