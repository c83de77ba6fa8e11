#pragma once

#include <utility>
#include <vector>

namespace kvaq {

/// How damage grows with noise: KL as a function of noise power, through measured points, straight lines between them in logarithms
/// (KL is proportional to noise power where both are small; real models bend, so the exponent is measured).
/// Beyond the first and last point the nearest line goes on with its exponent held to [0.5, 1]. Rises strictly; 0 at 0.
class DamageCurve {
  public:
    /// KL = noise.
    DamageCurve() : DamageCurve({{1.0, 1.0}}) {}
    /// (noise, KL), both positive, at least one; any order. Where measured KL falls although noise rises, it is held level (but for the slope that
    /// keeps the curve strict).
    explicit DamageCurve(std::vector<std::pair<double, double>> points);

    [[nodiscard]] double operator()(double noise) const noexcept;

  private:
    std::vector<std::pair<double, double>> points_;  ///< logarithms, rising in both
};

}  // namespace kvaq
