// What other ways to seal a tile are worth, end to end: KL of one plan under each of them, through the packed cache and its kernels.
// scripts/seal_trials.sh makes the plans and the table.
#include <fmt/format.h>

#include <string>
#include <utility>
#include <vector>

#include "bench/escape_cache.h"
#include "bench/trials.h"
#include "kvaq/base/sha256.h"
#include "kvaq/cache/tile.h"
#include "kvaq/llama/plan_file.h"
#include "kvaq/plan/budget.h"
#include "kvaq/plan/plan_json.h"

namespace kvaq {
namespace {

struct Trial {
    const char* name;
    SealTrial how;
};
constexpr SealTrial kNoGain = {.gain = SealTrial::Gain::kFixed};
constexpr Trial kTrials[] = {
    {"a gain per token", {}},
    {"one gain per tile", {.gain = SealTrial::Gain::kTile}},
    {"no gain", kNoGain},
    {"a quarter of values' errors fed back", {.value_feedback = 0.25F}},
    {"half of values' errors fed back", {.value_feedback = 0.5F}},
    {"half of keys' errors fed back", {.key_feedback = 0.5F}},
};

/// Tokens that escape to f16, see bench/escape_cache.h.
struct EscapeTrial {
    const char* name;
    SealTrial how;
    size_t kept;      ///< tokens a tile
    size_t plan = 0;  ///< of those given
};
constexpr EscapeTrial kEscapeTrials[] = {
    {"a gain per token, by escape_cache.h", {}, 0},        {"a gain per token, 1 token of 64 escapes to f16", {}, 1},
    {"the same, a plan with as many bits less", {}, 1, 2}, {"no gain, 1 token of 64 escapes", kNoGain, 1},
    {"no gain, 4 tokens of 64 escape", kNoGain, 4},
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

/// Bits an element when the trial's gains are stored as they must be.
double true_bits(const SealTrial& how, const Plan& plan, size_t n_tokens) {
    const CacheBytes bytes = cache_bytes(plan, n_tokens);
    const auto gains = static_cast<double>(gain_bytes(plan, n_tokens));
    double kept = gains;
    if (how.gain == SealTrial::Gain::kTile) kept = gains / static_cast<double>(plan.tile_tokens);
    if (how.gain == SealTrial::Gain::kFixed) kept = 0;
    return 8 * (static_cast<double>(bytes.total) - gains + kept) / static_cast<double>(bytes.elements);
}

void run(const TrialRequest& request, const std::vector<std::string>& plan_files) {
    std::vector<Plan> plans;  // those that are no files are refused before the long work
    for (const std::string& file : plan_files) plans.push_back(read_plan(file));
    const ModelPtr model = load_model(request.model);
    for (const Plan& plan : plans) check_plan_fits(plan, model_shape_of(model.get()));
    Trials trials(request, model.get(), "kvaq.seal_trials", 2, "| sealed with | plan |");
    const auto measure = [&](const char* name, const SealTrial& how, const Plan& plan, double bits,
                             HandlerFactory served, size_t n_batch = Prober::kBatch) {
        set_seal_trial(how);
        trials.measure(fmt::format("| {} | {} |", name, plan.name),
                       {{"sealed_with", name}, {"plan", plan.name}, {"plan_sha256", sha256_hex(canonical_text(plan))}},
                       bits, std::move(served), n_batch);
    };
    for (const Trial& trial : kTrials) {
        // Other plans are there for comparison at equal bytes.
        for (size_t i = 0; i < (&trial == &kTrials[0] ? plans.size() : 1); ++i)
            measure(trial.name, trial.how, plans[i], true_bits(trial.how, plans[i], request.n_ctx),
                    serve_plan(plans[i]));
    }
    for (const EscapeTrial& trial : kEscapeTrials) {
        if (trial.plan >= plans.size()) continue;
        const Plan& plan = plans[trial.plan];
        measure(trial.name, trial.how, plan,
                true_bits(trial.how, plan, request.n_ctx) +
                    escape_bits(trial.kept, plan.layers[0].shape.head_dim_k, plan.tile_tokens),
                serve_escaping(plan, trial.kept), plan.tile_tokens);
    }
    trials.write(fmt::format(
        "Ways to seal transform codecs' tiles, {} on {}, {} chunks of {} tokens, second "
        "halves scored, against llama.cpp's f16. Gains and what escapes are counted as they would have to be "
        "stored. `scripts/seal_trials.sh`",
        request.model, request.text, request.n_chunks, request.n_ctx));
}

}  // namespace
}  // namespace kvaq

int main(int argc, char** argv) {
    CLI::App app("KL of a plan under other ways to seal a tile");
    kvaq::TrialRequest request;
    std::vector<std::string> plans;
    app.add_option("--plan", plans,
                   "*.plan.gguf files: the first is tried in every way, the others as they are; the third also with a "
                   "token of 64 that escapes")
        ->delimiter(',')
        ->required();
    return kvaq::run_trials(app, request, argc, argv, [&] { kvaq::run(request, plans); });
}
