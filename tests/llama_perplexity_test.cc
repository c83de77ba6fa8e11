// kvaq eval against llama-perplexity's own numbers: the same text, chunks and plan through the drop-in.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <regex>

#include "tests/subprocess.h"

namespace kvaq {
namespace {

const std::string kText = std::string(KVAQ_DATA_DIR) + "/wiki-excerpt.txt";

/// The number behind `name` in the tables that llama-perplexity --kl-divergence ends with.
double number_of(const std::string& text, const std::string& name) {
    std::smatch found;
    if (!std::regex_search(text, found, std::regex(name + "\\s*:\\s*([0-9.]+)"))) {
        ADD_FAILURE() << "no " << name << " in\n" << text;
        return 0;
    }
    return std::stod(found[1]);
}

TEST(LlamaPerplexity, KlAndPerplexityAgreeWithOursWithinOnePercent) {
    const TemporaryFolder folder;
    const std::string base = folder.file("f16.logits");
    const std::vector<std::string> common = {KVAQ_BIN_DIR "/llama-perplexity",
                                             "-m",
                                             KVAQ_MODEL,
                                             "-t",
                                             "2",
                                             "-c",
                                             "512",
                                             "-b",
                                             "512",
                                             "-ub",
                                             "512",
                                             "-fa",
                                             "on",
                                             "--kl-divergence-base",
                                             base};
    const auto llama_perplexity = [&](std::vector<std::string> more, const std::string& plan) {
        std::vector<std::string> command = common;
        command.insert(command.end(), more.begin(), more.end());
        ProcessOptions options{.env = {}, .timeout_seconds = 400};
        if (!plan.empty()) options.env = {{"LD_PRELOAD", KVAQ_LIB}, {"KVAQ_PLAN", plan}};
        const ProcessResult result = run_process(command, options);
        EXPECT_EQ(result.exit_code, 0) << result.err;
        return result.out + result.err;
    };
    (void)llama_perplexity({"-f", kText, "--chunks", "4"}, "");
    const ProcessResult ours = run_process(
        {KVAQ_CLI, "eval", "-m", KVAQ_MODEL, "-f",       kText,     "-c",   "512",          "--chunks", "4", "-b",
         "512",    "-t",   "2",  "--plan",   "k4v2-rot", "--types", "q4_0", "--no-control", "--json",   "-"},
        {.env = {}, .timeout_seconds = 400});
    ASSERT_EQ(ours.exit_code, 0) << ours.err;
    const nlohmann::json rows = nlohmann::json::parse(ours.out).at("rows");
    ASSERT_EQ(rows.size(), 3U);
    const auto check = [&](const nlohmann::json& row, const std::string& theirs) {
        SCOPED_TRACE(row.at("name").get<std::string>());
        const double ppl = row.at("perplexity").at("value");
        const double kl = row.at("mean_kl").at("value");
        const double same = row.at("same_top").at("value");
        EXPECT_GT(kl, 0.01) << "too little to compare";
        EXPECT_NEAR(number_of(theirs, "Mean PPL\\(Q\\)") / ppl, 1, 0.01);
        EXPECT_NEAR(number_of(theirs, "Mean PPL\\(base\\)") / rows[0].at("perplexity").at("value").get<double>(), 1,
                    0.01);
        EXPECT_NEAR(number_of(theirs, "Mean    KLD") / kl, 1, 0.01);
        EXPECT_NEAR(number_of(theirs, "Same top p"), 100 * same, 0.5);
    };
    check(rows[1], llama_perplexity({"--kl-divergence", "-ctk", "q4_0", "-ctv", "q4_0"}, ""));
    check(rows[2], llama_perplexity({"--kl-divergence"}, "k4v2-rot"));
}

TEST(LlamaPerplexity, HellaswagScoresAreOurs) {
    const std::string data = std::string(KVAQ_DATA_DIR) + "/hellaswag-excerpt.txt";
    const ProcessResult theirs =
        run_process({KVAQ_BIN_DIR "/llama-perplexity", "-m", KVAQ_MODEL, "-t", "2", "-c", "1024", "-fa", "on",
                     "--hellaswag", "--hellaswag-tasks", "12", "-f", data},
                    {.env = {}, .timeout_seconds = 300});
    ASSERT_EQ(theirs.exit_code, 0) << theirs.err;
    std::smatch found;
    const std::string text = theirs.out + theirs.err;
    ASSERT_TRUE(std::regex_search(text, found, std::regex("\n12\t([0-9.]+)%"))) << text;
    const ProcessResult ours = run_process({KVAQ_CLI, "eval", "-m", KVAQ_MODEL, "--task", "hellaswag", "--task-data",
                                            data, "--shots", "0", "--items", "12", "-t", "2", "--json", "-"},
                                           {.env = {}, .timeout_seconds = 300});
    ASSERT_EQ(ours.exit_code, 0) << ours.err;
    const nlohmann::json metric = nlohmann::json::parse(ours.out).at("tasks").at(0).at("metrics").at(0);
    EXPECT_EQ(metric.at("name"), "acc_norm");
    const double share = metric.at("groups").at(0).at("caches").at(0).at("mean").at("value");
    EXPECT_NEAR(100 * share, std::stod(found[1]), 100.0 / 12 + 0.01)
        << "batches of other sizes may turn one close choice";
}

}  // namespace
}  // namespace kvaq
