#include "kvaq/cli/frontier.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/cli/flags.h"
#include "kvaq/cli/norm_policy.h"
#include "kvaq/cli/progress.h"
#include "kvaq/eval/compare.h"
#include "kvaq/plan/planner.h"
#include "kvaq/report/xy_chart.h"

namespace kvaq {
namespace {

constexpr std::array kBudgets = {2.25, 2.5, 3.0, 3.25, 3.5, 4.0, 4.5, 5.5};
/// With the codec that is best without calibration all pairs up to 4.5 bits that can be the best of their bytes (keys have up to three bits more than
/// values), and some beyond.
constexpr std::array kUniform = {"k2v2-tcq",      "k3v1-tcq",      "k3v2-tcq", "k4v1-tcq",      "k3v3-tcq",
                                 "k4v2-tcq",      "k5v2-tcq",      "k4v3-tcq", "k5v3-tcq",      "k4v4-tcq",
                                 "k6v3-tcq",      "k5v4-tcq",      "k2v2-lm",  "k3v3-lm",       "k4v4-lm",
                                 "k2v2-g128-rot", "k3v3-g128-rot", "k4v2-rot", "k4v3-g128-rot", "k2v4-rot"};

/// Measured plans first, then the authors'; the budgets that lie below the floor are left out.
std::vector<Plan> make_plans(const FrontierRequest& request, size_t& n_measured) {
    std::vector<Plan> plans;
    const DamageModel damage(request.stats, CodecFamily::kTrellis);
    for (const double bits : kBudgets) {
        try {
            plans.push_back(
                solve_plan(damage, {.budget = {.unit = Budget::Unit::kEffectiveBits, .amount = bits, .n_tokens = 0},
                                    .n_ctx = request.n_ctx,
                                    .window = request.window,
                                    .sinks = request.sinks}));
        } catch (const Error& error) {
            if (error.code() != ErrorCode::kBudgetTooSmall) throw;
            fmt::print(stderr, "kvaq: warning: {} bits left out: {}\n", bits, error.what());
        }
    }
    n_measured = plans.size();
    for (const char* policy :
         {"norm-greedy:bits=2,base=k2v2-rot", "norm-greedy:bits=3,base=k3v3-rot", "norm-greedy:bits=4,base=k4v4-rot",
          "spectral:bits=3,base=k3v3-rot", "norm-greedy:bits=2,base=k2v2-tcq", "norm-greedy:bits=3,base=k3v3-tcq",
          "norm-greedy:bits=4,base=k4v4-tcq"}) {
        std::vector<std::string> warnings;
        plans.push_back(norm_policy_plan({.policy = policy,
                                          .model = request.model,
                                          .stats = {},
                                          .window = std::max(0, request.window),
                                          .sinks = request.sinks},
                                         warnings));
        for (const std::string& warning : warnings)
            fmt::print(stderr, "kvaq: warning: {}: {}\n", plans.back().name, warning);
    }
    return plans;
}

}  // namespace

void run_frontier(const FrontierRequest& request) {
    const std::string partial = request.out + ".partial";
    require_outputs({request.out + ".md", request.out + ".json", request.out + ".svg", partial},
                    {request.model, request.text, request.stats_path});
    size_t n_measured = 0;
    CompareRequest compared;
    compared.model = request.model;
    compared.text = request.text;
    compared.made = make_plans(request, n_measured);
    compared.types = {"q8_0", "q5_1", "q5_0", "q4_1", "q4_0"};
    compared.n_ctx = request.n_ctx;
    compared.n_chunks = request.n_chunks;
    compared.n_batch = 128;  // every row keeps a batch of logits
    compared.n_threads = request.n_threads;
    compared.control = false;
    compared.partial = partial;
    const std::string suffix = (request.window > 0 ? fmt::format("-w{}", request.window) : "") +
                               (request.sinks > 0 ? fmt::format("-s{}", request.sinks) : "");
    for (const char* preset : kUniform) compared.plans.push_back(preset + suffix);
    Progress progress("frontier");
    CompareResult result = compare(
        compared, [&](size_t done, size_t total, const std::string& now) { progress.update(done, total, now); });

    // Rows: reference, types, presets, measured, authors'.
    const size_t first_plan = 1 + compared.types.size();
    const size_t first_measured = first_plan + compared.plans.size();
    std::vector<PlotSeries> series(4);
    series[0].name = "measured plans (kvaq)";
    series[1].name = "uniform presets (kvaq)";
    series[2].name = "the paper's allocators";
    series[3].name = "llama.cpp cache types";
    series[0].line = true;
    for (size_t i = 1; i < result.rows.size(); ++i) {
        const CompareRow& row = result.rows[i];
        const size_t which = i < first_plan ? 3 : i < first_measured ? 1 : i < first_measured + n_measured ? 0 : 2;
        series[which].points.push_back({.x = row.effective_bits,
                                        .y = row.summary.mean_kl.value,
                                        .error = row.summary.mean_kl.error,
                                        .label = row.name});
    }
    const std::string& command = command_line();
    const std::string title = fmt::format("{}: mean KL against bits per element, {} x {} tokens", result.shape.name,
                                          request.n_chunks, request.n_ctx);
    const std::string json = to_json(compared, result, command);
    std::stable_sort(result.rows.begin() + 1, result.rows.end(),
                     [](const CompareRow& a, const CompareRow& b) { return a.effective_bits < b.effective_bits; });
    std::string text = fmt::format("{}. Second halves scored; calibrated on text sha256 {}. `{}`\n\n", title,
                                   request.stats.text_sha256.substr(0, 16), command) +
                       to_markdown(compared, result);
    for (const Plan& plan : compared.made) {
        if (plan.predicted_kl < 0) continue;
        const double key = mean_bits(plan, Side::kKey);
        const double value = mean_bits(plan, Side::kValue);
        text += fmt::format("\n{}: predicted KL {:.4f}; mean code bits of keys {:.2f}, of values {:.2f}, ratio {:.2f}",
                            plan.name, plan.predicted_kl, key, value, key / value);
    }
    text += "\n";
    std::fputs(text.c_str(), stdout);
    atomic_write_text(request.out + ".md", text);
    atomic_write_text(request.out + ".json", json);
    XyChart chart;
    chart.title = title;
    chart.x_label = "effective bits per element";
    chart.y_label = "mean KL (nats, log scale)";
    chart.unit = "nats";
    chart.series = series;
    atomic_write_text(request.out + ".svg", svg_file(xy_chart(chart)));
    remove_partial(partial);
    fmt::print(stderr, "wrote {0}.md, {0}.json, {0}.svg\n", request.out);
}

}  // namespace kvaq
