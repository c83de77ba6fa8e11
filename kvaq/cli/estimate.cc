#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/cli/flags.h"
#include "kvaq/cli/verbs.h"
#include "kvaq/llama/gguf_model.h"
#include "kvaq/llama/plan_file.h"
#include "kvaq/plan/budget.h"
#include "kvaq/plan/budget_text.h"

namespace kvaq {
namespace {

struct EstimateFlags {
    std::string model;
    std::vector<std::string> plans = {"f16", "k8v8-g32", "k4v4-rot", "k4v2-rot"};
    size_t n_ctx = 0;
    std::string memory;
    std::string json;
    bool per_layer = false;
    bool swa_full = false;
};

Plan plan_of(const std::string& preset_or_file, const ModelShape& shape) {
    if (is_preset(preset_or_file)) return make_uniform_plan(parse_preset(preset_or_file), shape);
    Plan plan = read_plan(preset_or_file);
    check_plan_fits(plan, shape);
    return plan;
}

/// Largest n with llama_cache_bytes(shape, type, n) <= bytes; 0 if none. The bytes never fall with n.
size_t largest_llama_context(const ModelShape& shape, const std::string& type, size_t bytes) {
    size_t low = 0;
    size_t high = 1;
    while (high < (size_t{1} << 40) && llama_cache_bytes(shape, type, high) <= bytes) high *= 2;
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        (llama_cache_bytes(shape, type, middle) <= bytes ? low : high) = middle;
    }
    return low;
}

void run_estimate(EstimateFlags flags) {
    require_writable(flags.json);
    ModelShape shape = read_model_shape(flags.model);
    shape.fingerprint = model_fingerprint(flags.model);
    if (flags.n_ctx == 0) flags.n_ctx = static_cast<size_t>(shape.n_ctx_train);
    const size_t memory = flags.memory.empty() ? 0 : parse_bytes(flags.memory);
    std::vector<Plan> plans;  // all names checked before the first line is printed
    for (const std::string& name : flags.plans) plans.push_back(plan_of(name, shape));
    nlohmann::ordered_json json = {
        {"schema_version", 1}, {"kind", "kvaq.estimate"}, {"model", flags.model}, {"n_ctx", flags.n_ctx}};
    constexpr double kMiB = 1024 * 1024;
    fmt::print("{}: {} layers with a K/V cache; bytes of one sequence of {} tokens\n\n", shape.name,
               shape.layers.size(), flags.n_ctx);
    fmt::print("| cache | bits/element | MiB | bytes/token |{}\n|---|---|---|---|{}\n",
               memory > 0 ? fmt::format(" largest context in {} |", flags.memory) : "", memory > 0 ? "---|" : "");
    for (const Plan& plan : plans) {
        const CacheBytes bytes = cache_bytes(plan, flags.n_ctx, flags.swa_full);
        fmt::print("| {} | {:.2f} | {:.1f} | {:.0f} |", plan.name, bytes.effective_bits,
                   static_cast<double>(bytes.total) / kMiB, bytes_per_token(plan));
        if (memory > 0) fmt::print(" {} |", largest_context(plan, memory, flags.swa_full));
        fmt::print("\n");
        nlohmann::ordered_json row = {{"name", plan.name},
                                      {"bytes", bytes.total},
                                      {"effective_bits", bytes.effective_bits},
                                      {"bytes_per_token", bytes_per_token(plan)}};
        if (memory > 0) row["largest_context"] = largest_context(plan, memory, flags.swa_full);
        for (const LayerBytes& layer : bytes.layers) {
            row["layers"].push_back({{"layer", layer.layer},
                                     {"packed_key", layer.packed_key},
                                     {"packed_value", layer.packed_value},
                                     {"open", layer.open},
                                     {"sinks", layer.sinks}});
        }
        json["plans"].push_back(row);
    }
    const auto elements =
        static_cast<double>(cache_bytes(make_uniform_plan(parse_preset("f16"), shape), flags.n_ctx).elements);
    ModelShape kept = shape;  // what llama.cpp keeps of every layer
    for (LayerShape& layer : kept.layers) layer.sliding_window = flags.swa_full ? 0 : layer.sliding_window;
    for (const char* type : {"f16", "q8_0", "q5_1", "q4_0"}) {
        const size_t bytes = llama_cache_bytes(kept, type, flags.n_ctx);
        fmt::print("| llama.cpp {} | {:.2f} | {:.1f} | |{}\n", type, 8.0 * static_cast<double>(bytes) / elements,
                   static_cast<double>(bytes) / kMiB,
                   memory > 0 ? fmt::format(" {} |", largest_llama_context(kept, type, memory)) : "");
        nlohmann::ordered_json row = {{"type", type}, {"bytes", bytes}};
        if (memory > 0) row["largest_context"] = largest_llama_context(kept, type, memory);
        json["llama.cpp"].push_back(row);
    }
    if (flags.per_layer) {
        for (const Plan& plan : plans) {
            const CacheBytes bytes = cache_bytes(plan, flags.n_ctx, flags.swa_full);
            fmt::print(
                "\n{} per layer\n\n| layer | K MiB | V MiB | f16 pages KiB | sinks KiB |\n|---|---|---|---|---|\n",
                plan.name);
            for (const LayerBytes& layer : bytes.layers) {
                fmt::print("| {} | {:.3f} | {:.3f} | {:.1f} | {:.1f} |\n", layer.layer,
                           static_cast<double>(layer.packed_key) / kMiB, static_cast<double>(layer.packed_value) / kMiB,
                           static_cast<double>(layer.open) / 1024, static_cast<double>(layer.sinks) / 1024);
            }
        }
    }
    if (!flags.json.empty()) {
        const std::string text = json.dump(2) + "\n";
        atomic_write(flags.json, std::as_bytes(std::span(text)));
    }
}

}  // namespace

void add_estimate(CLI::App& app) {
    auto flags = std::make_shared<EstimateFlags>();
    CLI::App* verb = app.add_subcommand("estimate", "bytes of the cache for a context, from the model's header only");
    verb->add_option("-m,--model", flags->model, "GGUF model")->required();
    verb->add_option("--plan", flags->plans, "presets or *.plan.gguf files, separated by commas")->delimiter(',');
    verb->add_option("-c,--ctx-size", flags->n_ctx, "tokens (0 = the model's training context)")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    verb->add_option("--memory", flags->memory, "also the largest context that fits in this much, e.g. 512MiB or 4GiB");
    verb->add_flag("--layers", flags->per_layer, "a table per layer as well");
    verb->add_flag("--swa-full", flags->swa_full,
                   "sliding-window layers keep all their tokens, as llama.cpp programs have it with the same flag");
    verb->add_option("--json", flags->json, "write all numbers here");
    verb->callback([flags] { run_estimate(*flags); });
}

}  // namespace kvaq
