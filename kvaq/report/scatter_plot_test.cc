#include "kvaq/report/scatter_plot.h"

#include <gtest/gtest.h>

namespace kvaq {
namespace {

size_t count(const std::string& text, const std::string& what) {
    size_t n = 0;
    for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
    return n;
}

TEST(ScatterPlot, DrawsEveryPointOnceAndEscapesText) {
    ScatterPlot plot{.title = "a < b & \"c\"", .x_label = "x", .y_label = "y", .series = {}};
    plot.series.push_back(
        {.name = "line",
         .line = true,
         .points = {{.x = 4, .y = 0.01, .error = 0, .label = "p1"}, {.x = 2, .y = 0.5, .error = 0.1, .label = "p2"}}});
    plot.series.push_back(
        {.name = "marks", .line = false, .points = {{.x = 3, .y = 0.05, .error = 0, .label = "<p3>"}}});
    const std::string svg = scatter_plot(plot);
    EXPECT_EQ(svg.rfind("<svg ", 0), 0U);
    EXPECT_NE(svg.find("a &lt; b &amp; &quot;c&quot;"), std::string::npos);
    EXPECT_NE(svg.find("&lt;p3&gt;: 3.00 bits, 0.0500"), std::string::npos);
    EXPECT_EQ(count(svg, "<title>"), 3U + 2U) << "points and legend";
    EXPECT_EQ(count(svg, "<circle"), count(svg, "</circle>"));
    EXPECT_EQ(count(svg, "nan"), 0U);
    EXPECT_EQ(scatter_plot(plot), svg);
    EXPECT_NE(scatter_plot({.title = "empty", .x_label = "", .y_label = "", .series = {}}).find("</svg>"),
              std::string::npos);
}

}  // namespace
}  // namespace kvaq
