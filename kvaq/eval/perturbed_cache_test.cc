#include "kvaq/eval/perturbed_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace kvaq {
namespace {

TEST(PerturbedCache, NumbersMoveByOneStepAsOftenAsTheirSizeSays) {
    std::mt19937_64 random(1);
    for (const double x : {1.0, -1.5, 1.9, 0.37, -300.0}) {
        const float16 stored = to_float16(static_cast<float>(x));
        const double up = static_cast<double>(float16_from_bits(static_cast<uint16_t>(float16_bits(stored) + 1)));
        const double step = std::abs(up - static_cast<double>(stored));
        constexpr int kTrials = 20000;
        int moved = 0;
        double sum = 0;
        for (int i = 0; i < kTrials; ++i) {
            const float16 y = perturbed(stored, random());
            const double by = static_cast<double>(y) - static_cast<double>(stored);
            EXPECT_LE(std::abs(by), 1.001 * step);
            moved += by != 0 ? 1 : 0;
            sum += by;
        }
        const double down = x == 1.0 ? 2.0 : 1.0;  // a power of two's lower neighbour is half as far
        const double probability = std::abs(x) * kPerturbation / step * (1 + down) / 2;
        EXPECT_NEAR(static_cast<double>(moved) / kTrials, probability, 0.02) << x;
        EXPECT_NEAR(sum / kTrials / step, 0.0, 0.02) << x;
    }
}

TEST(PerturbedCache, ZeroAndTheLargestNumberStay) {
    for (uint64_t hash = 0; hash < 64; ++hash) {
        EXPECT_EQ(float16_bits(perturbed(float16{0}, hash)), 0U);
        EXPECT_EQ(static_cast<float>(perturbed(to_float16(65504.0F), hash)), 65504.0F);
        EXPECT_EQ(static_cast<float>(perturbed(to_float16(-65504.0F), hash)), -65504.0F);
    }
}

}  // namespace
}  // namespace kvaq
