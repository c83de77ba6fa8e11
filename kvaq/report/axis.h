#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace kvaq {

enum class Scale { kLinear, kLog };

/// Values to pixels of one axis, with the ticks that are labelled.
class Axis {
  public:
    /// Covers [low, high], widened to round numbers, on pixels [from, to] (to < from for an upright axis). About n_ticks ticks. Logarithmic
    /// axes take positive values only; others are drawn at the low end. Any input gives a usable axis (empty ranges are widened).
    Axis(Scale scale, double low, double high, double from, double to, size_t n_ticks);
    /// With ticks of one's own: covers the first to the last of them exactly. At least two, rising.
    Axis(Scale scale, std::vector<double> ticks, double from, double to);

    [[nodiscard]] double at(double value) const noexcept;
    [[nodiscard]] const std::vector<double>& ticks() const noexcept { return ticks_; }
    [[nodiscard]] double low() const noexcept { return low_; }
    [[nodiscard]] double high() const noexcept { return high_; }

  private:
    Scale scale_;
    double low_, high_, from_, to_;
    std::vector<double> ticks_;
};

/// 0.02, 1.5, 4096, 32k: a tick as short as it goes.
[[nodiscard]] std::string tick_text(double value);

}  // namespace kvaq
