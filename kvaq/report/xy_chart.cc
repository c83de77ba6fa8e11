#include "kvaq/report/xy_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kvaq/report/markup.h"

namespace kvaq {
namespace {

struct Box {
    double x0, y0, x1, y1;
    [[nodiscard]] bool meets(const Box& o) const noexcept { return x0 < o.x1 && o.x0 < x1 && y0 < o.y1 && o.y0 < y1; }
};

/// The legend above the plot, in rows that fit. Returns its height.
double draw_legend(const XyChart& chart, double left, std::string& out) {
    double x = left;
    double y = 14;
    for (size_t s = 0; s < chart.series.size(); ++s) {
        const PlotSeries& series = chart.series[s];
        if (series.points.empty()) continue;
        const double width = 34 + text_width(series.name, 12) + 12;
        if (x > left && x + width > chart.width) {
            x = left;
            y += 19;
        }
        if (series.line)
            out += fmt::format("<line class=\"line c{}\" x1=\"{}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\"{}/>\n", s,
                               svg_number(x), svg_number(x + 26), svg_dash(s), fmt::arg("y", svg_number(y - 4)));
        if (series.marks) out += svg_mark(s, x + 13, y - 4, "");
        out +=
            svg_text({.x = x + 32, .y = y, .text = series.name, .anchor = "", .soft = false, .size = 12, .more = ""});
        x += width;
    }
    return chart.series.empty() ? 8 : y + 8;
}

std::string path_of(const std::vector<PlotPoint>& points, const Axis& x, const Axis& y) {
    std::string path;
    for (const PlotPoint& p : points)
        path += (path.empty() ? "M" : "L") + svg_number(x.at(p.x)) + " " + svg_number(y.at(p.y));
    return path;
}

/// Names beside their points, where they meet no mark and no other name; those without room are left to hover and table.
std::string draw_names(const XyChart& chart, const Axis& x, const Axis& y, double right) {
    constexpr double kSize = 11;
    std::vector<Box> taken;
    for (const PlotSeries& series : chart.series) {
        for (const PlotPoint& p : series.points)
            taken.push_back({x.at(p.x) - 5, y.at(p.y) - 5, x.at(p.x) + 5, y.at(p.y) + 5});
    }
    std::string out;
    for (const PlotSeries& series : chart.series) {
        for (const PlotPoint& p : series.points) {
            if (!p.named) continue;
            const double w = text_width(p.label, kSize);
            const double px = x.at(p.x);
            const double py = y.at(p.y);
            const Box places[] = {{px + 8, py - 11, px + 8 + w, py + 3},
                                  {px - w / 2, py - 21, px + w / 2, py - 7},
                                  {px - w / 2, py + 8, px + w / 2, py + 22},
                                  {px - 8 - w, py - 11, px - 8, py + 3}};
            for (const Box& place : places) {
                if (place.x1 > right || place.x0 < x.at(x.low()) || place.y0 < y.at(y.high()) ||
                    place.y1 > y.at(y.low()) ||
                    std::any_of(taken.begin(), taken.end(), [&](const Box& b) { return b.meets(place); }))
                    continue;
                taken.push_back(place);
                out += svg_text({.x = place.x0,
                                 .y = place.y1 - 3,
                                 .text = p.label,
                                 .anchor = "",
                                 .soft = true,
                                 .size = kSize,
                                 .more = ""});
                break;
            }
        }
    }
    return out;
}

}  // namespace

SvgFrame xy_chart(const XyChart& chart) {
    double x0 = 1e300, x1 = -1e300, y0 = 1e300, y1 = -1e300;
    const bool log_y = chart.y_scale == Scale::kLog;
    const auto see = [&](const PlotPoint& p) {
        if (!std::isfinite(p.x) || !std::isfinite(p.y) || (log_y && !(p.y > 0))) return;
        x0 = std::min(x0, p.x), x1 = std::max(x1, p.x);
        y0 = std::min(y0, log_y && p.y - p.error <= 0 ? p.y : p.y - p.error);
        y1 = std::max(y1, p.y + p.error);
    };
    for (const PlotSeries& series : chart.series) {
        std::for_each(series.points.begin(), series.points.end(), see);
        std::for_each(series.band.begin(), series.band.end(), see);
    }
    if (chart.y_from_zero) y0 = std::min(y0, 0.0);
    std::string out;
    constexpr double kLeft = 56, kBottom = 44;
    const double right = chart.width - 12;
    const double top = draw_legend(chart, 8, out) + 8;
    const double floor = chart.height - kBottom;
    const bool own_ticks = chart.x_ticks.size() > 1;
    const Axis x =
        own_ticks ? Axis(chart.x_scale, chart.x_ticks, kLeft, right)
                  : Axis(chart.x_scale, x0, x1, kLeft, right, static_cast<size_t>(std::max(3.0, (right - kLeft) / 70)));
    const Axis y(chart.y_scale, y0, y1, floor, top, static_cast<size_t>(std::max(3.0, (floor - top) / 45)));
    for (const double tick : y.ticks()) {
        out += fmt::format("<line class=\"grid\" x1=\"{}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\"/>", svg_number(kLeft),
                           svg_number(right), fmt::arg("y", svg_number(y.at(tick))));
        out += svg_text({.x = kLeft - 6,
                         .y = y.at(tick) + 4,
                         .text = tick_text(tick),
                         .anchor = "end",
                         .soft = true,
                         .size = 12,
                         .more = ""});
    }
    for (const double tick : x.ticks()) {
        const double w = text_width(tick_text(tick), 12) / 2;
        out += fmt::format("<line class=\"grid\" x1=\"{x}\" x2=\"{x}\" y1=\"{}\" y2=\"{}\"/>", svg_number(top),
                           svg_number(floor), fmt::arg("x", svg_number(x.at(tick))));
        out += svg_text({.x = std::min(x.at(tick), chart.width - w),
                         .y = floor + 17,
                         .text = tick_text(tick),
                         .anchor = "mid",
                         .soft = true,
                         .size = 12,
                         .more = ""});
    }
    out += fmt::format("<line class=\"axis\" x1=\"{}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\"/>\n", svg_number(kLeft),
                       svg_number(right), fmt::arg("y", svg_number(floor)));
    out += svg_text({.x = (kLeft + right) / 2,
                     .y = chart.height - 8,
                     .text = chart.x_label,
                     .anchor = "mid",
                     .soft = true,
                     .size = 12,
                     .more = ""});
    out +=
        fmt::format("<text class=\"mid soft\" font-size=\"12\" transform=\"translate(13 {}) rotate(-90)\">{}</text>\n",
                    svg_number((top + floor) / 2), escape_markup(chart.y_label));
    for (size_t s = 0; s < chart.series.size(); ++s) {
        const PlotSeries& series = chart.series[s];
        std::vector<PlotPoint> points;
        for (const PlotPoint& p : series.points) {
            if (std::isfinite(p.x) && std::isfinite(p.y)) points.push_back(p);
        }
        std::stable_sort(points.begin(), points.end(),
                         [](const PlotPoint& a, const PlotPoint& b) { return a.x < b.x; });
        if (series.band.size() > 1) {
            std::vector<PlotPoint> outline = series.band;
            for (PlotPoint& p : outline) p.y += p.error;
            for (auto p = series.band.rbegin(); p != series.band.rend(); ++p)
                outline.push_back({.x = p->x, .y = p->y - p->error, .error = 0, .label = "", .named = false});
            out += fmt::format("<path class=\"band c{}\" d=\"{}z\"/>\n", s, path_of(outline, x, y));
        }
        if (series.line && points.size() > 1)
            out += fmt::format("<path class=\"line c{}\" d=\"{}\"{}/>\n", s, path_of(points, x, y), svg_dash(s));
        for (const PlotPoint& p : points) {
            if (p.error > 0)
                out += fmt::format("<line class=\"err c{}\" x1=\"{x}\" x2=\"{x}\" y1=\"{}\" y2=\"{}\"/>", s,
                                   svg_number(y.at(p.y - p.error)), svg_number(y.at(p.y + p.error)),
                                   fmt::arg("x", svg_number(x.at(p.x))));
            if (series.marks)
                out += svg_mark(s, x.at(p.x), y.at(p.y),
                                fmt::format("{}: {} {:.4g}, {:.4g}{}", p.label.empty() ? series.name : p.label,
                                            chart.x_label, p.x, p.y, chart.unit.empty() ? "" : " " + chart.unit));
        }
    }
    out += draw_names(chart, x, y, chart.width);
    return {.label = chart.title, .width = chart.width, .height = chart.height, .body = out};
}

}  // namespace kvaq
