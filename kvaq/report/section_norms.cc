#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kvaq/report/numbers.h"
#include "kvaq/report/sections.h"
#include "kvaq/report/xy_chart.h"

namespace kvaq {
namespace {

constexpr double kHalf = 440;  // two charts side by side
constexpr double kHalfHeight = 280;

/// A line per side over the layers.
Chart by_layer(const std::string& title, const std::string& y_label, const std::vector<LayerNumbers>& numbers,
               const std::string& says, Scale scale) {
    XyChart chart{.title = title + ". " + says,
                  .x_label = "layer",
                  .y_label = y_label,
                  .x_scale = Scale::kLinear,
                  .y_scale = scale,
                  .y_from_zero = scale == Scale::kLinear,
                  .x_ticks = {},
                  .unit = "",
                  .series = {},
                  .width = kHalf,
                  .height = kHalfHeight};
    for (const Side side : {Side::kKey, Side::kValue}) {
        PlotSeries series{
            .name = side == Side::kKey ? "keys" : "values", .line = true, .marks = true, .points = {}, .band = {}};
        for (const LayerNumbers& n : numbers)
            series.points.push_back(
                {.x = static_cast<double>(n.layer), .y = n.side(side), .error = 0, .label = "", .named = false});
        chart.series.push_back(std::move(series));
    }
    return {.title = title, .says = says, .wide = svg_inline(xy_chart(chart)), .narrow = ""};
}

/// "Keys are 2.9 times as large as values (geometric mean), larger in 30 of 30 layers."
std::string compare_words(const std::vector<LayerNumbers>& numbers, const std::string& keys,
                          const std::string& values) {
    double log_ratio = 0;
    size_t larger = 0;
    size_t n = 0;
    for (const LayerNumbers& l : numbers) {
        if (!(l.key > 0) || !(l.value > 0)) continue;
        log_ratio += std::log(l.key / l.value);
        larger += l.key > l.value ? 1 : 0;
        ++n;
    }
    if (n == 0) return "No layer has both.";
    return fmt::format("{} are {} times as large as {} (geometric mean over layers), and larger in {} of {} layers.",
                       keys, short_text(std::exp(log_ratio / static_cast<double>(n))), values, larger, n);
}

double mean(const std::vector<LayerNumbers>& numbers, Side side) {
    double sum = 0;
    for (const LayerNumbers& n : numbers) sum += n.side(side);
    return sum / static_cast<double>(std::max<size_t>(numbers.size(), 1));
}

Chart fall_chart(const CacheMeasures& measures) {
    const std::string says = fmt::format(
        "A line that falls fast means that few directions carry the side. Lines are the middle head, shades hold eight "
        "heads of ten. Effective rank on average: keys {}, values {}.",
        short_text(mean(measures.rank, Side::kKey)), short_text(mean(measures.rank, Side::kValue)));
    XyChart chart{.title = "Singular values of a head, largest first, as shares of the largest. " + says,
                  .x_label = "direction, by size",
                  .y_label = "share of the largest",
                  .x_scale = Scale::kLinear,
                  .y_scale = Scale::kLog,
                  .y_from_zero = false,
                  .x_ticks = {},
                  .unit = "",
                  .series = {},
                  .width = kHalf,
                  .height = kHalfHeight};
    const auto add = [&](const char* name, const SpectrumFall& fall) {
        PlotSeries series{.name = name, .line = true, .marks = false, .points = {}, .band = {}};
        for (size_t i = 0; i < fall.median.size(); ++i) {
            const auto x = static_cast<double>(i + 1);
            const double floor = 1e-6;  // beyond that it is rounding
            series.points.push_back(
                {.x = x, .y = std::max(fall.median[i], floor), .error = 0, .label = "", .named = false});
            const double low = std::max(fall.low[i], floor);
            const double high = std::max(fall.high[i], floor);
            series.band.push_back(
                {.x = x, .y = (low + high) / 2, .error = (high - low) / 2, .label = "", .named = false});
        }
        chart.series.push_back(std::move(series));
    };
    if (const size_t dim = measures.key_fall.median.size(); dim >= 8) {
        for (const size_t tick : {size_t{1}, dim / 4, dim / 2, 3 * dim / 4, dim})
            chart.x_ticks.push_back(static_cast<double>(tick));
    }
    add("keys", measures.key_fall);
    add("values", measures.value_fall);
    return {.title = "How the singular values fall", .says = says, .wide = svg_inline(xy_chart(chart)), .narrow = ""};
}

void add_cache(const CacheMeasures& measures, ChartRow& charts, std::vector<Table>& tables) {
    charts.charts.push_back(by_layer("Size of keys and values", "norm per token", measures.norm,
                                     compare_words(measures.norm, "Keys", "values"), Scale::kLog));
    charts.charts.push_back(fall_chart(measures));
    charts.charts.push_back(by_layer("How many directions matter", "effective rank", measures.rank,
                                     fmt::format("Effective rank of a head, of at most {} directions: a side of low "
                                                 "rank has most of its energy in few directions.",
                                                 measures.key_fall.median.size()),
                                     Scale::kLinear));
    Table table{.caption = "Norms and spectra by layer (means over KV heads)",
                .columns = {"layer", "|K| per token", "|V| per token", "effective rank of K", "effective rank of V",
                            "energy of K's first 4", "energy of V's first 4"},
                .rows = {},
                .marked = {},
                .folded = true};
    const auto percent = [](double share) { return Cell(percent_text(share, 0), share); };
    for (size_t i = 0; i < measures.norm.size(); ++i) {
        table.rows.push_back({integer_cell(measures.norm[i].layer), short_cell(measures.norm[i].key),
                              short_cell(measures.norm[i].value), short_cell(measures.rank[i].key),
                              short_cell(measures.rank[i].value), percent(measures.first_four[i].key),
                              percent(measures.first_four[i].value)});
    }
    tables.push_back(std::move(table));
}

void add_weights(const std::vector<LayerNumbers>& weights, ChartRow& charts, std::vector<Table>& tables) {
    charts.charts.push_back(by_layer("Size of the weights that make them", "norm per element", weights,
                                     compare_words(weights, "Weights of keys", "those of values"), Scale::kLinear));
    Table table{.caption = "Frobenius norms of the weights, divided by the square root of their number",
                .columns = {"layer", "W_K", "W_V"},
                .rows = {},
                .marked = {},
                .folded = true};
    for (const LayerNumbers& n : weights)
        table.rows.push_back({integer_cell(n.layer), short_cell(n.key), short_cell(n.value)});
    tables.push_back(std::move(table));
}

}  // namespace

std::optional<Section> norms_section(const ReportInput& input) {
    ChartRow charts;
    std::vector<Table> tables;
    std::optional<CacheMeasures> measures;
    if (input.analysis && input.analysis->cache) {
        measures = input.analysis->cache;
    } else if (input.stats) {
        measures = measures_of(*input.stats);
    }
    if (measures) add_cache(*measures, charts, tables);
    if (input.analysis && !input.analysis->weights.empty()) add_weights(input.analysis->weights, charts, tables);
    if (charts.charts.empty()) return std::nullopt;
    Section section{.id = "norms", .title = "Norms and spectra", .blocks = {}};
    if (measures)
        section.blocks.push_back(
            Paragraph{{.text = fmt::format(
                           "Measured over {} tokens. Large numbers and few important directions make a side harder to "
                           "store in few bits: the same relative error is a larger one, and outliers set the scale.",
                           measures->n_tokens)}});
    section.blocks.emplace_back(std::move(charts));
    for (Table& table : tables) section.blocks.emplace_back(std::move(table));
    if (input.analysis) {
        for (const std::string& sentence : input.analysis->says)
            section.blocks.push_back(Paragraph{{.text = sentence}});
        section.blocks.push_back(made_by(input.analysis->command, "kvaq analyze"));
    } else {
        section.blocks.push_back(made_by("", "kvaq calibrate", "kvaq analyze -m MODEL --stats STATS"));
    }
    return section;
}

}  // namespace kvaq
