// kvaq analyze, import and export as a user meets them, on SmolLM2.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/subprocess.h"

namespace kvaq {
namespace {

const std::string kModel = KVAQ_MODEL;
const std::string kText = std::string(KVAQ_DATA_DIR) + "/moby-excerpt.txt";

ProcessResult kvaq_cli(std::vector<std::string> args) {
    args.insert(args.begin(), KVAQ_CLI);
    return run_process(args, {.env = {}, .timeout_seconds = 300});
}

nlohmann::json read_json(const std::string& path) {
    std::ifstream file(path);
    return nlohmann::json::parse(file);
}

void expect_error(const std::vector<std::string>& args, const std::vector<std::string>& things) {
    const ProcessResult result = kvaq_cli(args);
    SCOPED_TRACE(args[0] + "\n" + result.err);
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_EQ(lines_starting(result.err, "kvaq: error: ").size(), 1U);
    for (const std::string& thing : things) EXPECT_NE(result.err.find(thing), std::string::npos) << thing;
}

class Analyze : public testing::Test {
  protected:
    TemporaryFolder folder_;
};

TEST_F(Analyze, WeightsAloneNeedNoTextAndGiveTheAuthorsJson) {
    const std::string norms = folder_.file("norms.json");
    const ProcessResult result = kvaq_cli({"analyze", "-m", kModel, "--norms", norms});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out.find("Theorem 1"), std::string::npos) << result.out;
    EXPECT_NE(result.out.find("No statistics"), std::string::npos);
    const nlohmann::json own = read_json(norms);
    const nlohmann::json golden =
        read_json(std::string(KVAQ_DATA_DIR) + "/weight_norms.json").at("models").at("SmolLM2-135M-Instruct.Q4_1.gguf");
    ASSERT_EQ(own.at("w_k").size(), 30U);
    for (size_t i = 0; i < 30; ++i) {
        EXPECT_NEAR(own.at("w_k")[i].get<double>(), golden.at("w_k_frobenius")[i].get<double>(),
                    1e-4 * golden.at("w_k_frobenius")[i].get<double>());
        EXPECT_NEAR(own.at("w_v")[i].get<double>(), golden.at("w_v_frobenius")[i].get<double>(),
                    1e-4 * golden.at("w_v_frobenius")[i].get<double>());
    }
}

TEST_F(Analyze, ATextGivesTheWholeAnalysisAndStatisticsTheSame) {
    const std::string from_text = folder_.file("text.json");
    const ProcessResult result = kvaq_cli(
        {"analyze", "-m", kModel, "-f", kText, "-c", "256", "--chunks", "2", "--tiles", "2", "--json", from_text});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const nlohmann::json json = read_json(from_text);
    const nlohmann::json& cache = json.at("cache");
    EXPECT_EQ(cache.at("n_tokens"), 512);
    ASSERT_EQ(cache.at("layers").size(), 30U);
    for (const nlohmann::json& layer : cache.at("layers")) {
        ASSERT_EQ(layer.at("heads").size(), 3U);
        double squares = 0;
        for (const nlohmann::json& head : layer.at("heads")) {
            const nlohmann::json& key = head.at("key");
            const auto spectrum = key.at("singular_values").get<std::vector<double>>();
            ASSERT_EQ(spectrum.size(), 64U);
            double sum = 0;
            for (size_t i = 0; i < spectrum.size(); ++i) {
                sum += spectrum[i] * spectrum[i];
                if (i > 0) {
                    EXPECT_LE(spectrum[i], spectrum[i - 1]);
                }
            }
            EXPECT_NEAR(std::sqrt(sum), key.at("frobenius").get<double>(), 1e-4 * std::sqrt(sum));
            squares += sum;
            for (const char* side : {"key", "value"}) {
                const auto mse = head.at(side).at("mse").get<std::vector<double>>();
                ASSERT_EQ(mse.size(), cache.at("bits").size());
                for (size_t i = 1; i < mse.size(); ++i) EXPECT_LT(mse[i], mse[i - 1]);
                for (const nlohmann::json& bound : head.at(side).at("bounds"))
                    EXPECT_TRUE(bound.at("holds").get<bool>());
            }
        }
        EXPECT_NEAR(layer.at("k_frobenius").get<double>(), std::sqrt(squares), 1e-4 * std::sqrt(squares));
        EXPECT_NEAR(layer.at("balance_bits_frobenius").get<double>(),
                    std::log2(layer.at("k_frobenius").get<double>() / layer.at("v_frobenius").get<double>()), 1e-9);
    }
    // SmolLM2 by measurement: keys are larger in the cache; by weights Theorem 1 fails in its last layers.
    EXPECT_GT(cache.at("frobenius").at("ratio_k_over_v").get<double>(), 1.5);
    EXPECT_FALSE(json.at("weights").at("frobenius").at("layers_with_smaller_k").empty());
    EXPECT_NE(result.out.find("| 29 |"), std::string::npos);
    EXPECT_NE(result.out.find("g_K"), std::string::npos);

    const std::string stats = folder_.file("m.stats.gguf");
    ASSERT_EQ(
        kvaq_cli({"calibrate", "-m", kModel, "-f", kText, "-c", "256", "--chunks", "2", "--no-probes", "-o", stats})
            .exit_code,
        0);
    const std::string from_stats = folder_.file("stats.json");
    ASSERT_EQ(kvaq_cli({"analyze", "-m", kModel, "--stats", stats, "--tiles", "2", "--json", from_stats}).exit_code, 0);
    const nlohmann::json again = read_json(from_stats);
    EXPECT_NEAR(again.at("cache").at("frobenius").at("ratio_k_over_v").get<double>(),
                cache.at("frobenius").at("ratio_k_over_v").get<double>(), 1e-3);
}

TEST_F(Analyze, NamesWhatIsMissingOrTooMuch) {
    expect_error({"analyze", "-m", folder_.file("nowhere.gguf")}, {"nowhere.gguf"});
    expect_error({"analyze", "-m", kModel, "-f", kText, "--stats", "x.gguf"}, {"-f TEXT or --stats FILE"});
    expect_error({"analyze", "-m", kModel, "--norms", folder_.file("no/folder/n.json")}, {"no/folder"});
    expect_error({"analyze", "-m", kModel, "--score", "X"}, {"'X'"});
    expect_error({"analyze", "-m", kModel, "--stats", folder_.file("none.stats.gguf")}, {"none.stats.gguf"});
}

TEST_F(Analyze, TheAuthorsAllocatorMakesPlansThatRun) {
    const std::string plan = folder_.file("g.plan.gguf");
    const ProcessResult made = kvaq_cli({"plan", "-m", kModel, "--policy", "norm-greedy:bits=3,score=F", "-o", plan});
    ASSERT_EQ(made.exit_code, 0) << made.err;
    const ProcessResult inspected = kvaq_cli({"inspect", plan, "--json", "-"});
    ASSERT_EQ(inspected.exit_code, 0) << inspected.err;
    // The same from the exported norms by way of the import.
    const std::string norms = folder_.file("n.json");
    ASSERT_EQ(kvaq_cli({"analyze", "-m", kModel, "--norms", norms}).exit_code, 0);
    const std::string again = folder_.file("i.plan.gguf");
    const ProcessResult imported =
        kvaq_cli({"import", norms, "-m", kModel, "-o", again, "--budget", "3", "--base", "k4v4-w32-s4"});
    ASSERT_EQ(imported.exit_code, 0) << imported.err;
    EXPECT_EQ(nlohmann::json::parse(kvaq_cli({"inspect", again, "--json", "-"}).out).at("layers"),
              nlohmann::json::parse(inspected.out).at("layers"));
    const ProcessResult run = kvaq_cli({"run", "--plan", plan, "-m", kModel, "-p", "The capital of France is", "-n",
                                        "4", "--temp", "0", "-no-cnv", "-t", "2"});
    EXPECT_EQ(run.exit_code, 0) << run.err;

    const ProcessResult spectral = kvaq_cli({"plan", "-m", kModel, "--policy", "spectral:bits=2"});
    ASSERT_EQ(spectral.exit_code, 0) << spectral.err;
    EXPECT_NE(spectral.err.find("values of 1 bit"), std::string::npos) << spectral.err;
    expect_error({"plan", "-m", kModel, "--policy", "norm-greedy:bit=3"}, {"'bit=3'", "bits=N"});
    expect_error({"plan", "-m", kModel, "--policy", "norm-greedy:bits=9"}, {"9", "8"});
}

TEST_F(Analyze, ImportAndExportAreEachOthersInverse) {
    const std::string plan = folder_.file("k.plan.gguf");
    const ProcessResult made =
        kvaq_cli({"import", "--kvq", "nbits={\"k\":4,\"v\":2},group_size=32", "-m", kModel, "-o", plan});
    ASSERT_EQ(made.exit_code, 0) << made.err;
    EXPECT_NE(made.out.find("K 4.00, V 2.00"), std::string::npos) << made.out;
    const std::string yaml = folder_.file("k.yaml");
    const ProcessResult exported = kvaq_cli({"export", plan, "--to", "kvtuner", "-o", yaml});
    ASSERT_EQ(exported.exit_code, 0) << exported.err;
    EXPECT_NE(exported.err.find("kvaq: lost: "), std::string::npos);
    const std::string again = folder_.file("y.plan.gguf");
    ASSERT_EQ(kvaq_cli({"import", yaml, "-m", kModel, "-o", again, "--base", "k4v4-g32-hqq-w64"}).exit_code, 0);
    EXPECT_EQ(nlohmann::json::parse(kvaq_cli({"export", again, "--to", "json"}).out).at("layers"),
              nlohmann::json::parse(kvaq_cli({"export", plan, "--to", "json"}).out).at("layers"));
    EXPECT_EQ(kvaq_cli({"export", "q8_0", "-m", kModel, "--to", "llama.cpp"}).out,
              "--cache-type-k q8_0 --cache-type-v q8_0 --flash-attn on\n");

    expect_error({"export", plan, "--to", "onnx"}, {"'onnx'", "kvtuner"});
    expect_error({"export", "q8_0", "--to", "vllm"}, {"-m"});
    expect_error({"import", "-m", kModel, "-o", again}, {"FILE", "--kvq"});
    expect_error({"import", folder_.file("none.json"), "-m", kModel, "-o", again}, {"none.json"});
    expect_error({"import", "--kvq", "nbits=7", "-m", kModel, "-o", again}, {"K of layer 0", "7"});
}

}  // namespace
}  // namespace kvaq
