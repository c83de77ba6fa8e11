#include "kvaq/report/scatter_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace kvaq {
namespace {

constexpr double kWidth = 760, kHeight = 460, kLeft = 70, kRight = 20, kTop = 40, kBottom = 60;
// Okabe and Ito's palette, readable with colour blindness and on both backgrounds.
constexpr std::array kColours = {"#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"};

std::string escaped(const std::string& text) {
    std::string out;
    for (const char c : text) {
        switch (c) {
            case '&':
                out += "&amp;";
                break;
            case '<':
                out += "&lt;";
                break;
            case '>':
                out += "&gt;";
                break;
            case '"':
                out += "&quot;";
                break;
            default:
                out += c;
        }
    }
    return out;
}

/// A mark of its series' own shape.
std::string mark(size_t series, double x, double y, const std::string& title) {
    const char* colour = kColours[series % kColours.size()];
    std::string shape;
    switch (series % 4) {
        case 0:
            shape = fmt::format("<circle cx='{:.1f}' cy='{:.1f}' r='4.5' fill='{}'>", x, y, colour);
            break;
        case 1:
            shape = fmt::format("<rect x='{:.1f}' y='{:.1f}' width='8' height='8' fill='{}'>", x - 4, y - 4, colour);
            break;
        case 2:
            shape = fmt::format("<path d='M{:.1f} {:.1f}l5 9h-10z' fill='{}'>", x, y - 5, colour);
            break;
        default:
            shape = fmt::format("<path d='M{:.1f} {:.1f}l5 5l-5 5l-5 -5z' fill='{}'>", x, y - 5, colour);
    }
    const std::string tag = shape.substr(1, shape.find_first_of(" ") - 1);
    return shape + "<title>" + escaped(title) + "</title></" + tag + ">";
}

}  // namespace

std::string scatter_plot(const ScatterPlot& plot) {
    double x0 = 1e300, x1 = -1e300, y0 = 1e300, y1 = -1e300;
    for (const PlotSeries& series : plot.series) {
        for (const PlotPoint& p : series.points) {
            x0 = std::min(x0, p.x);
            x1 = std::max(x1, p.x);
            y0 = std::min(y0, std::max(p.y, 1e-12));
            y1 = std::max(y1, p.y);
        }
    }
    if (!(x1 >= x0)) x0 = 0, x1 = 1, y0 = 0.1, y1 = 1;
    x0 = std::floor(x0), x1 = std::max(std::ceil(x1), x0 + 1);
    const double low = std::floor(std::log10(y0) * 2) / 2;
    const double high = std::max(std::ceil(std::log10(std::max(y1, y0)) * 2) / 2, low + 0.5);
    const auto px = [&](double x) { return kLeft + (x - x0) / (x1 - x0) * (kWidth - kLeft - kRight); };
    const auto py = [&](double y) {
        return kTop + (high - std::clamp(std::log10(std::max(y, 1e-12)), low, high)) / (high - low) *
                          (kHeight - kTop - kBottom);
    };
    std::string svg = fmt::format(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {0} {1}' role='img' aria-label='{2}' "
        "font-family='system-ui,sans-serif' font-size='12'>\n"
        "<style>.bg{{fill:#fff}}.ink{{fill:#222}}.grid{{stroke:#ddd}}@media "
        "(prefers-color-scheme:dark){{.bg{{fill:#16181d}}.ink{{fill:#ddd}}.grid{{stroke:#3a3d44}}}}</style>\n"
        "<rect class='bg' width='{0}' height='{1}'/>\n<text class='ink' x='{3}' y='22' font-size='14'>{2}</text>\n",
        kWidth, kHeight, escaped(plot.title), kLeft);
    for (double x = x0; x <= x1 + 1e-9; x += 1) {
        svg += fmt::format(
            "<line class='grid' x1='{0:.1f}' x2='{0:.1f}' y1='{1}' y2='{2}'/><text class='ink' x='{0:.1f}' y='{3}' "
            "text-anchor='middle'>{4:g}</text>\n",
            px(x), kTop, kHeight - kBottom, kHeight - kBottom + 16, x);
    }
    for (int decade = static_cast<int>(std::floor(low)); decade <= static_cast<int>(std::ceil(high)); ++decade) {
        for (const double digit : {1.0, 2.0, 5.0}) {
            const double y = digit * std::pow(10.0, decade);
            if (std::log10(y) < low - 1e-9 || std::log10(y) > high + 1e-9) continue;
            svg += fmt::format(
                "<line class='grid' y1='{0:.1f}' y2='{0:.1f}' x1='{1}' x2='{2}'/><text class='ink' x='{3}' y='{4:.1f}' "
                "text-anchor='end'>{5:g}</text>\n",
                py(y), kLeft, kWidth - kRight, kLeft - 6, py(y) + 4, y);
        }
    }
    svg += fmt::format("<text class='ink' x='{:.0f}' y='{:.0f}' text-anchor='middle'>{}</text>\n",
                       (kLeft + kWidth - kRight) / 2, kHeight - 22, escaped(plot.x_label));
    svg +=
        fmt::format("<text class='ink' transform='translate(16 {:.0f}) rotate(-90)' text-anchor='middle'>{}</text>\n",
                    (kTop + kHeight - kBottom) / 2, escaped(plot.y_label));
    for (size_t s = 0; s < plot.series.size(); ++s) {
        std::vector<PlotPoint> points = plot.series[s].points;
        std::stable_sort(points.begin(), points.end(),
                         [](const PlotPoint& a, const PlotPoint& b) { return a.x < b.x; });
        const char* colour = kColours[s % kColours.size()];
        if (plot.series[s].line && points.size() > 1) {
            std::string path;
            for (const PlotPoint& p : points)
                path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", px(p.x), py(p.y));
            svg += fmt::format("<path d='{}' fill='none' stroke='{}' stroke-width='1.5'/>\n", path, colour);
        }
        for (const PlotPoint& p : points) {
            if (p.error > 0) {
                svg += fmt::format("<line x1='{0:.1f}' x2='{0:.1f}' y1='{1:.1f}' y2='{2:.1f}' stroke='{3}'/>", px(p.x),
                                   py(p.y - p.error), py(p.y + p.error), colour);
            }
            svg += mark(s, px(p.x), py(p.y), fmt::format("{}: {:.2f} bits, {:.4f}", p.label, p.x, p.y)) + "\n";
        }
        svg += mark(s, kWidth - kRight - 190, kTop + 14 + 18 * static_cast<double>(s), plot.series[s].name) +
               fmt::format("<text class='ink' x='{:.0f}' y='{:.0f}'>{}</text>\n", kWidth - kRight - 178,
                           kTop + 18 + 18 * static_cast<double>(s), escaped(plot.series[s].name));
    }
    return svg + "</svg>\n";
}

}  // namespace kvaq
