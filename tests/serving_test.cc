// The scripts of scripts/serving, short: each judges by itself (exit code 0, or 77 and a reason if it cannot run here).
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/subprocess.h"

namespace kvaq {
namespace {

const std::string kRoot = std::filesystem::weakly_canonical(std::string(KVAQ_DATA_DIR) + "/..").string();

void run_script(const std::string& script, std::vector<std::string> arguments, const std::string& python = "python3") {
    arguments.insert(arguments.begin(), {python, kRoot + "/scripts/serving/" + script});
    const ProcessResult result = run_process(
        arguments,
        {.env = {{"KVAQ", KVAQ_CLI}, {"KVAQ_LLAMA_BIN", KVAQ_BIN_DIR}, {"MODEL", KVAQ_MODEL}}, .timeout_seconds = 600});
    if (result.exit_code == 77) GTEST_SKIP() << result.out;
    EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
}

TEST(Serving, SixtyFourClientsOnFourSlotsGetTheirOwnAnswers) {
    run_script("load.py", {"--plans", "k4v4-rot-s4", "--seconds", "20"});
}

TEST(Serving, SpeculationDoesNotChangeTheText) {
    // N-grams draft nothing in texts this short.
    run_script("speculation.py",
               {"--plans", "k4v4-rot-s4", "--tokens", "16", "--kinds", "draft model,draft model all rejected"});
}

TEST(Serving, TheOpenAiClientIsServed) {
    const std::string python = kRoot + "/.deps/venv/bin/python";
    const ProcessResult fetch =
        run_process({kRoot + "/scripts/serving/fetch_clients.sh"}, {.env = {}, .timeout_seconds = 300});
    if (fetch.exit_code != 0) GTEST_SKIP() << "the Python package openai cannot be installed: " << fetch.err;
    run_script("openai_client.py", {"--plan", "k4v4-rot-s4"}, python);
}

TEST(Serving, AServerFullByItsMemoryLimitAnswersAndGoesOn) { run_script("budget.py", {}); }

TEST(Serving, TwoReplicasBehindNginx) { run_script("replicas.py", {"--users", "6"}); }

TEST(Serving, AModelOverTwoRpcServers) { run_script("rpc.py", {"--plans", "k4v4-rot-s4"}); }

}  // namespace
}  // namespace kvaq
