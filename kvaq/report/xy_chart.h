#pragma once

#include <string>
#include <vector>

#include "kvaq/report/axis.h"
#include "kvaq/report/svg.h"

namespace kvaq {

struct PlotPoint {
    double x = 0;
    double y = 0;
    double error = 0;    ///< standard error, drawn as a bar
    std::string label;   ///< shown on hover, with the numbers
    bool named = false;  ///< also written beside the point
};

struct PlotSeries {
    std::string name;
    bool line = false;  ///< points joined in the order of x
    bool marks = true;  ///< drawn one by one
    std::vector<PlotPoint> points;
    std::vector<PlotPoint> band;  ///< a shaded band of y - error .. y + error
};

/// Points and lines over two axes. Series are told apart by colour, shape and dash; at most 5.
struct XyChart {
    std::string title;  ///< of the picture, for readers who do not see it
    std::string x_label;
    std::string y_label;
    Scale x_scale = Scale::kLinear;
    Scale y_scale = Scale::kLog;
    bool y_from_zero = false;     ///< linear only
    std::vector<double> x_ticks;  ///< rising; instead of round numbers (contexts are powers of two)
    std::string unit;             ///< of y, for hover texts
    std::vector<PlotSeries> series;
    double width = 720;
    double height = 420;
};

/// Deterministic; holds for any finite or infinite numbers, empty series and hostile texts.
[[nodiscard]] SvgFrame xy_chart(const XyChart& chart);

}  // namespace kvaq
