#include "kvaq/llama/estimate.h"

#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "kvaq/cli/flags.h"
#include "kvaq/cli/verbs.h"
#include "kvaq/plan/budget_text.h"

namespace kvaq {
namespace {

struct EstimateFlags {
    std::string model;
    std::vector<std::string> plans = {"f16", "k8v8-g32", "k4v4-rot", "k4v2-rot"};
    size_t n_ctx = 0;
    std::optional<std::string> memory;
    size_t n_batch = 2048;
    size_t n_ubatch = 512;
    size_t rewind = 0;
    std::string json;
    bool per_layer = false;
    bool swa_full = false;
};

void print_estimate(const EstimateFlags& flags, const Estimate& found) {
    constexpr double kMiB = 1024 * 1024;
    const bool memory = flags.memory.has_value();
    fmt::print("{}: {} layers with a K/V cache; bytes of one sequence of {} tokens\n\n", found.shape.name,
               found.shape.layers.size(),
               flags.n_ctx == 0 || flags.n_ctx == found.n_ctx
                   ? fmt::format("{}", found.n_ctx)
                   : fmt::format("{} (what llama.cpp makes of -c {})", found.n_ctx, flags.n_ctx));
    fmt::print("| cache | bits/element | MiB | bytes/token | process MiB |{}\n|---|---|---|---|---|{}\n",
               memory ? fmt::format(" largest context in {} |", *flags.memory) : "", memory ? "---|" : "");
    for (const Estimate::Row& row : found.plans) {
        fmt::print("| {} | {:.2f} | {:.1f} | {:.0f} | {:.1f} |{}\n", row.plan.name, row.bytes.effective_bits,
                   static_cast<double>(row.bytes.total) / kMiB, bytes_per_token(row.plan),
                   static_cast<double>(row.process) / kMiB, memory ? fmt::format(" {} |", row.largest_context) : "");
    }
    for (const Estimate::LlamaRow& row : found.llama) {
        const double mib = static_cast<double>(row.bytes) / kMiB;
        fmt::print("| llama.cpp {} | {:.2f} | {:.1f} | | {:.1f} |{}\n", row.type, row.effective_bits, mib, mib,
                   memory ? fmt::format(" {} |", row.largest_context) : "");
    }
    fmt::print(
        "\nMiB: the cache. process MiB: with what the drop-in needs beside it, f16 rows of a micro-batch (-ub {}){} "
        "and "
        "llama.cpp's own cache of one batch (-b {}); smaller ones need less\n",
        flags.n_ubatch, flags.rewind > 0 ? fmt::format(" and of {} more tokens (--kv-rewind)", flags.rewind) : "",
        flags.n_batch);
    if (!flags.per_layer) return;
    for (const Estimate::Row& row : found.plans) {
        fmt::print("\n{} per layer\n\n| layer | K MiB | V MiB | f16 pages KiB | sinks KiB |\n|---|---|---|---|---|\n",
                   row.plan.name);
        for (const LayerBytes& layer : row.bytes.layers) {
            fmt::print("| {} | {:.3f} | {:.3f} | {:.1f} | {:.1f} |\n", layer.layer,
                       static_cast<double>(layer.packed_key) / kMiB, static_cast<double>(layer.packed_value) / kMiB,
                       static_cast<double>(layer.open) / 1024, static_cast<double>(layer.sinks) / 1024);
        }
    }
}

void run_estimate(const EstimateFlags& flags) {
    std::vector<std::string> inputs = flags.plans;
    inputs.push_back(flags.model);
    require_outputs({json_file(flags.json)}, inputs);
    const EstimateRequest request{.model = flags.model,
                                  .plans = flags.plans,
                                  .n_ctx = flags.n_ctx,
                                  .memory = flags.memory ? parse_bytes(*flags.memory) : 0,
                                  .n_batch = flags.n_batch,
                                  .n_ubatch = flags.n_ubatch,
                                  .rewind = flags.rewind,
                                  .swa_full = flags.swa_full};
    const Estimate found = estimate(request);
    if (!is_stdout(flags.json)) print_estimate(flags, found);
    if (!flags.json.empty()) write_json(flags.json, json_text(estimate_json(request, found)));
}

}  // namespace

void add_estimate(CLI::App& app) {
    auto flags = std::make_shared<EstimateFlags>();
    CLI::App* verb = app.add_subcommand("estimate", "bytes of the cache for a context, from the model's header only");
    verb->add_option("-m,--model", flags->model, "GGUF model")->required();
    verb->add_option("--plan", flags->plans, "presets or *.plan.gguf files, separated by commas")->delimiter(',');
    verb->add_option("-c,--ctx-size", flags->n_ctx, "tokens (0 = the model's training context)")
        ->check(CLI::Range(0, kMostTokens))
        ->capture_default_str();
    verb->add_option("--memory", flags->memory,
                     "also the largest context whose process MiB fit in this much, e.g. 512MiB or 4GiB");
    verb->add_option("-b,--batch-size", flags->n_batch, "as the program gets it: its own cache of one batch stays")
        ->check(CLI::Range(1, kMostTokens))
        ->capture_default_str();
    verb->add_option("--ubatch-size,--ub", flags->n_ubatch, "as the program gets it: f16 rows of a micro-batch stay")
        ->check(CLI::Range(1, kMostTokens))
        ->capture_default_str();
    verb->add_option("--kv-rewind", flags->rewind, "as the program gets it: f16 rows of so many more tokens stay")
        ->check(CLI::Range(size_t{0}, kMostRewind))
        ->capture_default_str();
    verb->add_flag("--layers", flags->per_layer, "a table per layer as well");
    verb->add_flag("--swa-full", flags->swa_full,
                   "sliding-window layers keep all their tokens, as llama.cpp programs have it with the same flag");
    verb->add_option("--json", flags->json, kJsonHelp);
    verb->callback([flags] { run_estimate(*flags); });
}

}  // namespace kvaq
