#include "kvaq/report/style.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

namespace kvaq {
namespace {

/// Relative luminance of "#rrggbb" (WCAG 2.2).
double luminance(const std::string& colour) {
    const double weights[] = {0.2126, 0.7152, 0.0722};
    double sum = 0;
    for (size_t i = 0; i < 3; ++i) {
        const double c = std::stoi(colour.substr(1 + 2 * i, 2), nullptr, 16) / 255.0;
        sum += weights[i] * (c <= 0.04045 ? c / 12.92 : std::pow((c + 0.055) / 1.055, 2.4));
    }
    return sum;
}

double contrast(const char* a, const char* b) {
    const double x = luminance(a);
    const double y = luminance(b);
    return (std::max(x, y) + 0.05) / (std::min(x, y) + 0.05);
}

class Colours : public testing::TestWithParam<const Palette*> {};

TEST_P(Colours, TextIsReadable) {
    const Palette& p = *GetParam();
    for (const char* behind : {p.page, p.surface, p.marked}) EXPECT_GE(contrast(p.ink, behind), 4.5) << behind;
    for (const char* behind : {p.page, p.surface}) {
        EXPECT_GE(contrast(p.soft, behind), 4.5) << behind;
        EXPECT_GE(contrast(p.link, behind), 4.5) << behind;
    }
    for (size_t i = 0; i < kRampSteps; ++i) EXPECT_GE(contrast(p.ramp_ink[i], p.ramp[i]), 4.5) << "step " << i;
}

TEST_P(Colours, MarksStandOutFromTheirSurface) {
    const Palette& p = *GetParam();
    for (const char* colour : p.series) EXPECT_GE(contrast(colour, p.surface), 3.0) << colour;
}

TEST_P(Colours, TheRampGoesOneWay) {
    const Palette& p = *GetParam();
    for (size_t i = 1; i < kRampSteps; ++i) {
        const double step = luminance(p.ramp[i]) - luminance(p.ramp[i - 1]);
        EXPECT_GT(step * (luminance(p.ramp[kRampSteps - 1]) - luminance(p.ramp[0])), 0) << i;
    }
}

INSTANTIATE_TEST_SUITE_P(Modes, Colours, testing::Values(&light_palette(), &dark_palette()),
                         [](const auto& mode) { return mode.param == &light_palette() ? "light" : "dark"; });

TEST(Style, EveryClassOfTheChartsIsDefined) {
    const std::string style = page_style() + chart_style();
    for (const char* name :
         {".c0", ".c4", ".q0{", ".q8{", ".t0{", ".t8{", ".grid{", ".axis{", ".band{", ".mark{", ".wide{", ".narrow{"})
        EXPECT_NE(style.find(name), std::string::npos) << name;
    EXPECT_EQ(style.find("url("), std::string::npos);
    EXPECT_EQ(std::count(style.begin(), style.end(), '{'), std::count(style.begin(), style.end(), '}'));
}

}  // namespace
}  // namespace kvaq
