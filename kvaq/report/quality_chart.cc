#include <fmt/format.h>

#include <cmath>

#include "kvaq/base/sha256.h"
#include "kvaq/plan/budget.h"
#include "kvaq/plan/plan_json.h"
#include "kvaq/report/numbers.h"
#include "kvaq/report/sections.h"
#include "kvaq/report/xy_chart.h"

namespace kvaq {
namespace {

constexpr const char* kFamilyNames[] = {"measured plans (kvaq)", "presets (kvaq)", "the paper's allocators",
                                        "llama.cpp's types", "other plans"};

}  // namespace

RowFamily family_of(const EvalRow& row) {
    if (row.kind == "llama.cpp") return RowFamily::kLlama;
    if (row.name.rfind("measured", 0) == 0) return RowFamily::kMeasured;
    if (row.name.rfind("norm-greedy", 0) == 0 || row.name.rfind("spectral", 0) == 0) return RowFamily::kPaper;
    return is_preset(row.name) ? RowFamily::kPreset : RowFamily::kOther;
}

const EvalRow* row_of_plan(const EvalTable& table, const ReportInput& input) {
    if (!input.plan) return nullptr;
    const std::string digest = sha256_hex(canonical_text(*input.plan));
    const auto bytes = static_cast<double>(cache_bytes(*input.plan, table.n_ctx).total);
    for (const EvalRow& row : table.rows) {
        if (row.kind != "plan") continue;
        // Plans of one budget may share name and size: files that hold the plan's digest are asked for that.
        if (row.plan_sha256.empty() ? row.name == input.plan->name && row.bytes == bytes : row.plan_sha256 == digest)
            return &row;
    }
    return nullptr;
}

const EvalRow* row_named(const EvalTable& table, const std::string& name) {
    for (const EvalRow& row : table.rows) {
        if (row.name == name) return &row;
    }
    return nullptr;
}

Chart quality_chart(const EvalTable& table, const std::string& title) {
    XyChart chart{.title = "",
                  .x_label = "effective bits per number",
                  .y_label = "mean KL (nats, log scale)",
                  .x_scale = Scale::kLinear,
                  .y_scale = Scale::kLog,
                  .y_from_zero = false,
                  .x_ticks = {},
                  .unit = "nats",
                  .series = {},
                  .width = 0,
                  .height = 0};
    for (const char* name : kFamilyNames)
        chart.series.push_back({.name = name, .line = false, .marks = true, .points = {}, .band = {}});
    chart.series[static_cast<size_t>(RowFamily::kMeasured)].line = true;
    const EvalRow* best = nullptr;
    const EvalRow* worst = nullptr;
    size_t n = 0;
    // A cache as large as the reference saves nothing: it would only stretch the axis.
    double reference_bits = INFINITY;
    for (const EvalRow& row : table.rows) reference_bits = row.kind == "reference" ? row.bits : reference_bits;
    for (const EvalRow& row : table.rows) {
        const bool compared = row.kind != "reference" && row.kind != "control" && row.bits < reference_bits - 1e-9;
        if (!compared || !(row.kl.value > 0)) continue;
        const RowFamily family = family_of(row);
        std::string label = row.name;
        if (const size_t at = label.find(" (llama.cpp)"); at != std::string::npos) label.resize(at);
        chart.series[static_cast<size_t>(family)].points.push_back(
            {.x = row.bits,
             .y = row.kl.value,
             .error = row.kl.error,
             .label = label,
             .named = family == RowFamily::kLlama || family == RowFamily::kPreset});
        if (best == nullptr || row.kl.value < best->kl.value) best = &row;
        if (worst == nullptr || row.kl.value > worst->kl.value) worst = &row;
        ++n;
    }
    std::string says = "Lower and further left is better: a smaller change with fewer bits. Bars are standard errors.";
    if (best != nullptr)
        says += fmt::format(" {} caches, from {} (KL {} at {} bits) to {} (KL {} at {} bits).", n, best->name,
                            kl_text(best->kl.value), bits_text(best->bits), worst->name, kl_text(worst->kl.value),
                            bits_text(worst->bits));
    chart.title = title + ". " + says;
    return two_widths(title, says, [&](double width) {
        XyChart drawn = chart;
        drawn.width = width;
        drawn.height = width < 500 ? 400 : 480;
        if (width < 500) {
            for (PlotSeries& series : drawn.series) {
                for (PlotPoint& p : series.points)
                    p.named = p.named && &series == &drawn.series[static_cast<size_t>(RowFamily::kLlama)];
            }
        }
        return svg_inline(xy_chart(drawn));
    });
}

}  // namespace kvaq
