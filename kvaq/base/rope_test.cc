#include "kvaq/base/rope.h"

#include <gtest/gtest.h>

#include <vector>

namespace kvaq {
namespace {

TEST(TurnTable, TurnsBackAsRopeTurnDoesAndForwardAgainAlsoBeyondWhatItHasReady) {
    for (const bool interleaved : {false, true}) {
        const RopeRule rule{
            .interleaved = interleaved, .first_channel = 2, .n_dims = 8, .frequencies = {1, 0.1, 3e-3, 1e-5}};
        const TurnTable table(rule, 96, 5);
        for (const int32_t multiple : {0, 1, 4, 5, 100, -1}) {
            constexpr size_t kDim = 12;
            std::vector<float> x(3 * kDim);
            for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * i % 17) - 6.0F;
            std::vector<double> expected(x.begin(), x.end());
            RopeTurn turn;
            turn.set(rule, -96 * multiple);
            for (size_t row = 0; row < 3; ++row) turn.apply(&expected[row * kDim], &expected[row * kDim], kDim);
            std::vector<float> y = x;
            table.back(multiple, y.data(), 3, kDim);
            std::vector<double> again(y.begin(), y.end());
            table.forward(multiple, again.data(), 3, kDim);
            for (size_t i = 0; i < x.size(); ++i) {
                EXPECT_NEAR(static_cast<double>(y[i]), expected[i], 3e-6) << multiple << " " << i;
                EXPECT_NEAR(again[i], static_cast<double>(x[i]), 3e-6);
                if (i % kDim < 2 || i % kDim >= 10) {
                    EXPECT_EQ(y[i], x[i]) << "no channel of a pair";
                }
            }
        }
    }
}

}  // namespace
}  // namespace kvaq
