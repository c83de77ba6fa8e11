// What other bases of transform codecs are worth, end to end: KL of plans with the same mean bits in every layer and head, one side quantized, through the
// packed cache and its kernels. scripts/basis_trials.sh makes the table.
#include <fmt/format.h>

#include <string>

#include "bench/trials.h"
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
    bool sorted_keys = false;
};
constexpr Trial kKeyTrials[] = {
    {"keys: eigenbasis weighted by the queries (the codec)", {}},
    {"keys: sorted channels (the codec where a matrix costs too much)", {}, true},
    {"keys: Hadamard matrix", {.keys = Basis::kHadamard}},
    {"keys: eigenbasis weighted by queries, attention and W_O", {.keys = Basis::kOutput}},
};
constexpr Trial kValueTrials[] = {
    {"values: Hadamard matrix (the codec)", {}},
    {"values: eigenbasis weighted by attention and W_O", {.values = Basis::kOutput}},
};
constexpr double kOtherBits = 8;
constexpr int32_t kSinks = 4;

void run(const TrialRequest& request, const std::string& stats_file) {
    const ModelStats stats = read_stats(stats_file);
    const ModelPtr model = load_model(request.model);
    Trials trials(request, model.get(), "kvaq.basis_trials", 1, "| basis | bits of keys | of values |");
    const auto measure = [&](const Trial& trial, double key_bits, double value_bits) {
        set_fit_trial(trial.how);
        const std::vector<FittedTransform> fits =
            fit_all(stats, trial.sorted_keys ? KeyBasis::kSorted : KeyBasis::kEigen);
        const Plan plan =
            uniform_transform_plan(stats, fits, key_bits, value_bits, 0, kSinks, TransformCodes::kTrellis);
        check_plan_fits(plan, model_shape_of(model.get()));
        trials.measure(fmt::format("| {} | {} | {} |", trial.name, key_bits, value_bits),
                       {{"basis", trial.name}, {"key_bits", key_bits}, {"value_bits", value_bits}},
                       cache_bytes(plan, request.n_ctx).effective_bits, serve_plan(plan));
    };
    for (const double bits : {2.0, 3.0}) {
        for (const Trial& trial : kKeyTrials) measure(trial, bits, kOtherBits);
        for (const Trial& trial : kValueTrials) measure(trial, kOtherBits, bits);
    }
    trials.write(fmt::format(
        "Bases of transform codecs (trellis codes, a gain per token, {} sinks), one side quantized, the other at "
        "{} bits, {} on {}, {} "
        "chunks of {} tokens, second halves scored, against llama.cpp's f16. The same mean bits in every layer "
        "and head, unequal over a head's channels; bits/element count the bases. `scripts/basis_trials.sh`",
        kSinks, kOtherBits, request.model, request.text, request.n_chunks, request.n_ctx));
}

}  // namespace
}  // namespace kvaq

int main(int argc, char** argv) {
    CLI::App app("KL of plans with other bases of transform codecs");
    kvaq::TrialRequest request;
    std::string stats;
    app.add_option("--stats", stats, "*.stats.gguf of kvaq calibrate")->required();
    return kvaq::run_trials(app, request, argc, argv, [&] { kvaq::run(request, stats); });
}
