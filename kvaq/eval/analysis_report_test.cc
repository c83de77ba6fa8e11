#include "kvaq/eval/analysis_report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

namespace kvaq {
namespace {

LayerWeightNorms layer(int32_t number, double key, double value) {
    return {.layer = number,
            .key_frobenius = key,
            .key_spectral = key / 4,
            .value_frobenius = value,
            .value_spectral = value / 8,
            .key_elements = 1024,
            .value_elements = 1024,
            .value_is_key = false};
}

ModelAnalysis made_up(bool qk_norm) {
    ModelAnalysis analysis{.model = "m.gguf",
                           .name = "made up",
                           .architecture = "llama",
                           .fingerprint = "f",
                           .source = "",
                           .qk_norm = qk_norm,
                           .weights = WeightNorms{},
                           .weights_missing = "",
                           .cache = {}};
    analysis.weights->layers = {layer(0, 40, 10), layer(1, 40, 10), layer(2, 5, 10)};
    return analysis;
}

std::string joined(const std::vector<std::string>& sentences) {
    std::string out;
    for (const std::string& sentence : sentences) out += sentence + "\n";
    return out;
}

TEST(AnalysisReport, SaysWhetherKIsLargerByHowMuchAndWhereNot) {
    const ModelAnalysis analysis = made_up(false);
    const Comparison f = compare_weights(*analysis.weights, NormScore::kFrobenius);
    EXPECT_NEAR(f.ratio, std::cbrt(4 * 4 * 0.5), 1e-12);
    EXPECT_EQ(f.smaller, std::vector<int32_t>{2});
    const std::string says = joined(describe(analysis));
    EXPECT_NE(says.find("2.00 times as large as W_V"), std::string::npos) << says;
    EXPECT_NE(says.find("in 2 of 3 layers (not in 2)"), std::string::npos) << says;
    EXPECT_NE(says.find("No statistics"), std::string::npos) << says;
    EXPECT_EQ(says.find("QK-norm"), std::string::npos) << says;
    EXPECT_NE(joined(describe(made_up(true))).find("QK-norm"), std::string::npos);
}

TEST(AnalysisReport, ComparesProjectionsOfUnequalShapesPerElement) {
    WeightNorms norms;
    norms.layers = {layer(0, 20, 20)};
    norms.layers[0].key_elements = 4096;  // four times the elements, the same norm: half the size per element
    EXPECT_NEAR(compare_weights(norms, NormScore::kFrobenius).ratio, 0.5, 1e-12);
}

TEST(AnalysisReport, PropagationExponentIsTheBoundOfTheTheoryModule) {
    WeightNorms norms;
    norms.layers = {layer(0, 4, 8)};  // |W_K|_2 = 1
    // One layer: |D| = sqrt(1024) * 1 / (2 * 7).
    EXPECT_NEAR(propagation_exponent(norms, Side::kKey, 4), std::log10(32.0 / 14), 1e-12);
    EXPECT_LT(propagation_exponent(norms, Side::kKey, 8), propagation_exponent(norms, Side::kKey, 4));
}

TEST(AnalysisReport, JsonHoldsWhatTheTablesSay) {
    const nlohmann::json json = nlohmann::json::parse(analysis_json(made_up(true), "kvaq analyze -m m.gguf"));
    EXPECT_EQ(json.at("kind"), "kvaq.analysis");
    EXPECT_EQ(json.at("qk_norm"), true);
    EXPECT_EQ(json.at("weights").at("layers").at(2).at("theorem_1_holds"), false);
    EXPECT_EQ(json.at("weights").at("layers").at(0).at("theorem_1_holds"), true);
    EXPECT_TRUE(json.at("cache").is_null());
}

}  // namespace
}  // namespace kvaq
