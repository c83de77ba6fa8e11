#include "kvaq/cli/norm_policy.h"

#include <fmt/format.h>

#include <cmath>
#include <sstream>

#include "kvaq/base/error.h"
#include "kvaq/llama/gguf_model.h"
#include "kvaq/llama/stats_file.h"
#include "kvaq/llama/weight_norms.h"
#include "kvaq/plan/import.h"
#include "kvaq/stats/spectrum.h"

namespace kvaq {
namespace {

double number_of(const std::string& key, const std::string& text) {
    std::istringstream stream(text);
    double value = 0;
    if (!(stream >> value) || !stream.eof() || !(value > 0)) {
        throw Error(ErrorCode::kInvalidArgument, "policy option " + key, "a number above 0", "'" + text + "'");
    }
    return value;
}

/// Norms of the cache per token and layer: |K|_F of all heads, or the mean over heads of |K|_2.
LayerNorms cache_norms(const ModelStats& stats, NormScore score) {
    LayerNorms out;
    for (const LayerStats& layer : stats.layers) {
        double key = 0;
        double value = 0;
        for (const HeadStats& head : layer.heads) {
            if (score == NormScore::kFrobenius) {
                key += head.key_norm() * head.key_norm();
                value += head.value_norm() * head.value_norm();
            } else {
                key += spectral_norm(head.cached_keys(), head.key_mean.size(), 1) /
                       static_cast<double>(layer.heads.size());
                value += spectral_norm(head.value_second, head.value_mean.size(), 1) /
                         static_cast<double>(layer.heads.size());
            }
        }
        out.key.push_back(score == NormScore::kFrobenius ? std::sqrt(key) : key);
        out.value.push_back(score == NormScore::kFrobenius ? std::sqrt(value) : value);
    }
    return out;
}

}  // namespace

bool is_norm_policy(const std::string& policy) {
    const std::string name = policy.substr(0, policy.find(':'));
    return name == "norm-greedy" || name == "spectral";
}

Plan norm_policy_plan(const NormPolicyRequest& request, std::vector<std::string>& warnings) {
    const size_t colon = request.policy.find(':');
    const std::string name = request.policy.substr(0, colon);
    NormScore score = name == "spectral" ? NormScore::kSpectral : NormScore::kFrobenius;
    ImportContext context;
    context.budget = 4;
    context.base = parse_preset("k4v4");
    std::istringstream options(colon == std::string::npos ? "" : request.policy.substr(colon + 1));
    std::string option;
    while (std::getline(options, option, ',')) {
        const size_t equals = option.find('=');
        const std::string key = option.substr(0, equals);
        const std::string value = equals == std::string::npos ? "" : option.substr(equals + 1);
        if (key == "bits") {
            context.budget = number_of(key, value);
        } else if (key == "groups") {
            context.group_budget = number_of(key, value);
        } else if (key == "score" && (value == "F" || value == "S")) {
            score = value == "F" ? NormScore::kFrobenius : NormScore::kSpectral;
        } else if (key == "base") {
            context.base = parse_preset(value);
        } else {
            throw Error(ErrorCode::kInvalidArgument, "policy " + name,
                        "options bits=N, score=F or S, groups=N, base=PRESET", "'" + option + "'");
        }
    }
    context.base.window = request.window;
    context.base.sinks = request.sinks;
    context.shape = read_model_shape(request.model);
    const bool cache = !request.stats.empty();
    context.what = fmt::format("{} {} bits, {} norm of the {}, codecs as {}", name, context.budget,
                               score == NormScore::kFrobenius ? "Frobenius" : "spectral", cache ? "cache" : "weights",
                               context.base.name);
    LayerNorms norms;
    if (cache) {
        norms = cache_norms(read_stats_of(request.stats, request.model, context.shape.fingerprint), score);
    } else {
        const WeightNorms weights = read_weight_norms(request.model);
        norms = weights.of(score);
        if (weights.qk_norm)
            warnings.emplace_back(
                "this model normalises its keys after W_K (QK-norm): weight norms say nothing about its cache; give "
                "--stats for cache norms");
    }
    Plan plan = greedy_plan(norms, context, warnings);
    for (std::string& warning : plan_warnings(plan)) warnings.push_back(std::move(warning));
    return plan;
}

}  // namespace kvaq
