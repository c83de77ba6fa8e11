#include "kvaq/report/heat_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kvaq/report/markup.h"
#include "kvaq/report/style.h"

namespace kvaq {
namespace {

constexpr double kGroupGap = 12;

/// Low and high end of the colours, in half units.
void range_of(const HeatMap& map, double& low, double& high) {
    low = 1e300, high = -1e300;
    for (const HeatGroup& group : map.groups) {
        for (const auto& line : group.values) {
            for (const double v : line) {
                if (std::isfinite(v)) low = std::min(low, v), high = std::max(high, v);
            }
        }
    }
    if (!(high >= low)) low = 0, high = 1;
    low = std::floor(low * 2) / 2;
    high = std::max(std::ceil(high * 2) / 2, low + 1);
}

/// Swatches with the numbers at their edges. Returns the height.
double draw_legend(const HeatMap& map, double low, double high, double top, std::string& out) {
    const double left = 8;
    const double swatch =
        std::min(40.0, (map.width - 2 * left - text_width(map.unit, 12) - 12) / static_cast<double>(kRampSteps));
    for (size_t i = 0; i < kRampSteps; ++i)
        out += fmt::format("<rect class=\"q{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"12\"/>\n", i,
                           svg_number(left + swatch * static_cast<double>(i)), svg_number(top), svg_number(swatch));
    for (size_t i = 0; i <= kRampSteps; i += 3) {
        const double value = low + (high - low) * static_cast<double>(i) / static_cast<double>(kRampSteps);
        out += svg_text({.x = left + swatch * static_cast<double>(i),
                         .y = top + 27,
                         .text = fmt::format("{:.3g}", value),
                         .anchor = i == 0 ? "" : "mid",
                         .soft = true,
                         .size = 12,
                         .more = ""});
    }
    out += svg_text({.x = left + swatch * static_cast<double>(kRampSteps) + 10,
                     .y = top + 11,
                     .text = map.unit,
                     .anchor = "",
                     .soft = true,
                     .size = 12,
                     .more = ""});
    return 34;
}

}  // namespace

size_t heat_step(double value, double low, double high) noexcept {
    const double share = (value - low) / (high - low);
    if (!(share > 0)) return 0;
    return std::min(kRampSteps - 1, static_cast<size_t>(share * static_cast<double>(kRampSteps)));
}

SvgFrame heat_map(const HeatMap& map) {
    double low = 0;
    double high = 1;
    range_of(map, low, high);
    size_t n_lines = 0;
    for (const HeatGroup& group : map.groups) n_lines += group.values.size();
    const auto n_layers = static_cast<double>(std::max<size_t>(map.layers.size(), 1));
    const double n_gaps = map.groups.empty() ? 0 : static_cast<double>(map.groups.size() - 1);
    const double head = map.upright ? 36 : 64;  // names at the left
    // Along the layers and across them.
    const double step = map.upright ? 20 : (map.width - head - 8) / n_layers;
    const double breadth =
        map.upright ? (map.width - head - 8 - n_gaps * kGroupGap) / static_cast<double>(std::max<size_t>(n_lines, 1))
                    : std::clamp(step, 20.0, 26.0);
    const double font = std::min(11.0, (map.upright ? breadth : step) / 2.05);
    std::string out;
    const double top = (map.upright ? 36 : 22) + draw_legend(map, low, high, 4, out);
    double across = map.upright ? head : top;
    for (const HeatGroup& group : map.groups) {
        const double begin = across;
        for (size_t h = 0; h < group.values.size(); ++h) {
            for (size_t l = 0; l < group.values[h].size() && l < map.layers.size(); ++l) {
                const double v = group.values[h][l];
                if (!std::isfinite(v)) continue;
                const double along = (map.upright ? top : head) + step * static_cast<double>(l);
                const double x = map.upright ? across : along;
                const double y = map.upright ? along : across;
                const double w = map.upright ? breadth : step;
                const double d = map.upright ? step : breadth;
                const size_t q = heat_step(v, low, high);
                out += fmt::format(
                    "<rect class=\"q{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"><title>{}</title></rect>", q,
                    svg_number(x), svg_number(y), svg_number(std::max(w - 1, 0.5)), svg_number(std::max(d - 1, 0.5)),
                    escape_markup(
                        fmt::format("layer {}, {} head {}: {:.3g} {}", map.layers[l], group.name, h, v, map.unit)));
                if (font >= 8)
                    out += svg_text({.x = x + (w - 1) / 2,
                                     .y = y + d / 2 + 3.5,
                                     .text = fmt::format("{:.1f}", v),
                                     .anchor = "mid",
                                     .soft = false,
                                     .size = font,
                                     .more = fmt::format("t{}", q)});
            }
            const std::string name = fmt::format("{} {}", group.name, h);
            if (!map.upright) {
                out += svg_text({.x = head - 6,
                                 .y = across + breadth / 2 + 4,
                                 .text = name,
                                 .anchor = "end",
                                 .soft = true,
                                 .size = 12,
                                 .more = ""});
            } else if (breadth >= text_width(name, 11)) {
                out += svg_text({.x = across + breadth / 2,
                                 .y = top - 6,
                                 .text = name,
                                 .anchor = "mid",
                                 .soft = true,
                                 .size = 11,
                                 .more = ""});
            }
            across += breadth;
        }
        if (map.upright && (group.values.empty() || breadth < text_width(fmt::format("{} 0", group.name), 11)))
            out += svg_text({.x = (begin + across) / 2,
                             .y = top - 6,
                             .text = group.name,
                             .anchor = "mid",
                             .soft = true,
                             .size = 11,
                             .more = ""});
        across += kGroupGap;
    }
    size_t widest = 1;
    for (const std::string& layer : map.layers) widest = std::max(widest, layer.size());
    const double room = map.upright ? 14 : text_width(std::string(widest, '0'), 11) + 5;
    const auto every = static_cast<size_t>(std::max(1.0, std::ceil(room / std::max(step, 1e-9))));
    for (size_t l = 0; l < map.layers.size(); l += every) {
        const double along = (map.upright ? top : head) + step * (static_cast<double>(l) + 0.5);
        out += map.upright ? svg_text({.x = head - 6,
                                       .y = along + 4,
                                       .text = map.layers[l],
                                       .anchor = "end",
                                       .soft = true,
                                       .size = 11,
                                       .more = ""})
                           : svg_text({.x = along,
                                       .y = top - 6,
                                       .text = map.layers[l],
                                       .anchor = "mid",
                                       .soft = true,
                                       .size = 11,
                                       .more = ""});
    }
    out += svg_text({.x = map.upright ? 4.0 : head - 6,
                     .y = top - 6,
                     .text = "layer",
                     .anchor = map.upright ? "" : "end",
                     .soft = true,
                     .size = 11,
                     .more = ""});
    const double height = map.upright ? top + step * n_layers + 4 : across - kGroupGap + 4;
    return {.label = map.title, .width = map.width, .height = height, .body = out};
}

}  // namespace kvaq
