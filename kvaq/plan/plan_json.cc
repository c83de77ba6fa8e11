#include "kvaq/plan/plan_json.h"

#include <nlohmann/json.hpp>

#include "kvaq/plan/budget.h"

namespace kvaq {

uint32_t schema_version(const Plan& plan) noexcept { return plan.key_period > 0 ? Plan::kSchemaVersion : 1; }

namespace {

nlohmann::ordered_json plan_fields(const Plan& plan) {
    nlohmann::ordered_json out;
    out["schema_version"] = schema_version(plan);
    out["name"] = plan.name;
    out["architecture"] = plan.architecture;
    out["model_name"] = plan.model_name;
    out["fingerprint"] = plan.fingerprint;
    out["tile_tokens"] = plan.tile_tokens;
    out["window"] = plan.window;
    out["sinks"] = plan.sinks;
    if (plan.key_period > 0) out["key_period"] = plan.key_period;
    out["predicted_kl"] = plan.predicted_kl;
    out["measured_how"] = plan.measured_how;
    out["layers"] = nlohmann::ordered_json::array();
    for (const LayerPlan& layer : plan.layers) {
        nlohmann::ordered_json heads = nlohmann::ordered_json::array();
        for (const HeadPlan& head : layer.heads)
            heads.push_back({{"key", to_string(head.key)}, {"value", to_string(head.value)}});
        out["layers"].push_back({{"layer", layer.shape.layer},
                                 {"n_heads", layer.shape.n_heads},
                                 {"n_kv_heads", layer.shape.n_kv_heads},
                                 {"head_dim_k", layer.shape.head_dim_k},
                                 {"head_dim_v", layer.shape.head_dim_v},
                                 {"sliding_window", layer.shape.sliding_window},
                                 {"heads", std::move(heads)}});
        if (plan.key_period == 0 || layer.key_turn.n_dims == 0) continue;
        out["layers"].back()["key_turn"] = {{"interleaved", layer.key_turn.interleaved},
                                            {"first_channel", layer.key_turn.first_channel},
                                            {"frequencies", layer.key_turn.frequencies}};
    }
    return out;
}

}  // namespace

nlohmann::ordered_json plan_to_json(const Plan& plan) {
    nlohmann::ordered_json out = plan_fields(plan);
    if (plan.predicted_kl < 0) out["predicted_kl"] = nullptr;
    out["bytes_per_token"] = bytes_per_token(plan);
    for (size_t i = 0; i < plan.layers.size(); ++i) {
        for (size_t h = 0; h < plan.layers[i].heads.size(); ++h) {
            nlohmann::ordered_json& head = out["layers"][i]["heads"][h];
            head["key_bits"] = nominal_bits(plan.layers[i].heads[h].key);
            head["value_bits"] = nominal_bits(plan.layers[i].heads[h].value);
        }
    }
    return out;
}

std::string canonical_text(const Plan& plan) {
    // Model names are bytes from a file and may be no UTF-8.
    return plan_fields(plan).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

}  // namespace kvaq
