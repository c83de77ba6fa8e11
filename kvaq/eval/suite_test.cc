// A few items of every task on the small model: facts that do not depend on one machine's rounding.
#include "kvaq/eval/suite.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "kvaq/base/error.h"
#include "kvaq/eval/compare.h"
#include "kvaq/eval/task_parts.h"

namespace kvaq {
namespace {

const auto kSilent = [](size_t, size_t, const std::string&) {};

TaskRequest& asked(SuiteRequest& request) { return request.tasks[0].request; }

SuiteRequest request_for(const std::string& task) {
    SuiteRequest request;
    request.model = KVAQ_MODEL;
    request.tasks = {{task, {}}};
    request.plans = {"f16", "k1v1"};
    request.n_batch = 256;
    if (task_reads_text(task)) asked(request).text = KVAQ_DATA_DIR "/wiki-excerpt.txt";
    if (task == "hellaswag") asked(request).data = KVAQ_DATA_DIR "/hellaswag-excerpt.txt";
    if (task == "gsm8k") asked(request).data = KVAQ_DATA_DIR "/gsm8k-excerpt.jsonl";
    return request;
}

/// Mean of a metric in a row: 0 the reference, 1 our f16, 2 one bit.
double mean(const SuiteResult& result, size_t row, const std::string& metric) {
    const TaskScores& task = result.tasks[0];
    for (size_t m = 0; m < task.metrics.size(); ++m) {
        if (task.metrics[m].name == metric) return clustered_mean(samples_of(task, row, m, nullptr)).value;
    }
    ADD_FAILURE() << "no metric " << metric;
    return 0;
}

template <typename Function>
std::string error_of(Function function) {
    try {
        function();
    } catch (const Error& error) {
        return error.what();
    }
    return "no error";
}

TEST(Suite, DepthIsWhatCompareMeasuresAndGoesOnWhereItStopped) {
    SuiteRequest request = request_for("depth");
    asked(request).lengths = {1024};
    asked(request).n_items = 2;
    request.results = std::filesystem::temp_directory_path() / ("kvaq_suite_" + std::to_string(::getpid()));
    struct Stop {};
    EXPECT_THROW((void)run_suite(request, [](size_t, size_t, const std::string&) { throw Stop(); }), Stop);
    size_t calls = 0;
    const SuiteResult result = run_suite(request, [&](size_t done, size_t total, const std::string& what) {
        ++calls;
        EXPECT_EQ(done, 1024U);
        EXPECT_EQ(total, 1024U) << "the first item was done before";
        EXPECT_EQ(what, "depth 2/2");
    });
    EXPECT_EQ(calls, 1U);
    const SuiteResult read = run_suite(request, [](size_t, size_t, const std::string&) { FAIL() << "all was done"; });
    EXPECT_EQ(suite_json(read, "x"), suite_json(result, "x"));
    std::filesystem::remove(request.results);

    CompareRequest compared;
    compared.model = request.model;
    compared.text = asked(request).text;
    compared.plans = {"k1v1"};
    compared.n_ctx = 1024;
    compared.n_chunks = 2;
    compared.n_batch = request.n_batch;
    compared.control = false;
    const CompareResult wanted = compare(compared, kSilent);
    const TaskScores& task = result.tasks[0];
    EXPECT_EQ(groups_of(task), (std::vector<std::string>{"256", "512", "1024"}));
    const std::string group = "1024";
    const auto of_group = [&](size_t row, size_t m) { return clustered_mean(samples_of(task, row, m, &group)).value; };
    EXPECT_NEAR(std::exp(of_group(0, 0)), wanted.rows[0].summary.perplexity.value, 1e-6);
    EXPECT_NEAR(std::exp(of_group(2, 0)), wanted.rows[1].summary.perplexity.value, 1e-5);
    EXPECT_NEAR(of_group(2, 1), wanted.rows[1].summary.mean_kl.value, 1e-9);
    EXPECT_NEAR(of_group(2, 2), wanted.rows[1].summary.same_top.value, 1e-9);
    EXPECT_EQ(of_group(0, 3), 1.0);
    EXPECT_GT(of_group(1, 3), 0.9);  // of the ten most likely tokens
    EXPECT_LT(of_group(2, 3), of_group(1, 3));
    const std::string table = suite_markdown(result, "kvaq eval ...");
    EXPECT_NE(table.find("| k1v1 |"), std::string::npos) << table;
    EXPECT_NE(table.find("KL (nats) over position"), std::string::npos) << table;
    const nlohmann::json json = nlohmann::json::parse(suite_json(result, "kvaq eval ..."));
    EXPECT_EQ(json["kind"], "kvaq.suite");
    EXPECT_EQ(json["tasks"][0]["metrics"][0]["groups"].size(), 3U);
    EXPECT_EQ(json["tasks"][0]["metrics"][0]["groups"][2]["caches"][2]["test"], "sign flip");
}

TEST(Suite, HellaswagsChoicesAreThoseOfWholeTexts) {
    SuiteRequest request = request_for("hellaswag");
    asked(request).n_items = 4;
    asked(request).shots = 0;
    const SuiteResult result = run_suite(request, kSilent);
    EXPECT_EQ(mean(result, 0, "same choice as f16"), 1);
    EXPECT_GE(mean(result, 1, "same choice as f16"), 0.5);
    // The first item of llama-perplexity's order, every ending scored in a sequence of its own.
    const std::vector<ItemScore>& first = result.tasks[0].by_item.at(0);
    const ModelPtr model = load_model(KVAQ_MODEL);
    const std::vector<std::string> lines = text_lines(KVAQ_DATA_DIR "/hellaswag-excerpt.txt", "");
    std::mt19937 random(1);
    const size_t item = std::uniform_int_distribution<size_t>(0, 11)(random);
    CacheSession session(model.get(), cache_rows(model_shape_of(model.get()), {}, {})[0], 512, 1, 256, 2);
    double best = -1e9;
    size_t choice = 0;
    std::array<std::vector<llama_token>, 4> whole;
    for (size_t e = 0; e < 4; ++e) {
        whole[e] = start_of_text(model.get());
        const std::vector<llama_token> part =
            tokenize_part(model.get(), lines[item * 6] + " " + lines[item * 6 + 2 + e]);
        whole[e].insert(whole[e].end(), part.begin(), part.end());
    }
    size_t shared = whole[0].size();
    for (const auto& one : whole) shared = std::min(shared, agreed_tokens(one, whole[0]));
    for (size_t e = 0; e < 4; ++e) {
        session.clear();
        const auto all = std::span(whole[e]);
        const Forced forced = force(session, 0, all.first(shared), all.subspan(shared), nullptr);
        if (mean_value(forced.nll) < -best) {
            best = -mean_value(forced.nll);
            choice = e;
        }
    }
    EXPECT_EQ(first[0].text, std::to_string(choice));
}

TEST(Suite, HellaswagReadsExamplesThroughTheCache) {
    SuiteRequest request = request_for("hellaswag");
    asked(request).n_items = 3;
    asked(request).shots = 8;
    const SuiteResult result = run_suite(request, kSilent);
    EXPECT_GT(result.tasks[0].n_context, 300U);
    EXPECT_EQ(result.tasks[0].by_item.size(), 3U);
    asked(request).n_items = 5;
    EXPECT_NE(error_of([&] { (void)run_suite(request, kSilent); }).find("12 tasks"), std::string::npos);
}

TEST(Suite, Gsm8kScoresGeneratedAnswers) {
    SuiteRequest request = request_for("gsm8k");
    asked(request).n_items = 2;
    asked(request).shots = 2;
    asked(request).max_tokens = 24;
    const SuiteResult result = run_suite(request, kSilent);
    EXPECT_EQ(mean(result, 0, "f16's text"), 1);
    EXPECT_GT(mean(result, 1, "agreed with f16"), mean(result, 2, "agreed with f16"));
    EXPECT_LE(mean(result, 0, "agreed with f16"), 24);
    EXPECT_FALSE(result.tasks[0].by_item.at(0)[0].text.empty());
}

TEST(Suite, NeedlesAndPasskeysAreFoundByF16AndNotByOneBit) {
    SuiteRequest request = request_for("needle");
    asked(request).lengths = {512};
    asked(request).n_items = 1;
    const SuiteResult needle = run_suite(request, kSilent);
    EXPECT_EQ(places_of(needle.tasks[0]).size(), 8U);
    EXPECT_LT(mean(needle, 0, "NLL"), mean(needle, 2, "NLL"));
    EXPECT_LT(mean(needle, 1, "KL"), 0.05);
    EXPECT_GT(mean(needle, 2, "KL"), 0.5);
    request = request_for("passkey");
    asked(request).lengths = {512};
    asked(request).n_items = 2;
    const SuiteResult passkey = run_suite(request, kSilent);
    EXPECT_EQ(places_of(passkey.tasks[0]), (std::vector<size_t>{10, 30}));
    EXPECT_LT(mean(passkey, 0, "NLL"), 1);  // chance: ln 10 = 2.3
    EXPECT_GT(mean(passkey, 2, "NLL"), mean(passkey, 0, "NLL"));
}

TEST(Suite, CopiesAreMadeByF16AndNotByOneBit) {
    SuiteRequest request = request_for("copy");
    asked(request).lengths = {256};
    asked(request).n_items = 2;
    const SuiteResult result = run_suite(request, kSilent);
    EXPECT_EQ(groups_of(result.tasks[0]), (std::vector<std::string>{"random 256", "list 256"}));
    EXPECT_GT(mean(result, 0, "exact"), 0.7);
    EXPECT_GT(mean(result, 1, "same top-1"), 0.9);
    EXPECT_LT(mean(result, 2, "exact"), mean(result, 0, "exact") - 0.2);
}

TEST(Suite, ToolCallsAreParsed) {
    SuiteRequest request = request_for("json");
    asked(request).lengths = {512};
    asked(request).n_items = 2;
    const SuiteResult result = run_suite(request, kSilent);
    EXPECT_EQ(mean(result, 0, "valid JSON"), 1);
    EXPECT_EQ(mean(result, 0, "shaped"), 1);
    EXPECT_LT(mean(result, 2, "agreed with f16"), mean(result, 0, "agreed with f16"));
}

TEST(Suite, GreedyTextPartsFromF16Later) {
    SuiteRequest request = request_for("diverge");
    asked(request).lengths = {256};
    asked(request).n_items = 2;
    asked(request).max_tokens = 24;
    const SuiteResult result = run_suite(request, kSilent);
    EXPECT_EQ(mean(result, 0, "agreed with f16"), 24);
    EXPECT_GT(mean(result, 1, "agreed with f16"), mean(result, 2, "agreed with f16"));
    EXPECT_EQ(mean(result, 2, "never parted"), 0);
}

TEST(Suite, TheSecondTurnContinuesTheFirst) {
    SuiteRequest request = request_for("chat");
    asked(request).lengths = {256};
    asked(request).n_items = 2;
    asked(request).max_tokens = 24;
    const SuiteResult result = run_suite(request, kSilent);
    for (const auto& [item, scores] : result.tasks[0].by_item) {
        EXPECT_GT(scores[0].text.size(), 20U);
        EXPECT_EQ(scores[0].text.find("<|im"), std::string::npos) << scores[0].text;
    }
    EXPECT_LE(mean(result, 0, "repetition"), 0.8);
}

TEST(Suite, RefusesBadRequestsByName) {
    SuiteRequest request = request_for("depth");
    const auto error = [&] { return error_of([&] { (void)run_suite(request, kSilent); }); };
    request.tasks[0].name = "chess";
    EXPECT_NE(error().find("hellaswag"), std::string::npos) << error();
    request.tasks = {{"gsm8k", {}}};
    EXPECT_NE(error().find("gsm8k=FILE"), std::string::npos) << error();
    asked(request).data = KVAQ_DATA_DIR "/hellaswag-excerpt.txt";
    EXPECT_NE(error().find("line 1 of"), std::string::npos) << error();
    request = request_for("copy");
    asked(request).data = "x";
    EXPECT_NE(error().find("no data file"), std::string::npos) << error();
    request = request_for("needle");
    asked(request).lengths = {64};
    EXPECT_NE(error().find("256 to 8192"), std::string::npos) << error();
    request = request_for("copy");
    request.types = {"q9_9"};
    EXPECT_NE(error().find("q9_9"), std::string::npos) << error();
    request = request_for("copy");
    request.plans = {"k4v2", "k4v2"};
    EXPECT_NE(error().find("twice"), std::string::npos) << error();
}

TEST(MadeUpText, IsTheSameEverywhere) {
    MadeUpText a(1, "test", 0);
    MadeUpText b(1, "test", 0);
    MadeUpText c(1, "test", 1);
    const std::string text = a.sentences(3);
    EXPECT_EQ(text, b.sentences(3));
    EXPECT_NE(text, c.sentences(3));
    MadeUpText range(7, "range", 0);
    uint32_t low = 9;
    uint32_t high = 0;
    for (int i = 0; i < 1000; ++i) {
        const uint32_t x = range.integer(3, 6);
        low = std::min(low, x);
        high = std::max(high, x);
    }
    EXPECT_EQ(low, 3U);
    EXPECT_EQ(high, 6U);
}

}  // namespace
}  // namespace kvaq
