#pragma once

#include <string>
#include <vector>

#include "kvaq/report/svg.h"

namespace kvaq {

struct BarSeries {
    std::string name;
    std::vector<double> values;  ///< one per category; NaN = none
};

/// Bars side by side over categories, from zero, negative ones downwards. The first series is filled, the others have a pattern of their own
/// (a hollow bar), so that colour is not all that tells them apart.
struct BarChart {
    std::string title;
    std::string x_label;
    std::string y_label;
    std::string unit;
    std::vector<std::string> categories;
    std::vector<BarSeries> series;  ///< at most 2
    double width = 720;
    double height = 320;
};

[[nodiscard]] SvgFrame bar_chart(const BarChart& chart);

}  // namespace kvaq
