// What the process really holds, beside what the planner says.
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "kvaq/llama/gguf_model.h"
#include "kvaq/plan/budget.h"
#include "tests/llama_session.h"

namespace kvaq {
namespace {

double resident_bytes() {
    std::ifstream file("/proc/self/statm");
    double size = 0;
    double resident = 0;
    file >> size >> resident;
    return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

TEST(Resident, MemoryGrowsByThePlannedBytesOverEightThousandTokens) {
    constexpr size_t kFirst = 1024;  // llama.cpp's own buffers have been touched by then
    constexpr size_t kLast = 8192;
    constexpr size_t kBatch = 512;
    std::ifstream file(std::string(KVAQ_DATA_DIR) + "/wiki-excerpt.txt");
    std::stringstream text;
    text << file.rdbuf();
    Tokens tokens = tokenize(text.str());
    ASSERT_GE(tokens.size(), kLast);
    for (const std::string plan : {"k4v4-rot-s4", "k3v2-tcq-w64-s4"}) {
        const Session session(plan, kLast + 256, 1);
        double resident = 0;
        for (size_t i = 0; i < kLast; i += kBatch) {
            if (i == kFirst) resident = resident_bytes();
            ASSERT_EQ(session.decode({tokens.begin() + static_cast<ptrdiff_t>(i),
                                      tokens.begin() + static_cast<ptrdiff_t>(i + kBatch)},
                                     static_cast<llama_pos>(i)),
                      0);
        }
        const double grown = resident_bytes() - resident;
        const Plan made = make_uniform_plan(parse_preset(plan), read_model_shape(KVAQ_MODEL));
        const auto planned = static_cast<double>(cache_bytes(made, kLast).total - cache_bytes(made, kFirst).total);
        std::printf("%s: planned %.2f MiB, resident %.2f MiB\n", plan.c_str(), planned / 1048576, grown / 1048576);
        EXPECT_NEAR(grown, planned, 0.05 * planned) << plan;
    }
}

}  // namespace
}  // namespace kvaq
