// Real, unmodified llama.cpp programs under LD_PRELOAD=libkvaq-llama.so and KVAQ_PLAN.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <regex>

#include "tests/subprocess.h"

namespace kvaq {
namespace {

const std::string kModel = KVAQ_MODEL;
const std::string kText = std::string(KVAQ_DATA_DIR) + "/wiki-excerpt.txt";

/// A llama.cpp program with the model and two threads; plain if `plan` is empty.
ProcessResult llama(const std::string& program, const std::string& plan, const std::vector<std::string>& flags,
                    ProcessOptions options = {}) {
    std::vector<std::string> command = {std::string(KVAQ_BIN_DIR) + "/" + program, "-m", kModel, "-t", "2"};
    command.insert(command.end(), flags.begin(), flags.end());
    if (!plan.empty()) options.env.insert({{"LD_PRELOAD", KVAQ_LIB}, {"KVAQ_PLAN", plan}});
    return run_process(command, options);
}

double perplexity(const std::string& plan, const std::vector<std::string>& more_flags) {
    std::vector<std::string> flags = {"-f", kText, "-c", "512"};
    flags.insert(flags.end(), more_flags.begin(), more_flags.end());
    const ProcessResult result = llama("llama-perplexity", plan, flags, {.env = {}, .timeout_seconds = 400});
    std::smatch found;
    const std::string text = result.out + result.err;
    EXPECT_EQ(result.exit_code, 0) << text;
    EXPECT_EQ(lines_starting(result.err, "kvaq: plan ").size(), plan.empty() ? 0U : 1U) << result.err;
    if (!std::regex_search(text, found, std::regex("Final estimate: PPL = ([0-9.]+)"))) {
        ADD_FAILURE() << text;
        return 0;
    }
    return std::stod(found[1]);
}

void expect_refusal(const ProcessResult& result, const std::vector<std::string>& things) {
    SCOPED_TRACE(result.err);
    EXPECT_FALSE(result.timed_out);
    EXPECT_NE(result.exit_code, 0);
    EXPECT_LT(result.exit_code, 128) << "a signal ended the program";
    const std::vector<std::string> lines = lines_starting(result.err, "kvaq: error: ");
    ASSERT_EQ(lines.size(), 1U);
    for (const std::string& thing : things)
        EXPECT_NE(lines[0].find(thing), std::string::npos) << "does not name " << thing;
}

TEST(DropIn, PerplexityOfTheF16PlanIsThatOfPlainLlamaCpp) {
    const double plain = perplexity("", {"--chunks", "16"});
    const double served = perplexity("f16", {"--chunks", "16"});
    RecordProperty("relative_difference", std::to_string(served / plain - 1));
    EXPECT_GT(plain, 10);
    EXPECT_NEAR(served / plain, 1, 3e-3) << plain << " and " << served;
}

TEST(DropIn, PerplexityRisesAsBitsFall) {
    const double f16 = perplexity("f16", {"--chunks", "4"});
    const double k4v4 = perplexity("k4v4-rot", {"--chunks", "4"});
    const double k2v2 = perplexity("k2v2", {"--chunks", "4"});
    EXPECT_LT(std::fabs(k4v4 / f16 - 1), 0.05) << f16 << " " << k4v4;
    EXPECT_GT(k2v2, k4v4 * 1.01) << "two bits must cost more than four";
}

TEST(DropIn, GreedyCompletionGoesThroughThePlan) {
    const std::vector<std::string> flags = {
        "-p", "The capital of France is", "-n", "48", "--temp", "0", "-no-cnv", "-c", "512"};
    const ProcessResult plain = llama("llama-completion", "", flags);
    ASSERT_EQ(plain.exit_code, 0) << plain.err;
    ASSERT_NE(plain.out.find("Paris"), std::string::npos) << plain.out;
    for (const std::string plan : {"f16", "k4v4-rot"}) {
        const ProcessResult served = llama("llama-completion", plan, flags);
        EXPECT_EQ(served.exit_code, 0) << served.err;
        EXPECT_EQ(lines_starting(served.err, "kvaq: plan " + plan).size(), 1U) << served.err;
        EXPECT_EQ(lines_starting(served.err, "kvaq: at exit: ").size(), 1U) << served.err;
        EXPECT_TRUE(lines_starting(served.err, "kvaq: error").empty()) << served.err;
        EXPECT_NE(served.out.find("Paris"), std::string::npos) << served.out;
        const ProcessResult again = llama("llama-completion", plan, flags);
        EXPECT_EQ(again.out, served.out) << "not deterministic";
        const ProcessResult one_thread =
            llama("llama-completion", plan,
                  {"-t", "1", "-p", "The capital of France is", "-n", "48", "--temp", "0", "-no-cnv", "-c", "512"});
        EXPECT_EQ(one_thread.out, served.out) << "depends on the number of threads";
    }
}

TEST(DropIn, APromptCacheIsWrittenAndUsedAgain) {
    TemporaryFolder folder;
    const std::string cache = folder.file("prompt.bin");
    std::string prompt =
        "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is Madrid.";
    for (int i = 0; i < 3; ++i) prompt += " " + prompt.substr(0, 90);
    prompt += " The capital of Germany is";
    const std::vector<std::string> flags = {"-p", prompt, "-n", "16", "--temp", "0", "-no-cnv", "-c", "1024"};
    std::vector<std::string> cached = flags;
    cached.insert(cached.end(), {"--prompt-cache", cache});
    const std::string plan = "k4v4-rot-s4";
    const ProcessResult plain = llama("llama-completion", plan, flags);
    ASSERT_NE(plain.out.find("Berlin"), std::string::npos) << plain.out;
    const ProcessResult first = llama("llama-completion", plan, cached);
    ASSERT_EQ(first.exit_code, 0) << first.err;
    EXPECT_EQ(first.out, plain.out);
    ASSERT_TRUE(std::filesystem::exists(cache)) << first.err;
    const ProcessResult second = llama("llama-completion", plan, cached);
    EXPECT_EQ(second.exit_code, 0) << second.err;
    EXPECT_EQ(second.out, plain.out);
    EXPECT_NE(second.err.find("session file has exact match for prompt"), std::string::npos) << second.err;
    const ProcessResult other = llama("llama-completion", "k4v2-rot", cached);  // another plan's
    EXPECT_NE(other.exit_code, 0);
    EXPECT_EQ(lines_starting(other.err, "kvaq: error").size(), 1U) << other.err;
}

TEST(DropIn, BenchGivesItsRowsUnderThePlan) {
    for (const std::string plan : {"f16", "k4v2-rot"}) {
        const ProcessResult result =
            llama("llama-bench", plan, {"-p", "64", "-n", "8", "-d", "256", "-r", "1", "-o", "json"});
        ASSERT_EQ(result.exit_code, 0) << result.err;
        const nlohmann::json rows = nlohmann::json::parse(result.out);
        ASSERT_EQ(rows.size(), 2U);
        for (const auto& row : rows) EXPECT_GT(row.at("avg_ts").get<double>(), 0);
        EXPECT_GE(lines_starting(result.err, "kvaq: plan " + plan).size(), 1U) << result.err;
        EXPECT_TRUE(lines_starting(result.err, "kvaq: error").empty()) << result.err;
    }
}

TEST(DropIn, RefusesWhatItWouldServeWrongly) {
    const std::vector<std::string> base = {"-p", "Hello", "-n", "4", "-no-cnv"};
    const auto with = [&](std::vector<std::string> more) {
        more.insert(more.end(), base.begin(), base.end());
        return more;
    };
    expect_refusal(llama("llama-completion", "k4v2", with({"-ctk", "q8_0", "-ctv", "q8_0"})),
                   {"-ctk q8_0 -ctv q8_0", "f16"});
    expect_refusal(llama("llama-completion", "k4v2", with({"-fa", "off"})), {"flash attention", "-fa off"});
    expect_refusal(llama("llama-completion", "nonsense", base), {"nonsense"});
    expect_refusal(llama("llama-completion", "/no/such/x.plan.gguf", base), {"/no/such/x.plan.gguf"});
    expect_refusal(llama("llama-completion", KVAQ_MODEL, base), {"not a plan"});
    // The same flags without the plan are fine: the refusal is ours.
    EXPECT_EQ(llama("llama-completion", "", with({"-ctk", "q8_0", "-ctv", "q8_0"})).exit_code, 0);
    EXPECT_EQ(llama("llama-completion", "", with({"-fa", "off"})).exit_code, 0);
}

TEST(DropIn, SelfExtendIsRefusedByNameWhenItBegins) {
    const std::vector<std::string> flags = {"-p", "Once upon a time", "-n", "60", "--temp", "0", "-gan", "2", "-gaw",
                                            "32", "-no-cnv"};
    EXPECT_EQ(llama("llama-completion", "", flags).exit_code, 0) << "llama.cpp itself does it";
    const ProcessResult served = llama("llama-completion", "k4v4-rot-s4", flags);
    EXPECT_EQ(served.exit_code, 1) << served.err;
    EXPECT_NE(
        served.err.find("kvaq: error: self-extend (llama_memory_seq_div) is not served by the packed cache: "
                        "wanted positions that are shifted or kept, found a division by 2. Use a larger context (-c)"),
        std::string::npos)
        << served.err;
    // llama-server has no such flag, with or without us.
    const ProcessResult server = llama("llama-server", "k4v4-rot-s4", {"--grp-attn-n", "2"});
    EXPECT_EQ(server.exit_code, 1);
    EXPECT_NE(server.err.find("invalid argument: --grp-attn-n"), std::string::npos) << server.err;
}

TEST(DropIn, RefusesALlamaCppOfAnotherVersion) {
    const std::string both = std::string(KVAQ_LIB) + ":" + KVAQ_OTHER_VERSION_LIB;
    expect_refusal(llama("llama-completion", "", {"-p", "Hello", "-n", "4", "-no-cnv"},
                         {.env = {{"LD_PRELOAD", both}, {"KVAQ_PLAN", "k4v2"}}}),
                   {"0.5.0", "0.4.2"});
    // Without a plan nothing is served, so nothing is refused.
    EXPECT_EQ(
        llama("llama-completion", "", {"-p", "Hello", "-n", "4", "-no-cnv"}, {.env = {{"LD_PRELOAD", both}}}).exit_code,
        0);
}

TEST(DropIn, SaysSoWhenTheContextDoesNotFitInMemory) {
    // 90 GiB of f16 pages; llama.cpp's own start fits.
    const ProcessResult result = llama(
        "llama-completion", "f16", {"-p", "Hello", "-n", "4", "-no-cnv", "-c", "4194304", "--no-warmup", "-fit", "off"},
        {.env = {}, .timeout_seconds = 60, .address_space = size_t{3} << 30});
    expect_refusal(result, {"cannot allocate", "-c"});
}

TEST(DropIn, WithoutAPlanTheLibraryIsNotThere) {
    const std::vector<std::string> flags = {"-p", "The capital of France is", "-n", "16", "--temp", "0", "-no-cnv"};
    const ProcessResult plain = llama("llama-completion", "", flags);
    const ProcessResult idle = llama("llama-completion", "", flags, {.env = {{"LD_PRELOAD", KVAQ_LIB}}});
    ASSERT_EQ(idle.exit_code, 0) << idle.err;
    EXPECT_EQ(idle.out, plain.out);
    EXPECT_TRUE(lines_starting(idle.err, "kvaq").empty()) << idle.err;
}

/// What tests/server_client.py saw of one llama-server (see there).
nlohmann::json server_session(const std::string& plan, const std::string& slots) {
    const ProcessOptions options{
        .env = plan.empty()
                   ? std::map<std::string, std::string>{}
                   : std::map<std::string, std::string>{{"KVAQ_TEST_PRELOAD", KVAQ_LIB}, {"KVAQ_TEST_PLAN", plan}},
        .timeout_seconds = 240};
    const std::string script = std::string(KVAQ_DATA_DIR) + "/../tests/server_client.py";
    const ProcessResult result =
        run_process({"python3", script, std::string(KVAQ_BIN_DIR) + "/llama-server", kModel, slots}, options);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.exit_code == 0 ? nlohmann::json::parse(result.out) : nlohmann::json();
}

class Server : public testing::Test {
  protected:
    static void SetUpTestSuite() {
        plain_ = server_session("", folder().file(""));
        served_ = server_session("f16", folder().file(""));
        packed_ = server_session("k4v4-rot", folder().file(""));
    }
    void SetUp() override {
        for (const nlohmann::json* session : {&plain_, &served_, &packed_})
            ASSERT_TRUE(session->is_object()) << "the session failed";
    }
    static TemporaryFolder& folder() {
        static TemporaryFolder folder;
        return folder;
    }
    static inline nlohmann::json plain_, served_, packed_;
};

TEST_F(Server, TwoConcurrentChatsAreNotMixed) {
    for (const nlohmann::json* session : {&plain_, &served_, &packed_}) {
        const auto& chats = session->at("chats");
        for (const auto& [country, capital, other_country, other_capital] :
             {std::array{"France", "Paris", "Japan", "Tokyo"}, {"Japan", "Tokyo", "France", "Paris"}}) {
            ASSERT_EQ(chats.at(country).size(), 3U) << chats;
            EXPECT_NE(chats.at(country).at(0).at("text").get<std::string>().find(capital), std::string::npos) << chats;
            for (const auto& turn : chats.at(country)) {
                EXPECT_EQ(turn.at("status"), 200);
                const std::string text = turn.at("text");
                EXPECT_FALSE(text.empty());
                EXPECT_EQ(text.find(other_country), std::string::npos) << chats;
                EXPECT_EQ(text.find(other_capital), std::string::npos) << chats;
            }
        }
    }
}

TEST_F(Server, LaterTurnsReuseTheCachedPrefixAsPlainLlamaCppDoes) {
    // How many tokens of the turn before are computed again: a property of the chat template, so the same with and without a plan.
    const auto computed_again = [](const nlohmann::json& turns, size_t turn) {
        const auto& before = turns.at(turn - 1);
        const int all =
            before.at("cache_n").get<int>() + before.at("prompt_n").get<int>() + before.at("predicted_n").get<int>();
        return all - turns.at(turn).at("cache_n").get<int>();
    };
    for (const char* country : {"France", "Japan"}) {
        for (const size_t turn : {size_t{1}, size_t{2}}) {
            const int plain = computed_again(plain_.at("chats").at(country), turn);
            EXPECT_LE(plain, 3);
            EXPECT_EQ(computed_again(served_.at("chats").at(country), turn), plain);
            EXPECT_EQ(computed_again(packed_.at("chats").at(country), turn), plain);
        }
    }
}

TEST_F(Server, ASlotIsSavedErasedAndRestored) {
    for (const nlohmann::json* session : {&plain_, &served_, &packed_}) {
        const auto& slots = session->at("slots");
        SCOPED_TRACE(slots.dump(1));
        EXPECT_EQ(slots.at("first").at("cache_n"), 0);
        EXPECT_EQ(slots.at("save").at(0), 200);
        EXPECT_EQ(slots.at("restore").at(0), 200);
        EXPECT_EQ(slots.at("restore").at(1).at("n_restored"), slots.at("save").at(1).at("n_saved"));
        EXPECT_EQ(slots.at("save").at(1).at("n_written"), slots.at("file_bytes"));
        EXPECT_EQ(slots.at("restored").at("prompt_n"), 1) << "the restored prompt was computed again";
        EXPECT_EQ(slots.at("restored").at("text"), slots.at("first").at("text"));
    }
    EXPECT_LT(packed_.at("slots").at("file_bytes").get<size_t>(), served_.at("slots").at("file_bytes").get<size_t>());
}

TEST_F(Server, ABrokenSlotFileIsRefusedAndTheServerGoesOn) {
    for (const nlohmann::json* session : {&served_, &packed_}) {
        const auto& slots = session->at("slots");
        SCOPED_TRACE(slots.dump(1));
        EXPECT_EQ(slots.at("restore_broken").at(0), 400);
        EXPECT_EQ(slots.at("after_broken").at("text"), slots.at("first").at("text"));
    }
}

TEST_F(Server, EndsCleanlyOnInterrupt) {
    for (const nlohmann::json* session : {&plain_, &served_, &packed_}) {
        EXPECT_EQ(session->at("exit_code"), 0);
        size_t n_errors = 0;
        size_t n_ends = 0;
        for (const std::string line : session->at("kvaq_lines")) {
            n_errors += line.rfind("kvaq: error: ", 0) == 0 ? 1 : 0;
            n_ends += line.rfind("kvaq: at exit: ", 0) == 0 ? 1 : 0;
        }
        const bool plan = session != &plain_;
        EXPECT_EQ(n_errors, plan ? 1U : 0U) << "only the broken slot file's: " << session->at("kvaq_lines");
        EXPECT_EQ(n_ends, plan ? 1U : 0U);
    }
}

}  // namespace
}  // namespace kvaq
