#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "kvaq/cli/flags.h"
#include "kvaq/cli/verbs.h"
#include "kvaq/llama/file_json.h"
#include "kvaq/llama/gguf_model.h"
#include "kvaq/llama/plan_file.h"
#include "kvaq/llama/stats_file.h"
#include "kvaq/plan/budget.h"

namespace kvaq {
namespace {

struct InspectFlags {
    std::string file;
    std::string json;
};

void print_command(const std::string& path) {
    if (const std::string command = file_command(path); !command.empty()) fmt::print("made by: {}\n", command);
}

void inspect_plan(const std::string& path) {
    const Plan plan = read_plan(path);
    fmt::print("plan {}\nmodel: {} ({}), fingerprint {}\nwindow {}, sinks {}, tiles of {} tokens\n", plan.name,
               plan.model_name, plan.architecture, plan.fingerprint.empty() ? "any" : plan.fingerprint.substr(0, 16),
               plan.window, plan.sinks, plan.tile_tokens);
    print_command(path);
    if (plan.key_period > 0) fmt::print("packed keys turned back by multiples of {} positions\n", plan.key_period);
    if (plan.predicted_kl >= 0)
        fmt::print("predicted KL {:.5f} nats per token ({})\n", plan.predicted_kl, plan.measured_how);
    fmt::print(
        "{:.1f} bytes per token; at 8192 tokens {:.2f} bits per element\n\n| layer | head | K | V "
        "|\n|---|---|---|---|\n",
        bytes_per_token(plan), cache_bytes(plan, 8192).effective_bits);
    for (const LayerPlan& layer : plan.layers) {
        for (size_t head = 0; head < layer.heads.size(); ++head) {
            fmt::print("| {} | {} | {} | {} |\n", layer.shape.layer, head, to_string(layer.heads[head].key),
                       to_string(layer.heads[head].value));
        }
    }
}

void inspect_model(const std::string& path) {
    const ModelShape shape = read_model_shape(path);
    const std::string fingerprint = model_fingerprint(path);
    fmt::print(
        "model {} ({})\nfingerprint {}\ntraining context {}\n\n| layer | heads | KV heads | K size | V size | window "
        "|\n|---|---|---|---|---|---|\n",
        shape.name, shape.architecture, fingerprint, shape.n_ctx_train);
    for (const LayerShape& layer : shape.layers) {
        fmt::print("| {} | {} | {} | {} | {} | {} |\n", layer.layer, layer.n_heads, layer.n_kv_heads, layer.head_dim_k,
                   layer.head_dim_v, layer.sliding_window > 0 ? std::to_string(layer.sliding_window) : "all");
    }
}

double mean_of(const LayerStats& layer, double (HeadStats::*value)() const noexcept) {
    double sum = 0;
    for (const HeadStats& head : layer.heads) sum += (head.*value)();
    return sum / static_cast<double>(layer.heads.size());
}

/// Norms are the mean over KV heads of sqrt(mean over tokens of |k|^2); a damage is KL in nats per token of that side of that
/// layer alone at the probe's codec.
void inspect_stats(const std::string& path) {
    const ModelStats stats = read_stats(path);
    fmt::print("statistics of {} ({})\nfingerprint {}\n{} tokens of text {}, {} sample tiles per head\n",
               stats.model_name, stats.architecture, stats.fingerprint, stats.n_tokens, stats.text_sha256.substr(0, 16),
               stats.n_sample_tiles);
    print_command(path);
    fmt::print(
        "{}\n\n| layer | KV heads | norm of K | norm of V | damage of K (nats) | damage of V (nats) "
        "|\n|---|---|---|---|---|---|\n",
        stats.probe_bits <= 0 ? std::string("no damage probes")
                              : fmt::format("damage: KL added when one side of one layer goes from {} to {} bits, "
                                            "everything else at {} bits (KL {:.5f})",
                                            stats.base_bits, stats.probe_bits, stats.base_bits, stats.base_kl));
    const auto damage = [](double kl) {
        return kl > LayerProbe::kNotMeasured ? fmt::format("{:.5f}", kl) : std::string("-");
    };
    for (const LayerStats& layer : stats.layers) {
        fmt::print("| {} | {} | {:.3f} | {:.3f} | {} | {} |\n", layer.shape.layer, layer.heads.size(),
                   mean_of(layer, &HeadStats::key_norm), mean_of(layer, &HeadStats::value_norm),
                   damage(layer.probe.key_kl), damage(layer.probe.value_kl));
    }
}

void run_inspect(const InspectFlags& flags) {
    require_outputs({json_file(flags.json)}, {flags.file});
    if (!flags.json.empty()) write_json(flags.json, json_text(file_json(flags.file)));
    if (is_stdout(flags.json)) return;
    switch (file_kind(flags.file)) {
        case FileKind::kPlan:
            return inspect_plan(flags.file);
        case FileKind::kStats:
            return inspect_stats(flags.file);
        case FileKind::kModel:
            return inspect_model(flags.file);
    }
}

}  // namespace

void add_inspect(CLI::App& app) {
    auto flags = std::make_shared<InspectFlags>();
    CLI::App* verb = app.add_subcommand("inspect", "what a plan, statistics or model file holds");
    verb->add_option("file", flags->file, "*.plan.gguf, *.stats.gguf or model")->required();
    verb->add_option("--json", flags->json, kJsonHelp);
    verb->callback([flags] { run_inspect(*flags); });
}

}  // namespace kvaq
