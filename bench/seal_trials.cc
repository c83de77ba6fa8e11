// What other ways to seal a tile are worth, end to end: KL of one plan under each of them, through the packed cache and its kernels.
// scripts/seal_trials.sh makes the plans and the table.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kvaq/base/file.h"
#include "kvaq/cache/tile.h"
#include "kvaq/eval/compare.h"
#include "kvaq/eval/session.h"
#include "kvaq/llama/attach.h"
#include "kvaq/llama/plan_file.h"
#include "kvaq/plan/budget.h"

namespace kvaq {
namespace {

struct Trial {
    const char* name;
    SealTrial how;
};
constexpr Trial kTrials[] = {
    {"a gain per token", {}},
    {"one gain per tile", {.gain = SealTrial::Gain::kTile}},
    {"no gain", {.gain = SealTrial::Gain::kFixed}},
    {"a quarter of values' errors fed back", {.value_feedback = 0.25F}},
    {"half of values' errors fed back", {.value_feedback = 0.5F}},
    {"half of keys' errors fed back", {.key_feedback = 0.5F}},
};

/// Bytes of gains in a cache of n_tokens tokens: one per token and transform codec.
size_t gain_bytes(const Plan& plan, size_t n_tokens) {
    const CacheBytes bytes = cache_bytes(plan, n_tokens);
    size_t sum = 0;
    for (size_t l = 0; l < plan.layers.size(); ++l) {
        const LayerPlan& layer = plan.layers[l];
        size_t one_tile = 0;
        size_t n_gains = 0;
        for (const HeadPlan& head : layer.heads) {
            one_tile += packed_bytes(head.key, Side::kKey, layer.shape.head_dim_k, plan.tile_tokens);
            n_gains += (head.key.transform != nullptr ? 1 : 0) + (head.value.transform != nullptr ? 1 : 0);
        }
        sum += bytes.layers[l].packed_key / one_tile * plan.tile_tokens * n_gains;
    }
    return sum;
}

/// Bits an element that are left when the trial's gains are stored as they must be.
double true_bits(const Trial& trial, const Plan& plan, const CompareRow& row, size_t n_tokens) {
    const auto gains = static_cast<double>(gain_bytes(plan, n_tokens));
    double kept = gains;
    if (trial.how.gain == SealTrial::Gain::kTile) kept = gains / static_cast<double>(plan.tile_tokens);
    if (trial.how.gain == SealTrial::Gain::kFixed) kept = 0;
    return row.effective_bits * (1 - (gains - kept) / static_cast<double>(row.bytes));
}

void run(const CompareRequest& given, const std::string& out) {
    nlohmann::ordered_json json = {
        {"schema_version", 1},  {"kind", "kvaq.seal_trials"}, {"model", given.model},           {"text", given.text},
        {"n_ctx", given.n_ctx}, {"n_chunks", given.n_chunks}, {"rows", nlohmann::json::array()}};
    std::vector<Plan> plans;  // those that are no files are refused before the long work
    for (const std::string& file : given.plans) plans.push_back(read_plan(file));
    std::string table =
        "| sealed with | plan | bits/element | mean KL (nats) | same top token |\n|---|---|---|---|---|\n";
    for (const Trial& trial : kTrials) {
        CompareRequest request = given;
        request.control = false;
        // Other plans are there for comparison at equal bytes.
        if (&trial != &kTrials[0]) request.plans.resize(1);
        set_seal_trial(trial.how);
        const CompareResult result = compare(request, [&](size_t done, size_t total, const std::string& now) {
            std::fprintf(stderr, "%s: %zu/%zu %s\n", trial.name, done, total, now.c_str());
        });
        for (size_t i = 0; i < request.plans.size(); ++i) {
            const CompareRow& row = result.rows[1 + i];
            const double bits = true_bits(trial, plans[i], row, request.n_ctx);
            const ScoreSummary& s = row.summary;
            table +=
                fmt::format("| {} | {} | {:.3f} | {:.5f} ± {:.5f} | {:.2f} ± {:.2f} % |\n", trial.name, row.name, bits,
                            s.mean_kl.value, s.mean_kl.error, 100 * s.same_top.value, 100 * s.same_top.error);
            json["rows"].push_back({{"sealed_with", trial.name},
                                    {"plan", row.name},
                                    {"plan_sha256", row.plan_sha256},
                                    {"effective_bits", bits},
                                    {"mean_kl", {{"value", s.mean_kl.value}, {"standard_error", s.mean_kl.error}}},
                                    {"same_top", {{"value", s.same_top.value}, {"standard_error", s.same_top.error}}}});
        }
    }
    std::fputs(table.c_str(), stdout);
    if (out.empty()) return;
    atomic_write_text(out + ".md",
                      fmt::format("Ways to seal transform codecs' tiles, {} on {}, {} chunks of {} tokens, second "
                                  "halves scored, against llama.cpp's f16. "
                                  "Gains are counted as they would have to be stored. `scripts/seal_trials.sh`\n\n",
                                  given.model, given.text, given.n_chunks, given.n_ctx) +
                          table);
    atomic_write_text(out + ".json", json.dump(2) + "\n");
}

}  // namespace
}  // namespace kvaq

int main(int argc, char** argv) {
    CLI::App app("KL of a plan under other ways to seal a tile");
    kvaq::CompareRequest request;
    std::string out;
    app.add_option("-m,--model", request.model, "GGUF model")->required();
    app.add_option("-f,--file", request.text, "text to score")->required();
    app.add_option("--plan", request.plans,
                   "*.plan.gguf files: the first is tried in every way, the others as they are")
        ->delimiter(',')
        ->required();
    app.add_option("-c,--ctx-size", request.n_ctx, "tokens per chunk")->capture_default_str();
    app.add_option("--chunks", request.n_chunks, "number of chunks")->capture_default_str();
    app.add_option("-t,--threads", request.n_threads, "threads")->capture_default_str();
    app.add_option("--out", out, "writes OUT.md and OUT.json");
    CLI11_PARSE(app, argc, argv);
    try {
        kvaq::quiet_llama(false);
        kvaq::announce_plans(false);
        kvaq::run(request, out);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "seal_trials: error: %s\n", error.what());
        return 1;
    }
    return 0;
}
