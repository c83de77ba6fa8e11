// The metrics of a real llama-server, and what the library brings into a process beside them.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>

#include "tests/subprocess.h"

namespace kvaq {
namespace {

const std::string kTests = std::string(KVAQ_DATA_DIR) + "/../tests";

TEST(Metrics, AgreeWithWhatTheServerDoes) {
    TemporaryFolder slots;
    const ProcessResult result = run_process(
        {"python3", kTests + "/metrics_client.py", std::string(KVAQ_BIN_DIR) + "/llama-server", KVAQ_MODEL,
         slots.file("")},
        {.env = {{"KVAQ_TEST_PRELOAD", KVAQ_LIB}, {"KVAQ_TEST_PLAN", "k4v4-rot-s4"}, {"KVAQ_METRICS", "127.0.0.1:0"}},
         .timeout_seconds = 240});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const nlohmann::json seen = nlohmann::json::parse(result.out);
    SCOPED_TRACE(seen.dump(1).substr(0, 12000));
    const auto value = [&](const char* when, const std::string& name) { return seen.at(when).at(name).get<double>(); };
    const auto bytes = [&](const char* when) {
        double sum = 0;
        for (const char* kind : {"sealed", "f16", "sinks", "tables"})
            sum += value(when, std::string("kvaq_cache_bytes{kind=") + kind + "}");
        return sum;
    };
    EXPECT_EQ(seen.at("status"), 200);
    EXPECT_EQ(seen.at("content_type"), "text/plain; version=0.0.4; charset=utf-8");
    EXPECT_EQ(seen.at("elsewhere"), 404);
    EXPECT_EQ(value("start", "kvaq_context_tokens"), 4096);
    EXPECT_EQ(value("start", "kvaq_sequences_max"), 4);
    EXPECT_EQ(value("start", "kvaq_cache_budget_bytes"), 0);

    const double n = value("after_chat", "kvaq_cached_tokens");
    EXPECT_EQ(seen.at("chat").at("status"), 200);
    EXPECT_EQ(n, seen.at("slots").get<double>()) << "as /slots says";
    EXPECT_EQ(n, seen.at("chat").at("prompt_n").get<double>() + seen.at("chat").at("predicted_n").get<double>() - 1)
        << "the last word of an answer is never decoded";
    EXPECT_EQ(value("after_chat", "kvaq_sequences"), 1);
    EXPECT_GE(value("after_chat", "kvaq_tokens_total") - value("start", "kvaq_tokens_total"), n);
    EXPECT_GE(value("after_chat", "kvaq_batches_total{result=decoded}"),
              seen.at("chat").at("predicted_n").get<double>());
    EXPECT_EQ(value("after_chat", "kvaq_batches_total{result=failed}"), 0);
    EXPECT_GT(value("after_chat", "kvaq_attention_seconds_total"), value("start", "kvaq_attention_seconds_total"));
    EXPECT_LE(bytes("after_chat"), value("after_chat", "kvaq_cache_planned_bytes"));
    EXPECT_LE(value("after_chat", "kvaq_cache_planned_bytes"), value("after_chat", "kvaq_cache_reserved_bytes"));
    // 30 layers, 3 KV heads, keys and values of 64 channels; pages of 64 tokens.
    const double pages = std::floor(n / 64);
    EXPECT_EQ(value("after_chat", "kvaq_sealed_tiles"), pages * 30 * 3 * 2);
    EXPECT_NEAR(value("after_chat", "kvaq_cache_effective_bits"), 8 * bytes("after_chat") / (n * 30 * 3 * 128), 1e-3);
    EXPECT_EQ(value("after_chat", "kvaq_cache_shared_bytes"), 0);
    EXPECT_GT(seen.at("scrapes_meanwhile").get<int>(), 20) << "scraping waits for decoding, or the other way round";
    EXPECT_GT(seen.at("token_counts_meanwhile").size(), 10U) << "numbers move while the server works";
    EXPECT_TRUE(seen.at("torn").empty()) << "numbers of different moments in one answer";

    EXPECT_EQ(value("erased", "kvaq_cached_tokens"), 0);
    EXPECT_EQ(value("erased", "kvaq_sequences"), 0);
    EXPECT_EQ(value("erased", "kvaq_sealed_tiles"), 0);
    EXPECT_EQ(bytes("erased"), value("erased", "kvaq_cache_bytes{kind=tables}"));
    EXPECT_GE(value("erased", "kvaq_tiles_freed_total{reason=removed}"), pages * 180);
    EXPECT_EQ(value("erased", "kvaq_tiles_freed_total{reason=window}"), 0);
    EXPECT_GE(value("erased", "kvaq_snapshots_total{result=saved}"), 1);
    EXPECT_GE(value("erased", "kvaq_snapshots_total{result=restored}"), 1);
    EXPECT_EQ(value("erased", "kvaq_snapshots_total{result=refused}"), 1);

    // Four answers to one prompt of more than 200 tokens: its sealed pages are held once.
    EXPECT_EQ(seen.at("four").at("status"), 200);
    EXPECT_EQ(seen.at("four").at("n"), 4);
    EXPECT_EQ(value("shared", "kvaq_sequences"), 4);
    const double sealed = value("shared", "kvaq_cache_bytes{kind=sealed}");
    std::printf("four sequences: %.0f tokens, %.0f bytes held (%.0f sealed), %.0f more without sharing\n",
                value("shared", "kvaq_cached_tokens"), bytes("shared"), sealed,
                value("shared", "kvaq_cache_shared_bytes"));
    EXPECT_GT(sealed, 0);
    EXPECT_GE(value("shared", "kvaq_cache_shared_bytes"), 3 * sealed)
        << "every sealed page of the prompt is shared by all four";

    EXPECT_EQ(seen.at("second").at("exit_code"), 1);
    ASSERT_EQ(seen.at("second").at("errors").size(), 1U);
    const std::string error = seen.at("second").at("errors").at(0);
    EXPECT_NE(error.find("cannot serve metrics at 127.0.0.1:"), std::string::npos) << error;
    EXPECT_EQ(seen.at("goes_on"), 200);

    EXPECT_EQ(seen.at("exit_code"), 0);
    std::string end;
    for (const std::string line : seen.at("kvaq_lines")) {
        if (line.rfind("kvaq: at exit: ", 0) == 0) end = line;
    }
    for (const char* what : {"tokens cached", "packed in", "f16", "tables", "bits per element", "shared", "reserved",
                             "sealed", "window", "batches", "attention"})
        EXPECT_NE(end.find(what), std::string::npos) << what << ": " << end;
}

TEST(Metrics, AnAddressThatCannotBeIsRefusedInOneLine) {
    for (const auto& [address, wanted] :
         std::map<std::string, std::string>{{"0.0.0.0:9464", "0.0.0.0:9464,public"},
                                            {"9464", "HOST:PORT"},
                                            {"192.0.2.1:9464,public", "cannot serve metrics"}}) {
        const ProcessResult result =
            run_process({std::string(KVAQ_BIN_DIR) + "/llama-completion", "-m", KVAQ_MODEL, "-p", "Hello", "-n", "2",
                         "-no-cnv", "-c", "256"},
                        {.env = {{"LD_PRELOAD", KVAQ_LIB}, {"KVAQ_PLAN", "k4v2"}, {"KVAQ_METRICS", address}}});
        EXPECT_EQ(result.exit_code, 1) << address;
        const std::vector<std::string> lines = lines_starting(result.err, "kvaq: error: ");
        ASSERT_EQ(lines.size(), 1U) << result.err;
        EXPECT_NE(lines[0].find(wanted), std::string::npos) << lines[0];
    }
    for (const std::string flag : {"--kv-metrics", "--kv-metrics="}) {
        const bool joined = flag.back() == '=';
        std::vector<std::string> command = {KVAQ_CLI, "serve", "--plan", "k4v2", joined ? flag + "host:1" : flag};
        if (!joined) command.push_back("host:1");
        const ProcessResult result = run_process(command);
        EXPECT_EQ(result.exit_code, 1);
        EXPECT_NE(result.err.find("HOST:PORT"), std::string::npos) << result.err;
    }
}

TEST(Metrics, LibraryExportsNoSymbolThatAProgramMayBringItself) {
    const ProcessResult symbols = run_process({"nm", "-DC", KVAQ_LIB});
    ASSERT_EQ(symbols.exit_code, 0) << symbols.err;
    EXPECT_NE(symbols.out.find(" llama_decode"), std::string::npos);
    std::istringstream lines(symbols.out);
    // Names of cpp-httplib in its own namespace, wherever they stand in a symbol; kvaq_httplib:: is ours.
    const std::regex foreign("(^|[^_a-zA-Z])httplib::");
    for (std::string line; std::getline(lines, line);) EXPECT_FALSE(std::regex_search(line, foreign)) << line;
}

}  // namespace
}  // namespace kvaq
