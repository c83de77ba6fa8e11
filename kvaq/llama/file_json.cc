#include "kvaq/llama/file_json.h"

#include <nlohmann/json.hpp>

#include "kvaq/base/error.h"
#include "kvaq/llama/gguf_file.h"
#include "kvaq/llama/gguf_model.h"
#include "kvaq/llama/plan_file.h"
#include "kvaq/llama/stats_file.h"
#include "kvaq/plan/plan_json.h"

namespace kvaq {
namespace {

nlohmann::ordered_json plan_json(const Plan& plan) {
    nlohmann::ordered_json out = plan_to_json(plan);
    out["kind"] = "plan";
    return out;
}

nlohmann::ordered_json model_json(const std::string& path) {
    const ModelShape shape = read_model_shape(path);
    const std::string fingerprint = model_fingerprint(path);
    nlohmann::ordered_json out = {{"schema_version", 1},        {"kind", "model"},
                                  {"name", shape.name},         {"architecture", shape.architecture},
                                  {"fingerprint", fingerprint}, {"n_ctx_train", shape.n_ctx_train}};
    for (const LayerShape& layer : shape.layers) {
        out["layers"].push_back({{"layer", layer.layer},
                                 {"n_heads", layer.n_heads},
                                 {"n_kv_heads", layer.n_kv_heads},
                                 {"head_dim_k", layer.head_dim_k},
                                 {"head_dim_v", layer.head_dim_v},
                                 {"sliding_window", layer.sliding_window}});
    }
    return out;
}

nlohmann::ordered_json stats_json(const ModelStats& stats) {
    nlohmann::ordered_json out = {{"schema_version", ModelStats::kSchemaVersion},
                                  {"kind", "stats"},
                                  {"model", stats.model_name},
                                  {"architecture", stats.architecture},
                                  {"fingerprint", stats.fingerprint},
                                  {"text_sha256", stats.text_sha256},
                                  {"n_tokens", stats.n_tokens},
                                  {"sample_tiles_per_head", stats.n_sample_tiles},
                                  {"probe_bits", stats.probe_bits},
                                  {"base_bits", stats.base_bits},
                                  {"base_kl", stats.base_kl},
                                  {"joint_floor", stats.joint_floor}};
    for (const LengthProbe& probe : stats.lengths) {
        out["length_probes"].push_back(
            {{"n_ctx", probe.n_ctx}, {"short_ctx", probe.short_ctx}, {"kl", probe.kl}, {"short_kl", probe.short_kl}});
    }
    for (const JointProbe& probe : stats.joint)
        out["joint_probes"].push_back({{"key_bits", probe.key_bits},
                                       {"value_bits", probe.value_bits},
                                       {"window", probe.window},
                                       {"kl", probe.kl}});
    for (const LayerStats& layer : stats.layers) {
        nlohmann::ordered_json row = {{"layer", layer.shape.layer},
                                      {"head_dim_k", layer.shape.head_dim_k},
                                      {"head_dim_v", layer.shape.head_dim_v}};
        for (const HeadStats& head : layer.heads)
            row["heads"].push_back({{"key_norm", head.key_norm()}, {"value_norm", head.value_norm()}});
        if (layer.probe.key_kl > LayerProbe::kNotMeasured) row["probe_key_kl"] = layer.probe.key_kl;
        if (layer.probe.value_kl > LayerProbe::kNotMeasured) row["probe_value_kl"] = layer.probe.value_kl;
        out["layers"].push_back(row);
    }
    return out;
}

}  // namespace

FileKind file_kind(const std::string& path) {
    const GgufReader file(path, "file");
    const std::string type = file.find_string("general.type").value_or("");
    if (type == "kvaq-plan" || file.has_prefix("kvaq.plan.")) return FileKind::kPlan;
    if (type == "kvaq-stats" || file.has_prefix("kvaq.stats.")) return FileKind::kStats;
    if (file.has("general.architecture") && !file.has_prefix("kvaq.")) return FileKind::kModel;
    throw Error(ErrorCode::kInvalidArgument, "nothing kvaq knows is in this file", "a plan, statistics or a model",
                "'" + path + "' of type '" + type + "'");
}

nlohmann::ordered_json file_json(const std::string& path) {
    switch (file_kind(path)) {
        case FileKind::kPlan:
            return plan_json(read_plan(path));
        case FileKind::kStats:
            return stats_json(read_stats(path));
        default:
            return model_json(path);
    }
}

std::string file_command(const std::string& path) {
    const GgufReader file(path, "file");
    for (const char* key : {"kvaq.plan.command", "kvaq.stats.command"}) {
        if (const auto command = file.find_string(key)) return printable(*command);
    }
    return "";
}

}  // namespace kvaq
