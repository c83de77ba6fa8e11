#include <fmt/format.h>

#include "kvaq/report/numbers.h"
#include "kvaq/report/sections.h"
#include "kvaq/report/xy_chart.h"

namespace kvaq {

std::optional<Section> speed_section(const ReportInput& input, size_t index) {
    if (index >= input.speeds.size()) return std::nullopt;
    const SpeedTable& speed = input.speeds[index];
    XyChart chart{.title = "",
                  .x_label = "tokens already in the cache",
                  .y_label = "tokens/s",
                  .x_scale = Scale::kLinear,
                  .y_scale = Scale::kLinear,
                  .y_from_zero = true,
                  .x_ticks = {},
                  .unit = "tokens/s",
                  .series = {},
                  .width = 0,
                  .height = 0};
    Table table{.caption = fmt::format("Tokens per second, medians of {} rounds (smallest to largest)", speed.rounds),
                .columns = {"depth (tokens)"},
                .rows = {},
                .marked = {},
                .folded = false};
    for (size_t c = 0; c < speed.columns.size(); ++c) {
        table.columns.push_back(speed.columns[c]);
        // A chart tells five lines apart; further columns stay in the table.
        if (c < 5)
            chart.series.push_back({.name = speed.columns[c], .line = true, .marks = true, .points = {}, .band = {}});
    }
    for (const SpeedTable::Row& row : speed.rows) {
        table.rows.push_back({integer_cell(static_cast<double>(row.depth))});
        for (size_t c = 0; c < row.speeds.size(); ++c) {
            const SpeedTable::Speed& s = row.speeds[c];
            table.rows.back().emplace_back(fmt::format("{:.1f} ({:.1f} to {:.1f})", s.median, s.least, s.most),
                                           s.median);
            if (c < chart.series.size())
                chart.series[c].points.push_back(
                    {.x = static_cast<double>(row.depth), .y = s.median, .error = 0, .label = "", .named = false});
        }
    }
    for (const SpeedTable::Row& row : speed.rows) {
        if (chart.x_ticks.empty() || static_cast<double>(row.depth) > chart.x_ticks.back())
            chart.x_ticks.push_back(static_cast<double>(row.depth));
    }
    const SpeedTable::Row& deepest = speed.rows.back();
    std::vector<std::string> words;
    for (size_t c = 0; c < speed.columns.size(); ++c)
        words.push_back(fmt::format("{} {:.0f}", speed.columns[c], deepest.speeds[c].median));
    const std::string says =
        fmt::format("With {} tokens in the cache, tokens per second: {}.", deepest.depth, list_text(words));
    chart.title = "Decode speed against depth. " + says;
    Section section{
        .id = index == 0 ? "speed" : fmt::format("speed-{}", index + 1),
        .title = input.speeds.size() == 1 ? "Speed against depth" : fmt::format("Speed against depth {}", index + 1),
        .blocks = {}};
    section.blocks.push_back(Paragraph{
        {.text = fmt::format(
             "How fast the next tokens come when that many are already in the cache. {}; flags of every run: ",
             speed.cpu)},
        {.text = speed.flags, .code = true},
        {.text = "."}});
    if (!speed.note.empty()) section.blocks.push_back(Paragraph{{.text = speed.note}});
    section.blocks.push_back(ChartRow{{two_widths("Tokens per second by depth", says, [&](double width) {
        chart.width = width;
        chart.height = width < 500 ? 300 : 320;
        return svg_inline(xy_chart(chart));
    })}});
    section.blocks.emplace_back(std::move(table));
    section.blocks.push_back(made_by(speed.command, "kvaq bench --json"));
    return section;
}

}  // namespace kvaq
