#include "kvaq/plan/damage_curve.h"

#include <algorithm>
#include <cmath>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

constexpr double kLeastExponent = 0.05;  ///< between points
constexpr double kLowEnd = 0.5;          ///< beyond them
constexpr double kHighEnd = 1.0;

}  // namespace

DamageCurve::DamageCurve(std::vector<std::pair<double, double>> points) {
    KVAQ_CHECK(!points.empty());
    std::sort(points.begin(), points.end());
    for (const auto& [noise, kl] : points) {
        KVAQ_CHECK(noise > 0 && kl > 0 && std::isfinite(noise) && std::isfinite(kl));
        const double x = std::log(noise);
        double y = std::log(kl);
        if (!points_.empty()) {
            const auto& [x0, y0] = points_.back();
            if (x - x0 < 1e-9) continue;
            y = std::max(y, y0 + kLeastExponent * (x - x0));
        }
        points_.emplace_back(x, y);
    }
}

double DamageCurve::operator()(double noise) const noexcept {
    if (!(noise > 0)) return 0.0;
    const double x = std::log(noise);
    const auto line = [](const std::pair<double, double>& a, const std::pair<double, double>& b) {
        return (b.second - a.second) / (b.first - a.first);
    };
    const size_t n = points_.size();
    const auto above =
        static_cast<size_t>(std::upper_bound(points_.begin(), points_.end(), std::pair(x, 1e300)) - points_.begin());
    if (n >= 2 && above > 0 && above < n) {
        const auto& a = points_[above - 1];
        return std::exp(a.second + line(a, points_[above]) * (x - a.first));
    }
    const auto& end = above == 0 ? points_.front() : points_.back();
    const double exponent = n < 2        ? 1.0
                            : above == 0 ? line(points_[0], points_[1])
                                         : line(points_[n - 2], points_[n - 1]);
    return std::exp(end.second + std::clamp(exponent, kLowEnd, kHighEnd) * (x - end.first));
}

}  // namespace kvaq
