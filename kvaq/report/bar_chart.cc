#include "kvaq/report/bar_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kvaq/report/axis.h"
#include "kvaq/report/markup.h"

namespace kvaq {
namespace {

/// A filled bar, or from the second series on a hollow one.
std::string bar(size_t series, double x, double width, double y0, double y1, const std::string& hover) {
    const double inset = series == 0 ? 0 : 0.75;
    const double top = std::min(y0, y1);
    const double height = std::max(0.5, std::abs(y1 - y0));
    return fmt::format(
        "<rect class=\"{} c{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"{}><title>{}</title></rect>\n",
        series == 0 ? "bar" : "line", series, svg_number(x + inset), svg_number(top + inset),
        svg_number(std::max(0.5, width - 2 * inset)), svg_number(std::max(0.5, height - 2 * inset)),
        series == 0 ? "" : " style=\"stroke-width:1.5\"", escape_markup(hover));
}

}  // namespace

SvgFrame bar_chart(const BarChart& chart) {
    double low = 0;
    double high = 0;
    for (const BarSeries& series : chart.series) {
        for (const double v : series.values) {
            if (std::isfinite(v)) low = std::min(low, v), high = std::max(high, v);
        }
    }
    constexpr double kLeft = 56, kTop = 30;
    const double right = chart.width - 8;
    const double floor = chart.height - 44;
    const Axis y(Scale::kLinear, low, high, floor, kTop, static_cast<size_t>(std::max(3.0, (floor - kTop) / 45)));
    std::string out;
    double x = 8;
    for (size_t s = 0; s < chart.series.size(); ++s) {
        out += bar(s, x, 14, 5, 17, chart.series[s].name);
        out += svg_text(
            {.x = x + 20, .y = 15, .text = chart.series[s].name, .anchor = "", .soft = false, .size = 12, .more = ""});
        x += 38 + text_width(chart.series[s].name, 12);
    }
    for (const double tick : y.ticks()) {
        out +=
            fmt::format("<line class=\"{}\" x1=\"{}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\"/>", tick == 0 ? "axis" : "grid",
                        svg_number(kLeft), svg_number(right), fmt::arg("y", svg_number(y.at(tick))));
        out += svg_text({.x = kLeft - 6,
                         .y = y.at(tick) + 4,
                         .text = tick_text(tick),
                         .anchor = "end",
                         .soft = true,
                         .size = 12,
                         .more = ""});
    }
    const size_t n = chart.categories.size();
    const double slot = (right - kLeft) / static_cast<double>(std::max<size_t>(n, 1));
    const double gap = std::min(6.0, slot * 0.2);
    const double width = (slot - gap) / static_cast<double>(std::max<size_t>(chart.series.size(), 1));
    size_t widest = 1;
    for (const std::string& category : chart.categories) widest = std::max(widest, category.size());
    const auto every =
        static_cast<size_t>(std::ceil((text_width(std::string(widest, '0'), 12) + 6) / std::max(slot, 1e-9)));
    for (size_t i = 0; i < n; ++i) {
        const double left = kLeft + slot * static_cast<double>(i) + gap / 2;
        for (size_t s = 0; s < chart.series.size(); ++s) {
            const double v = i < chart.series[s].values.size() ? chart.series[s].values[i] : NAN;
            if (!std::isfinite(v)) continue;
            out += bar(s, left + width * static_cast<double>(s), width, y.at(0), y.at(v),
                       fmt::format("{} {}, {}: {:.4g} {}", chart.x_label, chart.categories[i], chart.series[s].name, v,
                                   chart.unit));
        }
        if (i % std::max<size_t>(every, 1) == 0)
            out += svg_text({.x = left + (slot - gap) / 2,
                             .y = floor + 17,
                             .text = chart.categories[i],
                             .anchor = "mid",
                             .soft = true,
                             .size = 12,
                             .more = ""});
    }
    out += svg_text({.x = (kLeft + right) / 2,
                     .y = chart.height - 8,
                     .text = chart.x_label,
                     .anchor = "mid",
                     .soft = true,
                     .size = 12,
                     .more = ""});
    out +=
        fmt::format("<text class=\"mid soft\" font-size=\"12\" transform=\"translate(13 {}) rotate(-90)\">{}</text>\n",
                    svg_number((kTop + floor) / 2), escape_markup(chart.y_label));
    return {.label = chart.title, .width = chart.width, .height = chart.height, .body = out};
}

}  // namespace kvaq
