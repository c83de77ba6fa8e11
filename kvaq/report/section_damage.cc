#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kvaq/report/bar_chart.h"
#include "kvaq/report/numbers.h"
#include "kvaq/report/sections.h"

namespace kvaq {
namespace {

double probe_of(const LayerStats& layer, Side side) {
    const double kl = side == Side::kKey ? layer.probe.key_kl : layer.probe.value_kl;
    return kl > LayerProbe::kNotMeasured ? kl : std::numeric_limits<double>::quiet_NaN();
}

/// Where it hurts most, and how much of all the damage that is.
std::string worst_words(const ModelStats& stats) {
    struct Place {
        double kl;
        std::string name;
    };
    std::vector<Place> places;
    double all = 0;
    for (const LayerStats& layer : stats.layers) {
        for (const Side side : {Side::kKey, Side::kValue}) {
            const double kl = probe_of(layer, side);
            if (!std::isfinite(kl) || kl <= 0) continue;
            places.push_back(
                {kl, fmt::format("{} of layer {}", side == Side::kKey ? "keys" : "values", layer.shape.layer)});
            all += kl;
        }
    }
    if (places.empty()) return "No step did measurable damage.";
    std::stable_sort(places.begin(), places.end(), [](const Place& a, const Place& b) { return a.kl > b.kl; });
    places.resize(std::min<size_t>(places.size(), 3));
    std::vector<std::string> names;
    double theirs = 0;
    for (const Place& place : places) {
        names.push_back(fmt::format("{} ({})", place.name, kl_text(place.kl)));
        theirs += place.kl;
    }
    return fmt::format("It hurts most at the {}: together {} of all the damage.", list_text(names),
                       percent_text(theirs / all, 0));
}

void add_joint(const ModelStats& stats, Section& section) {
    if (stats.joint.empty()) return;
    const auto bits = [](double b) { return b >= 16 ? Cell("f16", 16.0) : Cell(fmt::format("{:g}", b), b); };
    Table table{
        .caption = fmt::format("KL of all layers quantized together (rounding alone: {})", kl_text(stats.joint_floor)),
        .columns = {"bits of K", "bits of V", "newest tokens in f16", "KL (nats)"},
        .rows = {},
        .marked = {},
        .folded = true};
    for (const JointProbe& probe : stats.joint)
        table.rows.push_back(
            {bits(probe.key_bits), bits(probe.value_bits), integer_cell(probe.window), kl_cell(probe.kl)});
    section.blocks.emplace_back(std::move(table));
}

}  // namespace

std::optional<Section> damage_section(const ReportInput& input) {
    if (!input.stats || !(input.stats->probe_bits > 0)) return std::nullopt;
    const ModelStats& stats = *input.stats;
    const std::string says = worst_words(stats);
    BarChart chart{.title = "Damage by layer and side. " + says,
                   .x_label = "layer",
                   .y_label = "KL added (nats)",
                   .unit = "nats",
                   .categories = {},
                   .series = {{.name = "keys", .values = {}}, {.name = "values", .values = {}}},
                   .width = 0,
                   .height = 300};
    Table table{.caption = "Damage by layer (KL added, nats per token)",
                .columns = {"layer", "keys", "values"},
                .rows = {},
                .marked = {},
                .folded = true};
    for (const LayerStats& layer : stats.layers) {
        chart.categories.push_back(std::to_string(layer.shape.layer));
        table.rows.push_back({integer_cell(layer.shape.layer)});
        for (const Side side : {Side::kKey, Side::kValue}) {
            const double kl = probe_of(layer, side);
            chart.series[side == Side::kKey ? 0 : 1].values.push_back(kl);
            table.rows.back().push_back(std::isfinite(kl) ? kl_cell(kl) : Cell("not measured"));
        }
    }
    Section section{.id = "damage", .title = "What hurts", .blocks = {}};
    section.blocks.push_back(Paragraph{
        {.text = fmt::format(
             "How much the model's answers change (KL, nats per token) when one side of one layer alone goes from {} "
             "to {} bits, while everything else stays at {} bits. "
             "The planner spends bits where this is large. A value slightly below zero is noise of the measurement.",
             fmt::format("{:g}", stats.base_bits), fmt::format("{:g}", stats.probe_bits),
             fmt::format("{:g}", stats.base_bits))}});
    section.blocks.push_back(ChartRow{{two_widths("Damage of one layer's keys or values", says, [&](double width) {
        chart.width = width;
        return svg_inline(bar_chart(chart));
    })}});
    section.blocks.emplace_back(std::move(table));
    add_joint(stats, section);
    section.blocks.push_back(made_by("", "kvaq calibrate", "kvaq inspect STATS"));
    return section;
}

}  // namespace kvaq
