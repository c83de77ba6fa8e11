#include "kvaq/eval/speed.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

const char* const kLine =
    R"({"build_commit": "x", "cpu_info": "A CPU, fast", "backends": "CPU", "model_type": "llama ?B Q4_1", "model_size": 98000000, "model_n_params": 134515008, "n_prompt": 0, "n_gen": 32, "n_depth": 4096, "avg_ts": 114.25, "stddev_ts": 0.5})";

SpeedRuns two_rounds() {
    SpeedRuns runs;
    runs.caches = {"k4v4-rot", "f16", "q4_0"};
    runs.n_plans = 1;
    runs.tests = {{.n_prompt = 0, .n_gen = 32, .depth = 4096}, {.n_prompt = 512, .n_gen = 0, .depth = 0}};
    // The second round is three times slower for all: ratios must not see it.
    runs.speeds = {{{90, 30}, {60, 20}, {30, 10}}, {{500, 510}, {1000, 1020}, {250, 255}}};
    runs.about = parse_llama_bench(kLine, "a run");
    runs.n_threads = 2;
    runs.command = "kvaq bench";
    runs.flags = "-t 2";
    return runs;
}

TEST(Speed, ReadsWhatLlamaBenchPrints) {
    const SpeedSample sample = parse_llama_bench(std::string("a warning\n") + kLine + "\n\n", "a run");
    EXPECT_EQ(sample.test, (SpeedTest{.n_prompt = 0, .n_gen = 32, .depth = 4096}));
    EXPECT_EQ(sample.test.name(), "tg32 @ d4096");
    EXPECT_DOUBLE_EQ(sample.tokens_per_second, 114.25);
    EXPECT_EQ(sample.cpu, "A CPU, fast");
}

TEST(Speed, SaysWhichRunPrintedNoResult) {
    for (const char* output : {"", "error: no model\n", "{broken\n", R"({"n_prompt": 1})"}) {
        try {
            (void)parse_llama_bench(output, "q4_0, tg32");
            FAIL() << output;
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find("q4_0, tg32"), std::string::npos) << error.what();
        }
    }
}

TEST(Speed, SpreadIsMedianLeastAndMost) {
    const Spread odd = spread_of({3, 1, 2});
    EXPECT_DOUBLE_EQ(odd.median, 2);
    EXPECT_DOUBLE_EQ(odd.least, 1);
    EXPECT_DOUBLE_EQ(odd.most, 3);
    EXPECT_DOUBLE_EQ(spread_of({4, 1, 2, 3}).median, 2.5);
}

TEST(Speed, RatiosAreWithinRounds) {
    const SpeedRuns runs = two_rounds();
    const Spread ratio = runs.ratio(0, 0, 1);
    EXPECT_DOUBLE_EQ(ratio.median, 1.5);
    EXPECT_DOUBLE_EQ(ratio.least, 1.5);
    EXPECT_DOUBLE_EQ(ratio.most, 1.5);
    EXPECT_DOUBLE_EQ(runs.ratio(0, 0, 2).median, 3);
}

TEST(Speed, TableHasARowPerTestAndCacheAndARatioPerType) {
    const std::string table = speed_markdown(two_rounds());
    EXPECT_NE(table.find("| t/s | x f16 | x q4_0 |"), std::string::npos) << table;
    EXPECT_NE(table.find(
                  "| kvaq k4v4-rot | tg32 @ d4096 | 60.0 (30.0 to 90.0) | 1.50 (1.50 to 1.50) | 3.00 (3.00 to 3.00) |"),
              std::string::npos)
        << table;
    EXPECT_NE(table.find("| llama.cpp f16 | pp512 | 1010.0 (1000.0 to 1020.0) | | 4.00 (4.00 to 4.00) |"),
              std::string::npos)
        << table;
    EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 2 + 2 + 6);
}

TEST(Speed, WhatDepthCostsIsWithinRoundsToo) {
    SpeedRuns runs = two_rounds();
    EXPECT_FALSE(runs.depth_range());
    EXPECT_EQ(speed_markdown(runs).find("1024 tokens more"), std::string::npos);
    runs.tests.push_back({.n_prompt = 0, .n_gen = 32, .depth = 0});
    runs.speeds.push_back({{100, 50}, {100, 50}, {100, 50}});
    const auto range = runs.depth_range();
    ASSERT_TRUE(range);
    EXPECT_EQ(*range, (std::pair<size_t, size_t>{2, 0}));
    // 4096 tokens: (1000 / 60 - 1000 / 100) / 4 and (1000 / 20 - 1000 / 50) / 4 of f16
    const std::vector<double> f16 = runs.depth_cost(*range, 1);
    ASSERT_EQ(f16.size(), 2U);
    EXPECT_NEAR(f16[0], 1.6667, 1e-4);
    EXPECT_NEAR(f16[1], 7.5, 1e-9);
    const std::string table = speed_markdown(runs);
    EXPECT_NE(table.find("from depth 0 to 4096"), std::string::npos) << table;
    // The plan's: .2778 and 3.3333, so .1667 and .4444 times f16's
    EXPECT_NE(table.find("| kvaq k4v4-rot | 1.806 (0.278 to 3.333) | 0.31 (0.17 to 0.44) |"), std::string::npos)
        << table;
    const nlohmann::json json = nlohmann::json::parse(speed_json(runs));
    EXPECT_EQ(json.at("depth_cost").at("to"), 4096);
    EXPECT_NEAR(json["depth_cost"]["columns"][1].at("max").get<double>(), 7.5, 1e-9);
}

TEST(Speed, CsvHasEveryRoundAndQuotesCommas) {
    const std::string csv = speed_csv(two_rounds());
    EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 1 + 2 * 3 * 2);
    EXPECT_NE(csv.find(R"(,"A CPU, fast",2,kvaq k4v4-rot,0,32,4096,2,30.0000)"), std::string::npos) << csv;
}

TEST(Speed, JsonKeepsDecodeAndPrefillApart) {
    const nlohmann::json json = nlohmann::json::parse(speed_json(two_rounds()));
    EXPECT_EQ(json.at("kind"), "kvaq.speed");
    EXPECT_EQ(json.at("columns"), (nlohmann::json{"kvaq k4v4-rot", "llama.cpp f16", "llama.cpp q4_0"}));
    ASSERT_EQ(json.at("rows").size(), 1U);
    ASSERT_EQ(json.at("prefill").size(), 1U);
    EXPECT_EQ(json["rows"][0].at("depth"), 4096);
    EXPECT_EQ(json["rows"][0]["speeds"][0].at("median"), 60.0);
    EXPECT_EQ(json["rows"][0]["speeds"][0]["ratios"]["f16"].at("median"), 1.5);
    EXPECT_FALSE(json["rows"][0]["speeds"][1]["ratios"].contains("f16"));
    EXPECT_EQ(json["prefill"][0].at("prompt"), 512);
}

}  // namespace
}  // namespace kvaq
