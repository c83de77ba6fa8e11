#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kvaq/report/bar_chart.h"
#include "kvaq/report/heat_map.h"
#include "kvaq/report/xy_chart.h"

namespace kvaq {
namespace {

size_t count(const std::string& text, const std::string& what) {
    size_t n = 0;
    for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
    return n;
}

XyChart two_series() {
    XyChart chart;
    chart.title = "a < b & \"c\"";
    chart.x_label = "bits";
    chart.unit = "nats";
    PlotSeries line{.name = "line", .line = true, .marks = true, .points = {}, .band = {}};
    line.points = {{.x = 4, .y = 0.01, .error = 0, .label = "p1", .named = false},
                   {.x = 2, .y = 0.5, .error = 0.1, .label = "p2", .named = false}};
    PlotSeries marks{.name = "marks", .line = false, .marks = true, .points = {}, .band = {}};
    marks.points = {{.x = 3, .y = 0.05, .error = 0, .label = "<p3>", .named = true}};
    chart.series = {line, marks};
    return chart;
}

TEST(XyChart, DrawsEveryPointOnceAndEscapesText) {
    const std::string svg = svg_file(xy_chart(two_series()));
    EXPECT_EQ(svg.rfind("<svg ", 0), 0U);
    EXPECT_NE(svg.find("a &lt; b &amp; &quot;c&quot;"), std::string::npos);
    EXPECT_NE(svg.find("&lt;p3&gt;: bits 3, 0.05 nats"), std::string::npos);
    EXPECT_EQ(count(svg, "<title>"), 3U) << "one hover text a point";
    EXPECT_EQ(count(svg, "class=\"mark "), 3U + 2U) << "points and legend";
    EXPECT_EQ(count(svg, "class=\"err "), 1U);
    EXPECT_EQ(count(svg, ">&lt;p3&gt;</text>"), 1U) << "the named point";
    EXPECT_EQ(svg_file(xy_chart(two_series())), svg);
    EXPECT_EQ(svg_inline(xy_chart(two_series())).find("http"), std::string::npos) << "a page needs no namespace";
}

TEST(XyChart, HoldsForNumbersThatAreNone) {
    XyChart chart = two_series();
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const double inf = std::numeric_limits<double>::infinity();
    for (const double y : {nan, inf, 0.0, -1.0})
        chart.series[0].points.push_back({.x = 3, .y = y, .error = nan, .label = "bad", .named = false});
    chart.series[1].points.push_back({.x = inf, .y = 1, .error = 0, .label = "bad", .named = true});
    for (const Scale scale : {Scale::kLog, Scale::kLinear}) {
        chart.y_scale = scale;
        const std::string body = xy_chart(chart).body;
        EXPECT_EQ(body.find("nan"), std::string::npos);
        EXPECT_EQ(body.find("inf"), std::string::npos);
    }
    EXPECT_NE(svg_inline(xy_chart(XyChart{})).find("</svg>"), std::string::npos) << "no series at all";
}

TEST(Axis, CoversItsRangeWithRoundTicks) {
    for (const auto& [low, high] :
         {std::pair{0.0021, 3.6}, std::pair{0.5, 0.5}, std::pair{1e-9, 1e9}, std::pair{3.0, 720.0}}) {
        for (const Scale scale : {Scale::kLinear, Scale::kLog}) {
            const Axis axis(scale, low, high, 300, 10, 6);
            EXPECT_LE(axis.low(), low * (1 + 1e-9));
            EXPECT_GE(axis.high(), high * (1 - 1e-9));
            ASSERT_GE(axis.ticks().size(), 2U) << low << " " << high;
            EXPECT_LE(axis.ticks().size(), 25U) << low << " " << high;
            EXPECT_NEAR(axis.at(axis.low()), 300, 1e-9);
            EXPECT_NEAR(axis.at(axis.high()), 10, 1e-9);
            for (const double tick : axis.ticks()) {
                EXPECT_GE(tick, axis.low() * 0.999);
                EXPECT_LE(tick, axis.high() * 1.001);
            }
        }
    }
    const Axis log(Scale::kLog, 0.01, 10, 0, 300, 6);
    EXPECT_NEAR(log.at(0.1), 100, 1e-6);
    EXPECT_NEAR(log.at(1), 200, 1e-6);
    EXPECT_EQ(tick_text(32768), "32k");
    EXPECT_EQ(tick_text(0.05), "0.05");
}

TEST(HeatMap, HasACellForEveryHeadThatThereIs) {
    const double none = std::numeric_limits<double>::quiet_NaN();
    HeatMap map{
        .title = "bits", .unit = "bits", .layers = {"0", "1", "7"}, .groups = {}, .width = 720, .upright = false};
    map.groups = {{.name = "K", .values = {{1.5, 3, 4.5}, {2, none, 2}}}, {.name = "V", .values = {{3, 3, 3}}}};
    for (const bool upright : {false, true}) {
        map.upright = upright;
        map.width = upright ? 360 : 720;
        const std::string body = heat_map(map).body;
        EXPECT_EQ(count(body, "<title>"), 8U);
        EXPECT_NE(body.find("<title>layer 7, K head 0: 4.5 bits</title>"), std::string::npos);
        EXPECT_EQ(count(body, ">3.0</text>"), 4U) << "colour is not all that says it";
        EXPECT_EQ(body.find("nan"), std::string::npos);
    }
    EXPECT_EQ(heat_step(1, 1, 4), 0U);
    EXPECT_EQ(heat_step(4, 1, 4), 8U);
    EXPECT_EQ(heat_step(2.5, 1, 4), 4U);
    EXPECT_EQ(heat_step(none, 1, 4), 0U);
}

TEST(BarChart, DrawsBarsFromZeroBothWays) {
    BarChart chart{.title = "damage",
                   .x_label = "layer",
                   .y_label = "KL",
                   .unit = "nats",
                   .categories = {"0", "1"},
                   .series = {},
                   .width = 360,
                   .height = 300};
    chart.series = {{.name = "keys", .values = {0.01, -0.002}},
                    {.name = "values", .values = {std::numeric_limits<double>::quiet_NaN(), 0.003}}};
    const std::string body = bar_chart(chart).body;
    EXPECT_NE(body.find("layer 1, keys: -0.002 nats"), std::string::npos);
    EXPECT_EQ(count(body, "<title>layer"), 3U) << "what was not measured has no bar";
    EXPECT_EQ(body.find("nan"), std::string::npos);
}

}  // namespace
}  // namespace kvaq
