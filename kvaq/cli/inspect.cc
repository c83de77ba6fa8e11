#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "kvaq/base/error.h"
#include "kvaq/cli/verbs.h"
#include "kvaq/llama/gguf_file.h"
#include "kvaq/llama/gguf_model.h"
#include "kvaq/llama/plan_file.h"
#include "kvaq/plan/budget.h"
#include "kvaq/plan/plan_json.h"

namespace kvaq {
namespace {

struct InspectFlags {
    std::string file;
    bool json = false;
};

void inspect_plan(const std::string& path, bool json) {
    const Plan plan = read_plan(path);
    if (json) {
        fmt::print("{}\n", plan_to_json(plan).dump(2));
        return;
    }
    fmt::print("plan {}\nmodel: {} ({}), fingerprint {}\nwindow {}, sinks {}, tiles of {} tokens\n", plan.name, plan.model_name, plan.architecture,
               plan.fingerprint.empty() ? "any" : plan.fingerprint.substr(0, 16), plan.window, plan.sinks, plan.tile_tokens);
    if (plan.predicted_kl >= 0) fmt::print("predicted KL {:.5f} nats per token ({})\n", plan.predicted_kl, plan.measured_how);
    fmt::print("{:.1f} bytes per token; at 8192 tokens {:.2f} bits per element\n\n| layer | head | K | V |\n|---|---|---|---|\n", bytes_per_token(plan),
               cache_bytes(plan, 8192).effective_bits);
    for (const LayerPlan& layer : plan.layers) {
        for (size_t head = 0; head < layer.heads.size(); ++head) {
            fmt::print("| {} | {} | {} | {} |\n", layer.shape.layer, head, to_string(layer.heads[head].key), to_string(layer.heads[head].value));
        }
    }
}

void inspect_model(const std::string& path, bool json) {
    const ModelShape shape = read_model_shape(path);
    const std::string fingerprint = model_fingerprint(path);
    if (json) {
        nlohmann::ordered_json out = {{"schema_version", 1}, {"kind", "model"}, {"name", shape.name}, {"architecture", shape.architecture}, {"fingerprint", fingerprint}, {"n_ctx_train", shape.n_ctx_train}};
        for (const LayerShape& layer : shape.layers) {
            out["layers"].push_back({{"layer", layer.layer}, {"n_heads", layer.n_heads}, {"n_kv_heads", layer.n_kv_heads}, {"head_dim_k", layer.head_dim_k}, {"head_dim_v", layer.head_dim_v}, {"sliding_window", layer.sliding_window}});
        }
        fmt::print("{}\n", out.dump(2));
        return;
    }
    fmt::print("model {} ({})\nfingerprint {}\ntraining context {}\n\n| layer | heads | KV heads | K size | V size | window |\n|---|---|---|---|---|---|\n", shape.name,
               shape.architecture, fingerprint, shape.n_ctx_train);
    for (const LayerShape& layer : shape.layers) {
        fmt::print("| {} | {} | {} | {} | {} | {} |\n", layer.layer, layer.n_heads, layer.n_kv_heads, layer.head_dim_k, layer.head_dim_v,
                   layer.sliding_window > 0 ? std::to_string(layer.sliding_window) : "all");
    }
}

void run_inspect(const InspectFlags& flags) {
    const GgufReader file(flags.file, "file");
    const std::string type = file.find_string("general.type").value_or("");
    if (type == "kvaq-plan" || file.has_prefix("kvaq.plan.")) return inspect_plan(flags.file, flags.json);
    if (file.has("general.architecture") && !file.has_prefix("kvaq.")) return inspect_model(flags.file, flags.json);
    throw Error(ErrorCode::kInvalidArgument, "nothing kvaq knows is in this file", "a plan or a model", "'" + flags.file + "' of type '" + type + "'");
}

}  // namespace

void add_inspect(CLI::App& app) {
    auto flags = std::make_shared<InspectFlags>();
    CLI::App* verb = app.add_subcommand("inspect", "what a plan or model file holds");
    verb->add_option("file", flags->file, "*.plan.gguf or model")->required();
    verb->add_flag("--json", flags->json, "as JSON on stdout");
    verb->callback([flags] { run_inspect(*flags); });
}

}  // namespace kvaq
