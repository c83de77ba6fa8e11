#include "kvaq/report/svg.h"

#include <fmt/format.h>

#include <cmath>

#include "kvaq/report/markup.h"
#include "kvaq/report/style.h"

namespace kvaq {
namespace {

std::string svg(const SvgFrame& frame, const std::string& attributes, const std::string& style) {
    return fmt::format("<svg{} viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n{}{}</svg>\n", attributes,
                       svg_number(frame.width), svg_number(frame.height), escape_markup(frame.label), style,
                       frame.body);
}

}  // namespace

std::string svg_inline(const SvgFrame& frame) { return svg(frame, "", ""); }

std::string svg_file(const SvgFrame& frame) {
    return svg(frame, " xmlns=\"http://www.w3.org/2000/svg\"",
               "<style>" + palette_style() + chart_style() + "</style>\n" +
                   fmt::format("<rect class=\"bg\" width=\"{}\" height=\"{}\"/>\n", svg_number(frame.width),
                               svg_number(frame.height)));
}

std::string svg_number(double value) {
    std::string text = fmt::format("{:.2f}", value);
    while (text.back() == '0') text.pop_back();
    if (text.back() == '.') text.pop_back();
    return text == "-0" ? "0" : text;
}

std::string svg_text(const SvgText& t) {
    std::string classes = t.anchor;
    if (t.soft) classes += classes.empty() ? "soft" : " soft";
    if (!t.more.empty()) classes += (classes.empty() ? "" : " ") + t.more;
    return fmt::format("<text x=\"{}\" y=\"{}\" font-size=\"{}\"{}>{}</text>\n", svg_number(t.x), svg_number(t.y),
                       svg_number(t.size), classes.empty() ? "" : " class=\"" + classes + "\"", escape_markup(t.text));
}

std::string svg_mark(size_t series, double x, double y, const std::string& hover, double radius) {
    const double r = radius;
    const std::string place = svg_number(x) + " " + svg_number(y);
    const auto path = [&](const std::string& d) { return "<path d=\"M" + place + d + "z\""; };
    std::string shape;
    switch (series % kSeriesColours) {
        case 0:
            shape = fmt::format("<circle cx=\"{}\" cy=\"{}\" r=\"{}\"", svg_number(x), svg_number(y), svg_number(r));
            break;
        case 1:
            shape = fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{w}\" height=\"{w}\"", svg_number(x - 0.9 * r),
                                svg_number(y - 0.9 * r), fmt::arg("w", svg_number(1.8 * r)));
            break;
        case 2:
            shape = path(fmt::format("m0 {}l{} {}h{}", svg_number(-1.15 * r), svg_number(1.15 * r), svg_number(2 * r),
                                     svg_number(-2.3 * r)));
            break;
        case 3:
            shape = path(fmt::format("m0 {}l{r} {r}l-{r} {r}l-{r} -{r}", svg_number(-1.2 * r),
                                     fmt::arg("r", svg_number(1.2 * r))));
            break;
        default:  // a cross of two bars
            shape = path(fmt::format("m-{a} -{b}h{c}v-{c}h{d}v{c}h{c}v{d}h-{c}v{c}h-{d}v-{c}h-{c}",
                                     fmt::arg("a", svg_number(1.2 * r)), fmt::arg("b", svg_number(0.4 * r)),
                                     fmt::arg("c", svg_number(0.8 * r)), fmt::arg("d", svg_number(0.8 * r))));
    }
    shape += fmt::format(" class=\"mark c{}\"", series % kSeriesColours);
    const std::string tag = shape.substr(1, shape.find(' ') - 1);
    return hover.empty() ? shape + "/>\n" : shape + "><title>" + escape_markup(hover) + "</title></" + tag + ">\n";
}

std::string svg_dash(size_t series) {
    constexpr const char* kDashes[kSeriesColours] = {"", "7 4", "2 4", "9 3 2 3", "1 3"};
    const std::string dash = kDashes[series % kSeriesColours];
    return dash.empty() ? "" : " stroke-dasharray=\"" + dash + "\"";
}

double text_width(const std::string& text, double size) noexcept {
    size_t n = 0;
    for (const char c : text) n += (static_cast<unsigned char>(c) & 0xC0U) != 0x80U ? 1 : 0;
    return 0.58 * size * static_cast<double>(n);
}

}  // namespace kvaq
