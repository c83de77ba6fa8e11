#include <fmt/format.h>

#include <cstdio>
#include <memory>

#include "kvaq/base/error.h"
#include "kvaq/cli/flags.h"
#include "kvaq/cli/norm_policy.h"
#include "kvaq/cli/verbs.h"
#include "kvaq/llama/gguf_model.h"
#include "kvaq/llama/plan_file.h"
#include "kvaq/llama/stats_file.h"
#include "kvaq/plan/budget.h"
#include "kvaq/plan/damage.h"

namespace kvaq {
namespace {

struct PlanFlags {
    std::string model;
    std::string stats;
    std::string budget;
    std::string policy = "measured";
    std::string out;
    size_t n_ctx = 8192;
    int32_t window = 0;
    int32_t sinks = 4;
};

double mean_bits(const LayerPlan& layer, Side side) {
    double sum = 0;
    for (const HeadPlan& head : layer.heads) sum += nominal_bits(side == Side::kKey ? head.key : head.value);
    return sum / static_cast<double>(layer.heads.size());
}

void print_plan(const Plan& plan, size_t n_ctx) {
    fmt::print("plan {} for {}\n\n| layer | K bits | V bits |\n|---|---|---|\n", plan.name, plan.model_name);
    double key = 0;
    double value = 0;
    for (const LayerPlan& layer : plan.layers) {
        fmt::print("| {} | {:.2f} | {:.2f} |\n", layer.shape.layer, mean_bits(layer, Side::kKey), mean_bits(layer, Side::kValue));
        key += mean_bits(layer, Side::kKey);
        value += mean_bits(layer, Side::kValue);
    }
    const auto n = static_cast<double>(plan.layers.size());
    const CacheBytes bytes = cache_bytes(plan, n_ctx);
    fmt::print("\nmean code bits: K {:.2f}, V {:.2f} (ratio {:.2f})\n{:.2f} effective bits and {:.1f} MiB at {} tokens, {:.0f} bytes per further token\n", key / n, value / n, key / value,
               bytes.effective_bits, static_cast<double>(bytes.total) / (1024 * 1024), n_ctx, bytes_per_token(plan));
    if (plan.predicted_kl >= 0) fmt::print("predicted KL {:.4f} nats per token (check it with kvaq eval)\n", plan.predicted_kl);
}

ModelStats stats_of(const PlanFlags& flags) {
    if (flags.stats.empty()) {
        throw Error(ErrorCode::kInvalidArgument, "this policy needs statistics", "--stats FILE", "nothing", "Make them with: kvaq calibrate -m " + flags.model + " -f TEXT -o MODEL.stats.gguf");
    }
    return read_stats_of(flags.stats, flags.model, model_fingerprint(flags.model));
}

void run_plan(const PlanFlags& flags) {
    require_writable(flags.out);
    Plan plan;
    if (flags.policy.rfind("uniform:", 0) == 0) {
        ModelShape shape = read_model_shape(flags.model);
        shape.fingerprint = model_fingerprint(flags.model);
        plan = make_uniform_plan(parse_preset(flags.policy.substr(8)), shape);
        plan.fingerprint = shape.fingerprint;
    } else if (is_norm_policy(flags.policy)) {
        std::vector<std::string> warnings;
        plan = norm_policy_plan({.policy = flags.policy, .model = flags.model, .stats = flags.stats, .window = flags.window, .sinks = flags.sinks}, warnings);
        for (const std::string& warning : warnings) fmt::print(stderr, "kvaq: warning: {}\n", warning);
    } else if (flags.policy.rfind("transform:", 0) == 0) {
        double key = -1;
        double value = -1;
        if (std::sscanf(flags.policy.c_str(), "transform:k%lfv%lf", &key, &value) != 2 || !(key >= 0) || !(value >= 0)) {
            throw Error(ErrorCode::kInvalidArgument, "unreadable policy", "transform:k<bits>v<bits>, e.g. transform:k4v2.5", "'" + flags.policy + "'");
        }
        plan = uniform_transform_plan(stats_of(flags), key, value, flags.window, flags.sinks);
    } else if (flags.policy == "measured" || flags.policy == "measured-affine") {
        if (flags.budget.empty()) throw Error(ErrorCode::kInvalidArgument, "no budget given", "--budget 3.25bits, 700B/token or 512MiB@32768", "nothing");
        plan = solve_plan(stats_of(flags), {.budget = parse_budget(flags.budget),
                                  .n_ctx = flags.n_ctx,
                                  .window = flags.window,
                                  .sinks = flags.sinks,
                                  .family = flags.policy == "measured" ? CodecFamily::kTransform : CodecFamily::kAffine});
    } else {
        throw Error(ErrorCode::kInvalidArgument, "unknown policy", "measured, measured-affine, transform:k<bits>v<bits>, uniform:<preset>, norm-greedy[:bits=N,score=F|S,groups=N,base=PRESET] or spectral[:...]", "'" + flags.policy + "'");
    }
    if (!flags.out.empty()) write_plan(plan, flags.out);
    print_plan(plan, flags.n_ctx);
    if (!flags.out.empty()) fmt::print("wrote {}\n", flags.out);
}

}  // namespace

void add_plan(CLI::App& app) {
    auto flags = std::make_shared<PlanFlags>();
    CLI::App* verb = app.add_subcommand("plan", "bits for every layer, side and head under a budget");
    verb->add_option("-m,--model", flags->model, "GGUF model")->required();
    verb->add_option("--stats", flags->stats, "statistics of kvaq calibrate");
    verb->add_option("--budget", flags->budget, "3.25bits (per element, everything counted), 700B/token or 512MiB@32768");
    verb->add_option("--policy", flags->policy, "measured (fitted transform codecs), measured-affine (no fitted tables), transform:k<bits>v<bits>, uniform:<preset>, norm-greedy[:bits=N,score=F|S,groups=N,base=PRESET] or spectral[:...]: the paper's allocator on weight norms, or on cache norms with --stats")->capture_default_str();
    verb->add_option("-o,--output", flags->out, "*.plan.gguf to write");
    verb->add_option("-c,--ctx-size", flags->n_ctx, "context at which bits and bytes per token are counted")->check(CLI::PositiveNumber)->capture_default_str();
    verb->add_option("--window", flags->window, "newest tokens kept in f16")->check(CLI::NonNegativeNumber)->capture_default_str();
    verb->add_option("--sinks", flags->sinks, "first tokens kept in f16")->check(CLI::NonNegativeNumber)->capture_default_str();
    verb->callback([flags] { run_plan(*flags); });
}

}  // namespace kvaq
