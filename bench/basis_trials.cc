// What other bases of transform codecs are worth, end to end: KL of plans with the same mean bits in every layer and head, one side quantized, through the
// packed cache and its kernels. scripts/basis_trials.sh makes the table.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>
#include <string>

#include "kvaq/base/file.h"
#include "kvaq/eval/prober.h"
#include "kvaq/eval/session.h"
#include "kvaq/llama/attach.h"
#include "kvaq/llama/stats_file.h"
#include "kvaq/plan/budget.h"
#include "kvaq/plan/planner.h"
#include "kvaq/stats/transform_fit.h"

namespace kvaq {
namespace {

using Basis = FitTrial::Basis;

struct Trial {
    const char* name;
    FitTrial how;
};
constexpr Trial kKeyTrials[] = {
    {"keys: eigenbasis weighted by the queries (the codec)", {}},
    {"keys: Hadamard matrix", {.keys = Basis::kHadamard}},
    {"keys: eigenbasis weighted by queries, attention and W_O", {.keys = Basis::kOutput}},
};
constexpr Trial kValueTrials[] = {
    {"values: Hadamard matrix (the codec)", {}},
    {"values: eigenbasis weighted by attention and W_O", {.values = Basis::kOutput}},
};
constexpr double kOtherBits = 8;
constexpr int32_t kSinks = 4;

struct Request {
    std::string model, stats, text, out;
    size_t n_ctx = 4096, n_chunks = 2;
    int32_t n_threads = 2;
};

void run(const Request& request) {
    const ModelStats stats = read_stats(request.stats);
    const ModelPtr model = load_model(request.model);
    nlohmann::ordered_json json = {{"schema_version", 1},
                                   {"kind", "kvaq.basis_trials"},
                                   {"model", request.model},
                                   {"text", request.text},
                                   {"n_ctx", request.n_ctx},
                                   {"n_chunks", request.n_chunks},
                                   {"rows", nlohmann::json::array()}};
    std::string table =
        "| basis | bits of keys | of values | bits/element | mean KL (nats) | same top token "
        "|\n|---|---|---|---|---|---|\n";
    Prober prober(
        model.get(),
        probe_chunks(model.get(), tokenize_file(model.get(), request.text), 0, request.n_chunks, request.n_ctx),
        request.n_ctx / 2, request.n_threads, {});
    const auto measure = [&](const Trial& trial, double key_bits, double value_bits) {
        set_fit_trial(trial.how);
        Plan plan =
            uniform_transform_plan(stats, fit_all(stats), key_bits, value_bits, 0, kSinks, TransformCodes::kTrellis);
        check_plan_fits(plan, model_shape_of(model.get()));
        const CacheBytes bytes = cache_bytes(plan, request.n_ctx);
        const double bits = 8.0 * static_cast<double>(bytes.total) / static_cast<double>(bytes.elements);
        const ProbeResult result = prober.measure(plan);
        const std::string row =
            fmt::format("| {} | {} | {} | {:.3f} | {:.5f} ± {:.5f} | {:.2f} % |\n", trial.name, key_bits, value_bits,
                        bits, result.kl.value, result.kl.error, 100 * result.same_top);
        std::fputs(row.c_str(), stderr);
        table += row;
        json["rows"].push_back({{"basis", trial.name},
                                {"key_bits", key_bits},
                                {"value_bits", value_bits},
                                {"effective_bits", bits},
                                {"mean_kl", {{"value", result.kl.value}, {"standard_error", result.kl.error}}},
                                {"same_top", result.same_top}});
    };
    for (const double bits : {2.0, 3.0}) {
        for (const Trial& trial : kKeyTrials) measure(trial, bits, kOtherBits);
        for (const Trial& trial : kValueTrials) measure(trial, kOtherBits, bits);
    }
    std::fputs(table.c_str(), stdout);
    if (request.out.empty()) return;
    atomic_write_text(
        request.out + ".md",
        fmt::format(
            "Bases of transform codecs (trellis codes, a gain per token, {} sinks), one side quantized, the other at "
            "{} bits, {} on {}, {} "
            "chunks of {} tokens, second halves scored, against llama.cpp's f16. The same mean bits in every layer "
            "and head, unequal over a head's channels; bits/element count the bases. `scripts/basis_trials.sh`\n\n",
            kSinks, kOtherBits, request.model, request.text, request.n_chunks, request.n_ctx) +
            table);
    atomic_write_text(request.out + ".json", json.dump(2) + "\n");
}

}  // namespace
}  // namespace kvaq

int main(int argc, char** argv) {
    CLI::App app("KL of plans with other bases of transform codecs");
    kvaq::Request request;
    app.add_option("-m,--model", request.model, "GGUF model")->required();
    app.add_option("--stats", request.stats, "*.stats.gguf of kvaq calibrate")->required();
    app.add_option("-f,--file", request.text, "text to score")->required();
    app.add_option("-c,--ctx-size", request.n_ctx, "tokens per chunk")->capture_default_str();
    app.add_option("--chunks", request.n_chunks, "number of chunks")->capture_default_str();
    app.add_option("-t,--threads", request.n_threads, "threads")->capture_default_str();
    app.add_option("--out", request.out, "writes OUT.md and OUT.json");
    CLI11_PARSE(app, argc, argv);
    try {
        kvaq::quiet_llama(false);
        kvaq::announce_plans(false);
        kvaq::run(request);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "basis_trials: error: %s\n", error.what());
        return 1;
    }
    return 0;
}
