#pragma once

#include <string>
#include <vector>

namespace kvaq {

struct PlotPoint {
    double x = 0;
    double y = 0;       ///< positive
    double error = 0;   ///< standard error, drawn as a bar
    std::string label;  ///< shown on hover
};

struct PlotSeries {
    std::string name;
    bool line = false;  ///< points joined in the order of x
    std::vector<PlotPoint> points;
};

struct ScatterPlot {
    std::string title;
    std::string x_label;
    std::string y_label;
    std::vector<PlotSeries> series;  ///< at most 6: told apart by colour and shape
};

/// A self-contained SVG: linear x, logarithmic y, light and dark by the reader's preference. No script, no network. Deterministic.
[[nodiscard]] std::string scatter_plot(const ScatterPlot& plot);

}  // namespace kvaq
