#include "kvaq/quant/trellis.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "kvaq/quant/gaussian_codebook.h"
#include "kvaq/quant/trellis_search.h"

namespace kvaq {
namespace {

using Cell = std::array<float, kTrellisCell>;
using Codes = std::array<uint8_t, kTrellisCell>;

Cell normal_cell(std::mt19937& random, float sigma) {
    std::normal_distribution<float> normal(0.0F, sigma);
    Cell x;
    for (float& v : x) v = normal(random);
    return x;
}

double squared_error(unsigned bits, const Cell& x, const Codes& codes) {
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        const double e = static_cast<double>(x[i]) -
                         static_cast<double>(trellis_levels(bits)[trellis_window(bits, codes.data(), i)]);
        sum += e * e;
    }
    return sum;
}

/// Least error of any codes, in double: Viterbi's algorithm from every state to itself.
double least_error(unsigned bits, const Cell& x) {
    const size_t n_states = size_t{256} >> bits;
    double least = std::numeric_limits<double>::infinity();
    for (size_t seam = 0; seam < n_states; ++seam) {
        std::vector<double> path(n_states, std::numeric_limits<double>::infinity());
        path[seam] = 0;
        for (const float value : x) {
            std::vector<double> next(n_states, std::numeric_limits<double>::infinity());
            for (size_t s = 0; s < n_states; ++s) {
                for (size_t code = 0; code < size_t{1} << bits; ++code) {
                    const double e =
                        static_cast<double>(value) - static_cast<double>(trellis_levels(bits)[code | s << bits]);
                    double& to = next[(2 * s + code % 2) % n_states];
                    to = std::min(to, path[s] + e * e);
                }
            }
            path = next;
        }
        least = std::min(least, path[seam]);
    }
    return least;
}

TEST(Trellis, AWindowIsTheCodeAndTheLastBitsOfThoseBefore) {
    Codes codes = {};
    codes[63] = 1;
    codes[61] = 1;
    codes[0] = 2;
    EXPECT_EQ(trellis_window(2, codes.data(), 0), 2 + (1 << 2) + (1 << 4));
    EXPECT_EQ(trellis_window(2, codes.data(), 1), (1 << 3) + (1 << 5));
    EXPECT_EQ(trellis_window(2, codes.data(), 63), 1 + (1 << 3));
    EXPECT_EQ(trellis_window(6, codes.data(), 1), 1 << 7);
}

TEST(Trellis, IsWorthItsDecibelsOnANormalSource) {
    // Of kvaq/quant/trellis.h, less .15 dB for the size of the sample; Max 1960 for codebooks.
    constexpr std::array kDecibels = {0.0, 5.4, 11.2, 17.0, 22.8, 28.2, 33.0};
    std::mt19937 random(5);
    for (unsigned bits = 1; bits <= kTrellisMostBits; ++bits) {
        double error = 0;
        double plain = 0;
        double power = 0;
        const std::vector<int8_t> levels = gaussian_codebook(bits);
        for (int cell = 0; cell < 400; ++cell) {
            const Cell x = normal_cell(random, 32);
            Codes codes;
            trellis_encode(bits, x.data(), codes.data());
            EXPECT_LT(*std::max_element(codes.begin(), codes.end()), 1U << bits);
            error += squared_error(bits, x, codes);
            for (const float v : x) {
                double least = 1e9;
                for (const int8_t level : levels)
                    least = std::min(least, std::abs(static_cast<double>(v) - static_cast<double>(level)));
                plain += least * least;
                power += static_cast<double>(v) * static_cast<double>(v);
            }
        }
        EXPECT_GT(10 * std::log10(power / error), kDecibels[bits] - 0.15) << bits;
        EXPECT_LT(error, (bits == 1 || bits == 6 ? 0.85 : 0.66) * plain) << bits;
    }
}

// Codebooks of two dimensions, the other way to go below Lloyd-Max: 16 words for pairs of normal values, by Lloyd's rule.
TEST(Trellis, BeatsTwoDimensionalCodebooksAtTwoBits) {
    using Pair = std::array<double, 2>;
    std::mt19937 random(7);
    std::normal_distribution<double> normal;
    std::vector<Pair> train(40000);
    for (Pair& x : train) x = {normal(random), normal(random)};
    std::vector<Pair> words(train.begin(), train.begin() + 16);
    const auto nearest = [&](const Pair& x) {
        std::array<double, 16> distance = {};
        for (size_t w = 0; w < 16; ++w) distance[w] = std::pow(x[0] - words[w][0], 2) + std::pow(x[1] - words[w][1], 2);
        const auto least = std::min_element(distance.begin(), distance.end());
        return std::pair(static_cast<size_t>(least - distance.begin()), *least);
    };
    for (int round = 0; round < 60; ++round) {
        std::array<std::array<double, 3>, 16> sums = {};
        for (const Pair& x : train) {
            std::array<double, 3>& sum = sums[nearest(x).first];
            for (size_t i = 0; i < 3; ++i) sum[i] += i < 2 ? x[i] : 1.0;
        }
        for (size_t w = 0; w < 16; ++w) words[w] = {sums[w][0] / sums[w][2], sums[w][1] / sums[w][2]};
    }
    double trellis = 0;
    double pairs = 0;
    double power = 0;
    for (int cell = 0; cell < 400; ++cell) {
        const Cell x = normal_cell(random, 32);
        Codes codes;
        trellis_encode(2, x.data(), codes.data());
        trellis += squared_error(2, x, codes);
        for (size_t i = 0; i < x.size(); i += 2) {
            const Pair pair = {static_cast<double>(x[i]) / 32, static_cast<double>(x[i + 1]) / 32};
            pairs += 32 * 32 * nearest(pair).second;
            power += 32 * 32 * (pair[0] * pair[0] + pair[1] * pair[1]);
        }
    }
    EXPECT_NEAR(10 * std::log10(power / pairs), 9.65, 0.15);  // Lloyd-Max 9.30
    EXPECT_GT(10 * std::log10(pairs / trellis), 1.3);
}

TEST(Trellis, WhatItDecodesToIsNotTooSmall) {
    std::mt19937 random(11);
    for (unsigned bits = 1; bits <= kTrellisMostBits; ++bits) {
        double product = 0;
        double power = 0;
        for (int cell = 0; cell < 400; ++cell) {
            const Cell x = normal_cell(random, 32);
            Codes codes;
            trellis_encode(bits, x.data(), codes.data());
            for (size_t i = 0; i < x.size(); ++i) {
                const auto v = static_cast<double>(x[i]);
                product += v * static_cast<double>(trellis_outputs(bits)[trellis_window(bits, codes.data(), i)]);
                power += v * v;
            }
        }
        EXPECT_NEAR(product / power, 1.0, 0.01) << bits;
    }
}

TEST(Trellis, IsNearTheLeastErrorOfAnyCodes) {
    std::mt19937 random(7);
    for (unsigned bits = 1; bits <= kTrellisMostBits; ++bits) {
        double found = 0;
        double least = 0;
        for (int cell = 0; cell < (bits <= 2 ? 8 : 30); ++cell) {
            const Cell x = normal_cell(random, 32);
            Codes codes;
            trellis_encode(bits, x.data(), codes.data());
            const double error = squared_error(bits, x, codes);
            const double best = least_error(bits, x);
            EXPECT_GE(error, best * (1 - 1e-9));
            found += error;
            least += best;
        }
        EXPECT_LT(found, 1.05 * least) << bits;
    }
}

TEST(Trellis, EveryTargetGivesTheSameCodes) {
    if (!trellis_target_runs(TrellisTarget::kAvx512)) GTEST_SKIP() << "no AVX-512 on this CPU";
    std::mt19937 random(9);
    for (unsigned bits = 1; bits <= kTrellisMostBits; ++bits) {
        for (int cell = 0; cell < 200; ++cell) {
            Cell x = normal_cell(random, cell % 4 == 0 ? 90.0F : cell % 4 == 1 ? 5.0F : 32.0F);
            if (cell % 7 == 0) x[static_cast<size_t>(cell) % 64] = 1e6F;
            if (cell == 3) x.fill(0.0F);
            Codes plain;
            Codes wide;
            trellis_encode_on(TrellisTarget::kPlain, bits, x.data(), plain.data());
            trellis_encode_on(TrellisTarget::kAvx512, bits, x.data(), wide.data());
            EXPECT_EQ(plain, wide) << bits << " " << cell;
        }
    }
}

TEST(Trellis, EveryTargetFindsTheSameCostsOfGains) {
    constexpr size_t kN = 32, kChannels = 7;
    std::mt19937 random(13);
    std::normal_distribution<float> normal;
    std::vector<float> u(kChannels * kN), gain(kN), inverse(kN), before(kN);
    for (float& x : u) x = 60.0F * normal(random);  // some beyond all levels
    u[5] = -0.0F;
    for (size_t t = 0; t < kN; ++t) {
        gain[t] = std::exp2(normal(random));
        inverse[t] = 1.0F / gain[t];
        before[t] = std::fabs(normal(random));
    }
    for (unsigned bits = 1; bits <= kTrellisMostBits; ++bits) {
        for (const TrellisTarget target : {TrellisTarget::kPlain, TrellisTarget::kAvx512}) {
            if (!trellis_target_runs(target)) continue;
            std::vector<float> error = before, plain = before;
            trellis_add_errors_on(target, bits, u.data(), kChannels, kN, gain.data(), inverse.data(), 3.0F,
                                  error.data());
            trellis_add_errors_on(TrellisTarget::kPlain, bits, u.data(), kChannels, kN, gain.data(), inverse.data(),
                                  3.0F, plain.data());
            EXPECT_EQ(error, plain) << bits;
            for (size_t t = 0; t < kN; ++t) {
                double want = before[t];
                for (size_t c = 0; c < kChannels; ++c) {
                    const double size = std::fabs(double{u[c * kN + t]} / gain[t]);
                    const double beyond = std::max(0.0, size - 127.5);
                    const auto bin = static_cast<size_t>(std::min(size, 127.5) / double{kTrellisErrorStep});
                    want += 3.0 * gain[t] * gain[t] * (double{trellis_errors(bits)[bin]} + beyond * beyond);
                }
                EXPECT_NEAR(error[t], want, 1e-5 * want) << bits << " bits, token " << t;
            }
            std::vector<float> bad = u;
            bad[3 * kN + 1] = NAN;
            trellis_add_errors_on(target, bits, bad.data(), kChannels, kN, gain.data(), inverse.data(), 3.0F,
                                  error.data());
            EXPECT_TRUE(std::isnan(error[1]) && std::isfinite(error[2])) << bits;
        }
    }
}

TEST(Trellis, ValuesFarOutsideTakeTheOutermostLevels) {
    for (unsigned bits = 1; bits <= kTrellisMostBits; ++bits) {
        const std::array<int8_t, 256>& levels = trellis_levels(bits);
        const double top = static_cast<double>(*std::max_element(levels.begin(), levels.end()));
        for (const float v : {1e30F, -1e30F, 300.0F}) {
            Cell x = {};
            x[17] = v;
            Codes codes;
            trellis_encode(bits, x.data(), codes.data());
            const double level = static_cast<double>(levels[trellis_window(bits, codes.data(), 17)]);
            EXPECT_GT(level * (v > 0 ? 1 : -1), 0.5 * top) << bits << " " << v;
        }
    }
}

}  // namespace
}  // namespace kvaq
