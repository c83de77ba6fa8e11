#include "kvaq/report/report_input.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

std::string committed(const std::string& name) {
    std::ostringstream text;
    text << std::ifstream(std::string(KVAQ_DATA_DIR) + "/../results/" + name, std::ios::binary).rdbuf();
    return text.str();
}

/// The message of the error that a call throws, which must have that code.
template <class F>
std::string message_of(ErrorCode code, const F& call) {
    try {
        call();
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), code) << error.what();
        return error.what();
    }
    ADD_FAILURE() << "nothing thrown";
    return "";
}

void expect_names(const std::string& message, const std::vector<std::string>& things) {
    for (const std::string& thing : things)
        EXPECT_NE(message.find(thing), std::string::npos) << thing << " in: " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

TEST(ReportInput, ReadsWhatEvalWrites) {
    const std::string text = committed("quality-smollm2-135m.json");
    const auto json = nlohmann::json::parse(text);
    const EvalTable table = parse_eval(text, "q.json");
    ASSERT_EQ(table.rows.size(), json["rows"].size());
    for (size_t i = 0; i < table.rows.size(); ++i) {
        EXPECT_EQ(table.rows[i].name, json["rows"][i]["name"]);
        EXPECT_EQ(table.rows[i].kl.value, json["rows"][i]["mean_kl"]["value"].get<double>());
        EXPECT_EQ(table.rows[i].same_top.error, json["rows"][i]["same_top"]["standard_error"].get<double>());
        const auto& predicted = json["rows"][i].value("predicted_kl", nlohmann::json());
        EXPECT_EQ(table.rows[i].predicted_kl, predicted.is_number() ? predicted.get<double>() : -1);
    }
    EXPECT_EQ(table.n_ctx, 4096U);
    EXPECT_EQ(table.n_scored, 8188U);
}

TEST(ReportInput, ReadsWhatTheSuiteWrites) {
    const std::string text = committed("suite-smollm2-135m.json");
    const auto json = nlohmann::json::parse(text);
    const SuiteTable suite = parse_suite(text, "t.json");
    ASSERT_EQ(suite.tasks.size(), json["tasks"].size());
    for (size_t t = 0; t < suite.tasks.size(); ++t) {
        const auto& task = json["tasks"][t];
        EXPECT_EQ(suite.tasks[t].bits.size(), json["caches"].size());
        ASSERT_EQ(suite.tasks[t].metrics.size(), task["metrics"].size());
        for (size_t m = 0; m < suite.tasks[t].metrics.size(); ++m) {
            const auto& groups = task["metrics"][m]["groups"];
            ASSERT_EQ(suite.tasks[t].metrics[m].groups.size(), groups.size());
            for (size_t g = 0; g < groups.size(); ++g) {
                size_t next = 0;  // caches without a score are left out
                for (size_t c = 0; c < suite.caches.size(); ++c) {
                    const auto& score = suite.tasks[t].metrics[m].groups[g].scores[c];
                    if (!score) continue;
                    const auto& wanted = groups[g]["caches"][next++];
                    EXPECT_EQ(suite.caches[c].name, wanted["cache"]);
                    EXPECT_EQ(score->mean.value, wanted["mean"]["value"].get<double>());
                    EXPECT_EQ(score->difference.has_value(), wanted.contains("difference"));
                    if (score->difference) {
                        EXPECT_EQ(score->p, wanted["p"].get<double>());
                    }
                }
                EXPECT_EQ(next, groups[g]["caches"].size());
            }
        }
    }
    auto damaged = json;
    damaged["tasks"][0]["metrics"][0]["groups"][0]["caches"][1]["cache"] = "q9_0";
    expect_names(message_of(ErrorCode::kCorrupt, [&] { (void)parse_suite(damaged.dump(), "t.json"); }),
                 {"t.json", "q9_0"});
    damaged = json;
    damaged["tasks"][0]["effective_bits"].erase(0);
    expect_names(message_of(ErrorCode::kCorrupt, [&] { (void)parse_suite(damaged.dump(), "t.json"); }),
                 {"t.json", "effective_bits"});
    expect_names(message_of(ErrorCode::kMismatch, [&] { (void)parse_eval(text, "t.json"); }), {"t.json", "--suite"});
}

TEST(ReportInput, TakesNullForANumberThatIsNone) {
    auto json = nlohmann::json::parse(committed("quality-smollm2-135m.json"));
    json["rows"][3]["perplexity"]["value"] = nullptr;
    EXPECT_TRUE(std::isnan(parse_eval(json.dump(), "q.json").rows[3].perplexity.value));
}

TEST(ReportInput, SaysWhatAForeignFileIsAndWhereItGoes) {
    const std::string speed = committed("speed-smollm2-135m.json");
    expect_names(message_of(ErrorCode::kMismatch, [&] { (void)parse_eval(speed, "s.json"); }),
                 {"s.json", "kvaq.eval", "kvaq.speed", "--speed"});
    expect_names(
        message_of(ErrorCode::kMismatch, [&] { (void)parse_speed(committed("quality-smollm2-135m.json"), "q.json"); }),
        {"q.json", "--eval"});
    expect_names(message_of(ErrorCode::kMismatch, [&] { (void)parse_analysis("{\"w_k\": [1]}", "n.json"); }),
                 {"n.json", "no kind", "kvaq analyze --json"});
    expect_names(message_of(ErrorCode::kCorrupt, [&] { (void)parse_eval("", "e.json"); }), {"e.json", "empty"});
    expect_names(message_of(ErrorCode::kCorrupt, [&] { (void)parse_eval("GGUF\x03", "p.gguf"); }),
                 {"p.gguf", "--plan"});
    expect_names(message_of(ErrorCode::kCorrupt, [&] { (void)parse_eval("[1, 2]", "l.json"); }), {"l.json"});
}

TEST(ReportInput, SaysWhatADamagedFileLacks) {
    auto json = nlohmann::json::parse(committed("quality-smollm2-135m.json"));
    auto damaged = json;
    damaged["rows"][2].erase("mean_kl");
    expect_names(message_of(ErrorCode::kCorrupt, [&] { (void)parse_eval(damaged.dump(), "q.json"); }),
                 {"q.json", "mean_kl", "Make it again"});
    damaged = json;
    damaged["rows"][2]["name"] = 7;
    expect_names(message_of(ErrorCode::kCorrupt, [&] { (void)parse_eval(damaged.dump(), "q.json"); }), {"q.json"});
    damaged = json;
    damaged["n_ctx"] = -4096;
    expect_names(message_of(ErrorCode::kCorrupt, [&] { (void)parse_eval(damaged.dump(), "q.json"); }),
                 {"q.json", "-4096"});
    damaged = json;
    damaged["rows"] = nlohmann::json::array();
    expect_names(message_of(ErrorCode::kCorrupt, [&] { (void)parse_eval(damaged.dump(), "q.json"); }), {"no rows"});
    damaged = json;
    damaged["schema_version"] = 2;
    expect_names(message_of(ErrorCode::kMismatch, [&] { (void)parse_eval(damaged.dump(), "q.json"); }),
                 {"q.json", "schema version"});
    auto speed = nlohmann::json::parse(committed("speed-smollm2-135m.json"));
    speed["rows"][0]["speeds"].erase(0);
    expect_names(message_of(ErrorCode::kCorrupt, [&] { (void)parse_speed(speed.dump(), "s.json"); }),
                 {"s.json", std::to_string(speed["columns"].size()) + " speeds"});
}

TEST(ReportInput, RefusesInputsOfDifferentModels) {
    ReportInput input;
    input.evals.push_back(parse_eval(committed("quality-smollm2-135m.json"), "smol.json"));
    input.frontier = parse_eval(committed("kivj-gemma-3-270m.json"), "gemma.json");
    expect_names(message_of(ErrorCode::kMismatch, [&] { settle_model(input); }),
                 {"different models", "smol.json", "gemma.json"});
    ReportInput none;
    expect_names(message_of(ErrorCode::kInvalidArgument, [&] { settle_model(none); }), {"--plan", "--speed"});
}

}  // namespace
}  // namespace kvaq
