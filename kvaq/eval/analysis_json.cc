#include <cmath>
#include <nlohmann/json.hpp>

#include "kvaq/eval/analysis_report.h"

namespace kvaq {
namespace {

using Json = nlohmann::ordered_json;

Json side_json(const SideAnalysis& side) {
    Json out = {
        {"frobenius", side.frobenius},          {"spectral", side.spectral},       {"effective_rank", side.rank},
        {"energy_of_first_4", side.first_four}, {"mean_square", side.mean_square}, {"mse", side.mse},
        {"mse_rotated", side.mse_rotated},      {"mse_grouped", side.mse_grouped}, {"singular_values", side.spectrum}};
    for (const BoundCheck& check : side.bounds) {
        out["bounds"].push_back({{"bits", check.bits},
                                 {"error_spectral", check.error_spectral},
                                 {"error_frobenius", check.error_frobenius},
                                 {"bound_max", check.bound_max},
                                 {"bound_theorem_3", check.bound_spectral},
                                 {"bound_theorem_4", check.bound_frobenius},
                                 {"holds", check.holds()}});
    }
    return out;
}

Json comparison_json(const Comparison& c) {
    return {{"ratio_k_over_v", c.ratio}, {"n_layers", c.n}, {"layers_with_smaller_k", c.smaller}};
}

}  // namespace

std::string analysis_json(const ModelAnalysis& analysis, const std::string& command) {
    Json out = {{"schema_version", 1},
                {"kind", "kvaq.analysis"},
                {"command", command},
                {"model", analysis.model},
                {"name", analysis.name},
                {"architecture", analysis.architecture},
                {"fingerprint", analysis.fingerprint},
                {"qk_norm", analysis.qk_norm},
                {"source", analysis.source},
                {"says", describe(analysis)}};
    if (analysis.weights) {
        const WeightNorms& w = *analysis.weights;
        Json layers = Json::array();
        for (const LayerWeightNorms& l : w.layers) {
            layers.push_back(
                {{"layer", l.layer},
                 {"w_k_frobenius", l.key_frobenius},
                 {"w_v_frobenius", l.value_frobenius},
                 {"w_k_spectral", l.key_spectral},
                 {"w_v_spectral", l.value_spectral},
                 {"w_k_elements", l.key_elements},
                 {"w_v_elements", l.value_elements},
                 {"theorem_1_holds", l.key_frobenius / std::sqrt(static_cast<double>(l.key_elements)) >
                                         l.value_frobenius / std::sqrt(static_cast<double>(l.value_elements))}});
        }
        out["weights"] = {
            {"frobenius", comparison_json(compare_weights(w, NormScore::kFrobenius))},
            {"spectral", comparison_json(compare_weights(w, NormScore::kSpectral))},
            {"propagation_bound_log10_4_bits",
             {{"w_k", propagation_exponent(w, Side::kKey, 4)}, {"w_v", propagation_exponent(w, Side::kValue, 4)}}},
            {"layers", layers}};
    } else {
        out["weights"] = nullptr;
        out["weights_missing"] = analysis.weights_missing;
    }
    if (analysis.cache) {
        const CacheAnalysis& cache = *analysis.cache;
        Json layers = Json::array();
        for (const LayerAnalysis& l : cache.layers) {
            Json heads = Json::array();
            for (const HeadAnalysis& head : l.heads)
                heads.push_back({{"key", side_json(head.key)}, {"value", side_json(head.value)}});
            layers.push_back(
                {{"layer", l.shape.layer},
                 {"k_frobenius", l.frobenius(Side::kKey)},
                 {"v_frobenius", l.frobenius(Side::kValue)},
                 {"balance_bits_frobenius", balance_gap(l.frobenius(Side::kKey), l.frobenius(Side::kValue))},
                 {"balance_bits_spectral", balance_gap(l.spectral(Side::kKey), l.spectral(Side::kValue))},
                 {"heads", heads}});
        }
        out["cache"] = {{"n_tokens", cache.n_tokens},
                        {"n_sample_tokens", cache.n_sample_tokens},
                        {"keys", cache.as_cached ? "as the model caches them" : "turned back, as plans keep them"},
                        {"bits", kStudyBits},
                        {"groups", kStudyGroups},
                        {"group_study_bits", {{"k", kGroupStudyKeyBits}, {"v", kGroupStudyValueBits}}},
                        {"frobenius", comparison_json(compare_cache(cache, NormScore::kFrobenius))},
                        {"spectral", comparison_json(compare_cache(cache, NormScore::kSpectral))},
                        {"layers", layers}};
    } else {
        out["cache"] = nullptr;
    }
    return out.dump(1, ' ', true, nlohmann::json::error_handler_t::replace) + "\n";  // model names may be no UTF-8
}

}  // namespace kvaq
