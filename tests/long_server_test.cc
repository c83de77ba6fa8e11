// llama-server beyond its context (--context-shift) and beyond a model's sliding windows, plain and under plans.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/llama_session.h"
#include "tests/subprocess.h"

namespace kvaq {
namespace {

const std::string kTests = std::string(KVAQ_DATA_DIR) + "/../tests";
const std::string kGemma = std::string(KVAQ_DATA_DIR) + "/../.deps/model/gemma-3-270m-q4_k_m.gguf";

nlohmann::json session(const std::string& plan, std::vector<std::string> arguments) {
    const ProcessOptions options{
        .env = plan.empty()
                   ? std::map<std::string, std::string>{}
                   : std::map<std::string, std::string>{{"KVAQ_TEST_PRELOAD", KVAQ_LIB}, {"KVAQ_TEST_PLAN", plan}},
        .timeout_seconds = 280};
    arguments.insert(arguments.begin(), {"python3", kTests + "/long_server_client.py"});
    const ProcessResult result = run_process(arguments, options);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.exit_code == 0 ? nlohmann::json::parse(result.out) : nlohmann::json();
}

void expect_no_errors(const nlohmann::json& seen) {
    EXPECT_EQ(seen.at("exit_code"), 0);
    for (const std::string line : seen.at("kvaq_lines")) EXPECT_NE(line.rfind("kvaq: error: ", 0), 0U) << line;
}

/// Mean surprise (nats a token) of plain llama.cpp, in a context that holds all of it, at the end of a text.
double surprise_at_the_end(const std::string& text) {
    const Tokens tokens = tokenize(text.substr(text.size() - std::min<size_t>(text.size(), 1800)));
    const Session plain("");
    double sum = 0;
    size_t n = 0;
    for (size_t i = 0; i + 1 < tokens.size(); ++i) {
        if (plain.decode({tokens[i]}, static_cast<llama_pos>(i)) != 0) throw std::runtime_error("decode failed");
        if (i < 40) continue;  // the cut beginning
        sum += surprise(plain.logits().data(), plain.n_vocab(), tokens[i + 1]);
        ++n;
    }
    return sum / static_cast<double>(n);
}

TEST(LongServer, AnAnswerFarLongerThanTheContextReadsAsWellAsPlainLlamaCpps) {
    double plain = 0;
    for (const std::string plan : {"", "f16", "k4v4-rot-s4"}) {
        const nlohmann::json seen = session(plan, {"shift", std::string(KVAQ_BIN_DIR) + "/llama-server", KVAQ_MODEL});
        ASSERT_TRUE(seen.is_object()) << plan;
        SCOPED_TRACE("plan '" + plan + "': " + seen.dump(1).substr(0, 6000));
        expect_no_errors(seen);
        const nlohmann::json& answer = seen.at("long");
        EXPECT_EQ(answer.at("status"), 200);
        EXPECT_EQ(answer.at("tokens"), 900) << "the context holds 256";
        EXPECT_EQ(answer.at("truncated"), true);
        EXPECT_EQ(answer.at("stop_type"), "limit");
        const double nats = surprise_at_the_end(answer.at("text"));
        std::printf("plan '%s': %.3f nats a token\n", plan.c_str(), nats);
        if (plan.empty()) plain = nats;
        EXPECT_LT(nats, plain + 0.7) << "plain: " << plain;
        EXPECT_GT(nats, 1) << "it only repeats itself";
        EXPECT_EQ(seen.at("after").at("status"), 200);
        EXPECT_NE(seen.at("after").at("text").get<std::string>().find("Paris"), std::string::npos);
    }
}

TEST(LongServer, PromptsBeyondTheSlidingWindowAreReusedAsPlainLlamaCppReusesThem) {
    if (!std::filesystem::exists(kGemma)) GTEST_SKIP() << "no gemma-3-270m here; scripts/fetch_gemma.sh fetches it";
    std::map<std::string, nlohmann::json> seen;
    for (const std::string plan : {"", "f16", "k4v4-rot-s4"}) {
        seen[plan] = session(plan, {"window", std::string(KVAQ_BIN_DIR) + "/llama-server", kGemma,
                                    std::string(KVAQ_DATA_DIR) + "/wiki-excerpt.txt"});
        ASSERT_TRUE(seen[plan].is_object()) << plan;
        SCOPED_TRACE("plan '" + plan + "': " + seen[plan].dump(1));
        expect_no_errors(seen[plan]);
        for (const char* turn : {"first", "again", "continued", "rewound", "other", "back"}) {
            EXPECT_EQ(seen[plan].at(turn).at("status"), 200) << turn;
            EXPECT_FALSE(seen[plan].at(turn).at("text").get<std::string>().empty()) << turn;
        }
        // Reused or computed again, the same prompt goes on alike (its later words part at near ties, in plain llama.cpp as well).
        const auto start = [&](const char* turn) {
            return seen[plan].at(turn).at("text").get<std::string>().substr(0, 15);
        };
        EXPECT_EQ(start("again"), start("first"));
        EXPECT_EQ(start("back"), start("first"));
        for (const char* turn : {"again", "continued", "back"}) {
            EXPECT_GE(seen[plan].at(turn).at("cache_n").get<int>() + 8, seen[""].at(turn).at("cache_n").get<int>())
                << turn;
        }
    }
    EXPECT_GT(seen[""].at("again").at("cache_n").get<int>(), 1000) << "plain llama.cpp itself reuses nothing: no test";
}

}  // namespace
}  // namespace kvaq
