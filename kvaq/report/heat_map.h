#pragma once

#include <string>
#include <vector>

#include "kvaq/report/svg.h"

namespace kvaq {

/// A group of lines of cells: the KV heads of one side, over the layers.
struct HeatGroup {
    std::string name;                         ///< "K", "V"
    std::vector<std::vector<double>> values;  ///< [head][layer]; NaN = this layer has no such head
};

/// Cells coloured in nine steps, few to many, each with its number where there is room (colour is not the only bearer).
struct HeatMap {
    std::string title;
    std::string unit;                 ///< "bits"
    std::vector<std::string> layers;  ///< names
    std::vector<HeatGroup> groups;
    double width = 720;
    bool upright = false;  ///< layers downwards, for a phone; else from left to right
};

[[nodiscard]] SvgFrame heat_map(const HeatMap& map);

/// The step, 0..8, of a value between low and high.
[[nodiscard]] size_t heat_step(double value, double low, double high) noexcept;

}  // namespace kvaq
