#include "kvaq/report/axis.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace kvaq {
namespace {

/// 1, 2 or 5 times a power of ten, not below `value`.
double round_step(double value) {
    const double power = std::pow(10.0, std::floor(std::log10(value)));
    for (const double digit : {1.0, 2.0, 5.0, 10.0}) {
        if (digit * power >= value * (1 - 1e-9)) return digit * power;
    }
    return 10 * power;
}

}  // namespace

Axis::Axis(Scale scale, double low, double high, double from, double to, size_t n_ticks)
    : scale_(scale), low_(low), high_(high), from_(from), to_(to) {
    n_ticks = std::max<size_t>(n_ticks, 2);
    if (!std::isfinite(low_) || !std::isfinite(high_) || high_ < low_) low_ = scale == Scale::kLog ? 0.1 : 0, high_ = 1;
    if (scale == Scale::kLinear) {
        if (!(high_ > low_)) high_ = low_ + (low_ == 0 ? 1 : std::abs(low_));
        const double step = round_step((high_ - low_) / static_cast<double>(n_ticks));
        low_ = std::floor(low_ / step + 1e-9) * step;
        high_ = std::ceil(high_ / step - 1e-9) * step;
        const auto n = static_cast<size_t>(std::lround((high_ - low_) / step));
        for (size_t i = 0; i <= n; ++i) {
            const double tick = low_ + static_cast<double>(i) * step;
            ticks_.push_back(std::abs(tick) < step * 1e-9 ? 0 : tick);
        }
        return;
    }
    low_ = std::max(low_, 1e-12);
    high_ = std::max(high_, low_);
    // To the next of 1, 2, 5; all of them are ticks while they are few, then the powers of ten alone.
    const auto down = [](double v) {
        const double power = std::pow(10.0, std::floor(std::log10(v) + 1e-12));
        return v >= 5 * power * (1 - 1e-12) ? 5 * power : v >= 2 * power * (1 - 1e-12) ? 2 * power : power;
    };
    low_ = down(low_);
    high_ = round_step(high_);
    if (!(high_ > low_ * 1.0001)) high_ = round_step(low_ * 1.5);
    const bool all = 3 * std::log10(high_ / low_) <= 2.0 * static_cast<double>(n_ticks);
    const auto decades = static_cast<size_t>(std::ceil(std::log10(high_ / low_)));
    const int stride = static_cast<int>(std::max<size_t>(1, (decades + n_ticks - 1) / n_ticks));
    for (int decade = static_cast<int>(std::floor(std::log10(low_) + 1e-9)); std::pow(10.0, decade) <= high_ * 1.0001;
         decade += all ? 1 : stride) {
        for (const double digit : {1.0, 2.0, 5.0}) {
            const double tick = digit * std::pow(10.0, decade);
            if (tick < low_ * 0.9999 || tick > high_ * 1.0001 || (!all && digit > 1)) continue;
            ticks_.push_back(tick);
        }
    }
}

Axis::Axis(Scale scale, std::vector<double> ticks, double from, double to)
    : scale_(scale), low_(ticks.front()), high_(ticks.back()), from_(from), to_(to), ticks_(std::move(ticks)) {}

double Axis::at(double value) const noexcept {
    double share = 0;
    if (scale_ == Scale::kLinear) {
        share = (value - low_) / (high_ - low_);
    } else {
        share = value > low_ ? std::log(value / low_) / std::log(high_ / low_) : 0;
    }
    return from_ + std::clamp(std::isfinite(share) ? share : 0.0, 0.0, 1.0) * (to_ - from_);
}

std::string tick_text(double value) {
    const double size = std::abs(value);
    if (size >= 1024 && std::fmod(size, 1024) == 0 && size < 1024.0 * 1024 * 1024)
        return fmt::format("{:g}k", value / 1024);
    if (size != 0 && (size < 1e-4 || size >= 1e6)) return fmt::format("{:.0e}", value);
    return fmt::format("{:.6g}", value);
}

}  // namespace kvaq
