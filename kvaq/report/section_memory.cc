#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kvaq/base/error.h"
#include "kvaq/plan/budget.h"
#include "kvaq/report/numbers.h"
#include "kvaq/report/sections.h"
#include "kvaq/report/xy_chart.h"

namespace kvaq {
namespace {

constexpr size_t kLeastLongest = 32768;  // contexts go at least this far ...
constexpr size_t kMostLongest = 131072;  // ... and follow the model's own up to here

std::vector<size_t> contexts(size_t n_ctx_train) {
    std::vector<size_t> out;
    for (size_t n = 1024; n <= std::clamp(n_ctx_train, kLeastLongest, kMostLongest); n *= 2) out.push_back(n);
    return out;
}

/// llama.cpp's bytes, NaN for a type that cannot hold this model's rows.
double llama_bytes(const ModelShape& shape, const char* type, size_t n) {
    try {
        return static_cast<double>(llama_cache_bytes(shape, type, n));
    } catch (const Error& error) {
        if (error.code() != ErrorCode::kUnsupported) throw;
        return NAN;
    }
}

}  // namespace

std::optional<Section> memory_section(const ReportInput& input) {
    if (!input.plan || !input.shape) return std::nullopt;
    const std::vector<size_t> lengths = contexts(static_cast<size_t>(std::max(0, input.shape->n_ctx_train)));
    XyChart chart{.title = "",
                  .x_label = "context (tokens)",
                  .y_label = "MiB",
                  .x_scale = Scale::kLinear,
                  .y_scale = Scale::kLinear,
                  .y_from_zero = true,
                  .x_ticks = {},
                  .unit = "MiB",
                  .series = {},
                  .width = 0,
                  .height = 0};
    // The plan first: it is drawn as the measured plans are elsewhere.
    chart.series.push_back({.name = "this plan", .line = true, .marks = true, .points = {}, .band = {}});
    for (const char* type : {"f16", "q8_0", "q4_0"})
        chart.series.push_back(
            {.name = std::string("llama.cpp ") + type, .line = true, .marks = true, .points = {}, .band = {}});
    Table table{.caption = "Bytes of one sequence by context",
                .columns = {"context (tokens)", "this plan", "llama.cpp f16", "llama.cpp q8_0", "llama.cpp q4_0",
                            "bits per number of the plan"},
                .rows = {},
                .marked = {},
                .folded = false};
    for (const size_t n : lengths) {
        const CacheBytes own = cache_bytes(*input.plan, n);
        const double bytes[] = {static_cast<double>(own.total), llama_bytes(*input.shape, "f16", n),
                                llama_bytes(*input.shape, "q8_0", n), llama_bytes(*input.shape, "q4_0", n)};
        table.rows.push_back({integer_cell(static_cast<double>(n))});
        for (size_t i = 0; i < 4; ++i) {
            table.rows.back().push_back(std::isnan(bytes[i]) ? Cell("not possible") : bytes_cell(bytes[i]));
            chart.series[i].points.push_back(
                {.x = static_cast<double>(n), .y = bytes[i] / (1024 * 1024), .error = 0, .label = "", .named = false});
        }
        table.rows.back().push_back(bits_cell(own.effective_bits));
    }
    const size_t longest = lengths.back();
    const auto own = static_cast<double>(cache_bytes(*input.plan, longest).total);
    const double f16 = llama_bytes(*input.shape, "f16", longest);
    const size_t in_f16_memory = largest_context(*input.plan, static_cast<size_t>(f16));
    const std::string says = fmt::format(
        "At {} tokens the plan takes {}, f16 {}. In the memory that f16 takes there, the plan's cache holds {} tokens "
        "(what a process needs beside it: kvaq estimate).",
        longest, bytes_text(own), bytes_text(f16), in_f16_memory);
    chart.title = "Memory against context. " + says;
    for (const size_t n : {longest / 8, longest / 4, longest / 2, longest})
        chart.x_ticks.push_back(static_cast<double>(n));
    chart.x_ticks.insert(chart.x_ticks.begin(), 0.0);
    Section section{.id = "memory", .title = "Memory against context", .blocks = {}};
    section.blocks.push_back(Paragraph{
        {.text = "Counted exactly, not measured: what the cache of one sequence of that many tokens allocates, with "
                 "its tables, its f16 tokens and its part-filled pages. llama.cpp's own are its tensors."}});
    const bool slides = std::any_of(input.shape->layers.begin(), input.shape->layers.end(),
                                    [](const LayerShape& layer) { return layer.sliding_window > 0; });
    if (slides)
        section.blocks.push_back(Paragraph{
            {.text =
                 "This model has sliding-window layers: of them, both caches hold only what a later token can still "
                 "see (kvaq one tile more, so that a chat can be rewound). With --swa-full they keep everything."}});
    section.blocks.push_back(ChartRow{{two_widths("Bytes of one sequence", says, [&](double width) {
        chart.width = width;
        chart.height = width < 500 ? 320 : 340;
        return svg_inline(xy_chart(chart));
    })}});
    section.blocks.emplace_back(std::move(table));
    section.blocks.push_back(made_by("", "kvaq report", "kvaq estimate -m MODEL --plan PLAN -c TOKENS"));
    return section;
}

}  // namespace kvaq
