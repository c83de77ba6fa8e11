#ifdef KVAQ_WITH_CUDA

#include "kvaq/cuda/host_team.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace kvaq::cuda {
namespace {

TEST(HostTeam, EveryThreadRunsEveryRoundAndNoneLeavesABarrierEarly) {
    for (const size_t n : {1U, 2U, 5U}) {
        HostTeam team(n);
        for (int round = 0; round < 200; ++round) {
            if (round % 50 == 49) std::this_thread::sleep_for(std::chrono::milliseconds(6));  // they sleep by then
            std::vector<std::atomic<int>> seen(n);
            std::atomic<size_t> arrived{0};
            std::atomic<bool> early{false};
            team.run([&](Team& member) {
                ++seen[member.index()];
                EXPECT_EQ(member.size(), n);
                for (size_t step = 1; step <= 3; ++step) {
                    ++arrived;
                    member.barrier();
                    if (arrived.load() < step * n) early.store(true);
                    member.barrier();
                }
            });
            EXPECT_FALSE(early.load());
            for (const std::atomic<int>& count : seen) EXPECT_EQ(count.load(), 1);
        }
    }
}

}  // namespace
}  // namespace kvaq::cuda

#endif
