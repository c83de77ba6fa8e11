#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/base/sha256.h"
#include "kvaq/cli/flags.h"
#include "kvaq/cli/frontier.h"
#include "kvaq/cli/norm_policy.h"
#include "kvaq/cli/progress.h"
#include "kvaq/cli/verbs.h"
#include "kvaq/eval/calibration_text.h"
#include "kvaq/eval/plan_check.h"
#include "kvaq/eval/session.h"
#include "kvaq/llama/gguf_model.h"
#include "kvaq/llama/plan_file.h"
#include "kvaq/llama/stats_file.h"
#include "kvaq/plan/budget.h"
#include "kvaq/plan/budget_text.h"
#include "kvaq/plan/import.h"
#include "kvaq/plan/plan_json.h"
#include "kvaq/plan/planner.h"
#include "kvaq/plan/verdict.h"

namespace kvaq {
namespace {

struct PlanFlags {
    std::string model;
    std::string stats;
    std::string budget;
    std::string policy = "measured";
    std::string text;
    std::string out;
    std::string name;  ///< empty: what the policy calls it
    std::string json;
    size_t n_ctx = 8192;
    size_t check_ctx = 2048;
    size_t check_chunks = 1;
    int refine = -1;  ///< rounds; negative: one, if the prediction fails
    int32_t window = PlanRequest::kBestWindow;
    int32_t sinks = 4;
    int32_t n_threads = 2;
    bool check = false;
    std::string head_weights = "logits";
    bool frontier = false;
    std::string frontier_out = "frontier";
    bool verbose = false;
    const CLI::App* verb = nullptr;
    [[nodiscard]] bool given(const char* flag) const { return verb->count(flag) > 0; }
};

/// A plan with what is known of it.
struct Made {
    Plan plan;
    std::string worst;  ///< where most of the predicted damage is; may be empty
    double same_top = -1;
    bool measured = false;
    std::string check_line;  ///< what the check found; may be empty
};

void print_plan(const Made& made, size_t n_ctx) {
    const Plan& plan = made.plan;
    fmt::print("plan {} for {}\n\n| layer | K bits | V bits |\n|---|---|---|\n", plan.name, plan.model_name);
    for (const LayerPlan& layer : plan.layers) {
        fmt::print("| {} | {:.2f} | {:.2f} |\n", layer.shape.layer, mean_bits(layer, Side::kKey),
                   mean_bits(layer, Side::kValue));
    }
    const double key = mean_bits(plan, Side::kKey);
    const double value = mean_bits(plan, Side::kValue);
    const CacheBytes bytes = cache_bytes(plan, n_ctx);
    fmt::print(
        "\nmean code bits: K {:.2f}, V {:.2f} (ratio {:.2f})\n{:.2f} effective bits and {:.1f} MiB at {} tokens, "
        "{:.0f} bytes per further token\n",
        key, value, key / value, bytes.effective_bits, static_cast<double>(bytes.total) / (1024 * 1024), n_ctx,
        bytes_per_token(plan));
    fmt::print("in f16: the first {} and the newest {} tokens\n", plan.sinks, plan.window);
    if (!made.check_line.empty()) fmt::print("{}\n", made.check_line);
    if (plan.predicted_kl < 0) return;
    fmt::print("verdict: {} ({} KL {:.4f} nats per token{}{})\n",
               to_string(verdict_of(plan.predicted_kl, made.same_top)), made.measured ? "measured" : "predicted",
               plan.predicted_kl,
               made.same_top < 0 ? "" : fmt::format(", same top token {:.1f} %", 100 * made.same_top),
               made.worst.empty() ? "" : "; " + made.worst);
    if (!made.measured) fmt::print("not measured: add --check or -f TEXT, or run kvaq eval\n");
}

/// What print_plan says, and the plan itself.
std::string plan_json(const Made& made, size_t n_ctx) {
    const CacheBytes bytes = cache_bytes(made.plan, n_ctx);
    nlohmann::ordered_json out = {{"schema_version", 1},
                                  {"kind", "kvaq.plan"},
                                  {"n_ctx", n_ctx},
                                  {"bytes", bytes.total},
                                  {"effective_bits", bytes.effective_bits},
                                  {"measured", made.measured}};
    out["kl"] =
        made.plan.predicted_kl < 0 ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(made.plan.predicted_kl);
    out["same_top"] = made.same_top < 0 ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(made.same_top);
    out["verdict"] = made.plan.predicted_kl < 0
                         ? nlohmann::ordered_json(nullptr)
                         : nlohmann::ordered_json(to_string(verdict_of(made.plan.predicted_kl, made.same_top)));
    out["check"] = made.check_line;
    out["worst"] = made.worst;
    out["plan"] = plan_to_json(made.plan);
    return out.dump(2, ' ', true, nlohmann::json::error_handler_t::replace) + "\n";
}

ModelStats stats_of(const PlanFlags& flags) {
    if (flags.stats.empty()) {
        throw Error(ErrorCode::kInvalidArgument, "this policy needs statistics", "--stats FILE", "nothing",
                    "Make them with: kvaq calibrate -m " + flags.model + " -f TEXT -o MODEL.stats.gguf");
    }
    return read_stats_of(flags.stats, flags.model, model_fingerprint(flags.model));
}

/// Of the policies that solve for measured damage; none for the others.
std::optional<CodecFamily> codec_family(const std::string& policy) {
    if (policy == "measured") return CodecFamily::kTrellis;
    if (policy == "measured-codebook") return CodecFamily::kTransform;
    if (policy == "measured-affine") return CodecFamily::kAffine;
    return std::nullopt;
}

/// Flags that mean nothing to a policy are refused: a budget that is not kept would be worse than none.
void refuse_flags(const PlanFlags& flags) {
    if (flags.frontier) {
        if (flags.given("--policy"))
            throw Error(ErrorCode::kInvalidArgument, "a frontier compares policies", "no --policy", flags.policy);
        for (const char* flag : {"--ctx-size", "--name", "--refine", "--head-weights", "--check"}) {
            if (flags.given(flag))
                throw Error(ErrorCode::kInvalidArgument, fmt::format("{} does not go with --frontier", flag),
                            "--check-ctx and --check-chunks for what it measures", flag);
        }
        return;
    }
    const bool measured = codec_family(flags.policy).has_value();
    const bool uniform = flags.policy.rfind("uniform:", 0) == 0;
    if (flags.given("--budget") && !measured) {
        throw Error(ErrorCode::kInvalidArgument, "--budget is for the measured policies",
                    "measured, measured-codebook or measured-affine with --budget",
                    fmt::format("--budget {} with --policy {}", flags.budget, flags.policy),
                    is_norm_policy(flags.policy)
                        ? "The paper's allocators take their bits per matrix: norm-greedy:bits=3"
                        : "Its bits are in its name");
    }
    if (flags.given("--frontier-out"))
        throw Error(ErrorCode::kInvalidArgument, "--frontier-out names the files of a frontier", "--frontier", "none");
    for (const char* flag : {"--check-ctx", "--check-chunks", "--refine"}) {
        if (flags.given(flag) && !flags.check && flags.text.empty())
            throw Error(ErrorCode::kInvalidArgument, fmt::format("{} is of a check", flag), "--check or -f TEXT",
                        "neither");
    }
    if (uniform && flags.given("--stats"))
        throw Error(ErrorCode::kInvalidArgument, "--stats does not go with --policy uniform:<preset>",
                    "a policy that reads statistics", flags.policy);
    if (!measured && flags.given("--head-weights"))
        throw Error(ErrorCode::kInvalidArgument, "--head-weights is for the measured policies", "a measured policy",
                    flags.policy);
    for (const char* flag : {"--window", "--sinks"}) {
        if (uniform && flags.given(flag))
            throw Error(ErrorCode::kInvalidArgument, fmt::format("{} does not go with --policy uniform:<preset>", flag),
                        "-w<n> and -s<n> in the preset, such as uniform:k4v2-w64-s4", flag);
    }
    if (!measured && flags.given("--refine"))
        throw Error(ErrorCode::kInvalidArgument, "--refine is for the measured policies", "a measured policy",
                    flags.policy);
}

constexpr const char* kChosenByDamage = " (this plan chose them by the damage that calibration measured on this model)";

void warn(const std::vector<std::string>& warnings, const char* note = "") {
    for (const std::string& warning : warnings) fmt::print(stderr, "kvaq: warning: {}{}\n", warning, note);
}

/// Statistics of the text that the plan is measured on, as far as its digest shows.
void warn_of_own_text(const ModelStats& stats, const std::string& text) {
    if (stats.text_sha256 == sha256_hex(read_file(text)))
        fmt::print(stderr,
                   "kvaq: warning: '{}' is the text that the statistics were made of: what is measured on it is "
                   "better than on other texts\n",
                   text);
}

std::string worst_place(const DamageModel& model, const Plan& plan) {
    const std::vector<double> damages = damage_by_layer(model, plan);
    double sum = 0;
    for (const double d : damages) sum += d;
    const auto worst = static_cast<size_t>(std::max_element(damages.begin(), damages.end()) - damages.begin());
    if (!(sum > 0)) return "";
    return fmt::format("worst place by prediction: {} of layer {}, {:.0f} % of the damage",
                       worst % 2 == 0 ? "keys" : "values", plan.layers[worst / 2].shape.layer,
                       100 * damages[worst] / sum);
}

std::unique_ptr<Prober> prober_of(const PlanFlags& flags, llama_model* model) {
    if (flags.text.empty() && flags.check_chunks * flags.check_ctx > kHeldOutTokens) {
        fmt::print(stderr,
                   "kvaq: warning: calibration leaves the last {} tokens of the built-in text to --check; more may be "
                   "what the "
                   "statistics were made of. -f TEXT measures on another text\n",
                   kHeldOutTokens);
    }
    const std::vector<llama_token> tokens = flags.text.empty()
                                                ? tokenize_text(model, calibration_text(), "the built-in text")
                                                : tokenize_file(model, flags.text);
    return std::make_unique<Prober>(model,
                                    probe_chunks(model, tokens, tokens.size(), flags.check_chunks, flags.check_ctx),
                                    flags.check_ctx / 2, flags.n_threads, HandlerFactory{});
}

/// Measures a plan that no damage model stands behind.
void measure(const PlanFlags& flags, Made& made) {
    const ModelPtr model = load_model(flags.model);
    const ProbeResult found = prober_of(flags, model.get())->measure(made.plan);
    made.plan.predicted_kl = found.kl.value;
    made.plan.measured_how = "measured on " + std::to_string(found.n_tokens) + " tokens of " +
                             (flags.text.empty() ? "the built-in text" : flags.text);
    made.same_top = found.same_top;
    made.measured = true;
}

Made make_measured(const PlanFlags& flags, const std::optional<Budget>& budget, CodecFamily family) {
    if (!budget)
        throw Error(ErrorCode::kInvalidArgument, "no budget given", "--budget 3.25bits, 4500B/token or 512MiB@32768",
                    "nothing");
    const PlanRequest request{.budget = *budget, .n_ctx = flags.n_ctx, .window = flags.window, .sinks = flags.sinks};
    const ModelStats stats = stats_of(flags);
    if (!flags.text.empty()) warn_of_own_text(stats, flags.text);
    DamageModel damage(stats, family, flags.head_weights == "output" ? HeadWeights::kOutput : HeadWeights::kLogits);
    Made made;
    if (flags.text.empty() && !flags.check) {
        made.plan = solve_plan(damage, request);
        made.worst = worst_place(damage, made.plan);
        warn(plan_warnings(made.plan), kChosenByDamage);
        return made;
    }
    (void)solve_plan(damage, request);  // an impossible budget is said before the model is loaded
    const ModelPtr model = load_model(flags.model);
    const std::unique_ptr<Prober> prober = prober_of(flags, model.get());
    Progress progress("check");
    CheckedPlan checked = check_and_repair(
        damage, request, [&](const Plan& plan) { return prober->measure(plan); }, prober->n_ctx(),
        flags.refine < 0 ? 1 : static_cast<size_t>(flags.refine), flags.refine > 0,
        [&](size_t done, size_t total, const std::string& now) { progress.update(done, total, now); });
    made.worst = worst_place(damage, checked.plan);
    made.same_top = checked.measured.same_top;
    made.measured = true;
    made.check_line =
        fmt::format("predicted KL {:.4f}, measured {:.4f}{}", checked.predicted, checked.first_kl,
                    checked.rounds == 0 ? std::string()
                                        : fmt::format("; after {} repair{}: {:.4f}", checked.rounds,
                                                      checked.rounds == 1 ? "" : "s", checked.measured.kl.value));
    made.plan = std::move(checked.plan);
    warn(plan_warnings(made.plan), kChosenByDamage);
    return made;
}

Made make_plan(const PlanFlags& flags, const std::optional<Budget>& budget) {
    if (const std::optional<CodecFamily> family = codec_family(flags.policy))
        return make_measured(flags, budget, *family);
    Made made;
    if (flags.policy.rfind("uniform:", 0) == 0) {
        ModelShape shape = read_model_shape(flags.model);
        shape.fingerprint = model_fingerprint(flags.model);
        made.plan = make_uniform_plan(parse_preset(flags.policy.substr(8)), shape);
        made.plan.fingerprint = shape.fingerprint;
        warn(plan_warnings(made.plan));
    } else if (is_norm_policy(flags.policy)) {
        std::vector<std::string> warnings;
        made.plan = norm_policy_plan({.policy = flags.policy,
                                      .model = flags.model,
                                      .stats = flags.stats,
                                      .window = std::max(0, flags.window),
                                      .sinks = flags.sinks},
                                     warnings);
        warn(warnings);
    } else if (flags.policy.rfind("transform:", 0) == 0) {
        double key = -1;
        double value = -1;
        int length = 0;
        const bool read = std::sscanf(flags.policy.c_str(), "transform:k%lfv%lf%n", &key, &value, &length) == 2;
        const std::string rest = read ? flags.policy.substr(static_cast<size_t>(length)) : "";
        if (!read || (!rest.empty() && rest != "-sorted") || !(key >= 0 && key <= 16) || !(value >= 0 && value <= 16)) {
            throw Error(ErrorCode::kInvalidArgument, "unreadable policy",
                        "transform:k<bits>v<bits>[-sorted], e.g. transform:k4v2.5, bits from 0 to 16",
                        "'" + flags.policy + "'");
        }
        const ModelStats stats = stats_of(flags);
        const KeyBasis basis = rest.empty() ? KeyBasis::kEigen : KeyBasis::kSorted;
        made.plan = uniform_transform_plan(stats, fit_all(stats, basis), key, value, std::max(0, flags.window),
                                           flags.sinks, TransformCodes::kTrellis);
        warn(plan_warnings(made.plan));
    } else {
        throw Error(
            ErrorCode::kInvalidArgument, "unknown policy",
            "measured, measured-codebook, measured-affine, transform:k<bits>v<bits>[-sorted], uniform:<preset>, "
            "norm-greedy[:bits=N,score=F|S,groups=N,base=PRESET] or spectral[:...]",
            "'" + flags.policy + "'");
    }
    if (!flags.text.empty() || flags.check) measure(flags, made);
    return made;
}

void run_plan(const PlanFlags& flags) {
    refuse_flags(flags);
    require_outputs({flags.out, json_file(flags.json)}, {flags.model, flags.stats, flags.text});
    quiet_llama(flags.verbose);
    announce_plans(flags.verbose);
    if (flags.frontier) {
        if (flags.text.empty())
            throw Error(ErrorCode::kInvalidArgument, "a frontier is measured",
                        "-f TEXT, which is not the calibration text", "no text");
        if (!flags.out.empty() || !flags.json.empty() || flags.given("--budget"))
            throw Error(ErrorCode::kInvalidArgument, "a frontier has its own budgets and files",
                        "--frontier-out NAME for NAME.md, NAME.json and NAME.svg", "-o, --json or --budget");
        const ModelStats stats = stats_of(flags);
        warn_of_own_text(stats, flags.text);
        run_frontier({.model = flags.model,
                      .text = flags.text,
                      .out = flags.frontier_out,
                      .stats = stats,
                      .stats_path = flags.stats,
                      .n_ctx = flags.check_ctx,
                      .n_chunks = flags.check_chunks,
                      .window = flags.window,
                      .sinks = flags.sinks,
                      .n_threads = flags.n_threads});
        return;
    }
    std::optional<Budget> budget;
    if (flags.given("--budget")) budget = parse_budget(flags.budget);
    const size_t budget_ctx = budget ? budget->n_tokens : 0;  // one of bytes brings its own context
    if (budget_ctx > 0 && flags.given("--ctx-size") && flags.n_ctx != budget_ctx)
        throw Error(ErrorCode::kInvalidArgument, "two contexts", "-c, or the one of the budget",
                    fmt::format("-c {} and --budget {}", flags.n_ctx, flags.budget));
    Made made = make_plan(flags, budget);
    if (!flags.name.empty()) made.plan.name = flags.name;
    if (!flags.out.empty()) write_plan(made.plan, flags.out, command_line());
    const size_t n_ctx = budget_ctx > 0 ? budget_ctx : flags.n_ctx;
    if (!flags.json.empty()) write_json(flags.json, plan_json(made, n_ctx));
    if (is_stdout(flags.json)) return;
    print_plan(made, n_ctx);
    if (!flags.out.empty()) fmt::print(stderr, "wrote {}\n", flags.out);
}

}  // namespace

void add_plan(CLI::App& app) {
    auto flags = std::make_shared<PlanFlags>();
    flags->n_threads = default_threads();
    CLI::App* verb = app.add_subcommand("plan", "bits for every layer, side and head under a budget");
    flags->verb = verb;
    verb->add_option("-m,--model", flags->model, "GGUF model")->required();
    verb->add_option("--stats", flags->stats, "statistics of kvaq calibrate");
    verb->add_option("--budget", flags->budget,
                     "3.25bits (per element, everything counted), 4500B/token or 512MiB@32768");
    verb->add_option(
            "--policy", flags->policy,
            "measured (fitted transforms, trellis codes), measured-codebook (the same with plain codebooks: noisier, "
            "read faster), measured-affine (nothing fitted), "
            "transform:k<bits>v<bits>[-sorted] (fitted, the same bits in all heads, keys in sorted channels instead of "
            "an eigenbasis), uniform:<preset>, norm-greedy[:bits=N,score=F|S,groups=N,base=PRESET] "
            "or spectral[:...]: the paper's allocator on weight norms, or on cache norms with --stats")
        ->capture_default_str();
    verb->add_option("-f,--file", flags->text,
                     "text to measure the plan on (its end): a joint check, with repairs where the prediction fails by "
                     "more than 30 %");
    verb->add_flag("--check", flags->check, "the same on the end of the built-in text");
    verb->add_option("--check-ctx", flags->check_ctx, "tokens per chunk of the check")
        ->check(CLI::Range(16, 1 << 20))
        ->capture_default_str();
    verb->add_option("--check-chunks", flags->check_chunks, "chunks of the check")
        ->check(CLI::Range(1, 1 << 10))
        ->capture_default_str();
    verb->add_option("--refine", flags->refine,
                     "rounds of measured repair (9 measurements each), even where the prediction holds; 0: none")
        ->check(CLI::Range(0, 16));
    verb->add_flag(
        "--frontier", flags->frontier,
        "measure KL against bits for 8 budgets beside uniform plans, the paper's allocators and llama.cpp's types");
    verb->add_option("--frontier-out", flags->frontier_out, "writes <this>.md, .json and .svg")->capture_default_str();
    verb->add_option("-o,--output", flags->out, "*.plan.gguf to write");
    verb->add_option("--name", flags->name, "the plan's name in tables");
    verb->add_option("--json", flags->json, kJsonHelp);
    verb->add_option("-c,--ctx-size", flags->n_ctx, "context at which bits and bytes per token are counted")
        ->check(CLI::Range(1, kMostTokens))
        ->capture_default_str();
    verb->add_option("--window", flags->window,
                     "newest tokens kept in f16 (measured policies: chosen by what calibration measured; others: 0)")
        ->check(CLI::NonNegativeNumber);
    verb->add_option(
            "--head-weights", flags->head_weights,
            "how a layer's damage is split over its heads: logits (noise of the attention scores, and of V) or "
            "output (after W_O, where attention rests)")
        ->check(CLI::IsMember({"logits", "output"}))
        ->capture_default_str();
    verb->add_option("--sinks", flags->sinks, "first tokens kept in f16")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    verb->add_option("-t,--threads", flags->n_threads, "threads")->check(CLI::PositiveNumber)->capture_default_str();
    verb->add_flag("--verbose", flags->verbose, "show llama.cpp's log");
    verb->callback([flags] { run_plan(*flags); });
}

}  // namespace kvaq
