#include "kvaq/plan/greedy.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

constexpr double kTolerance = 1e-6;  // the authors' TOL

/// K0, V0, K1, V1, ...
std::vector<double> interleave(const LayerNorms& norms) {
    if (norms.key.empty() || norms.key.size() != norms.value.size()) {
        throw Error(ErrorCode::kInvalidArgument, "norms per layer", "as many for K as for V, at least one",
                    fmt::format("{} and {}", norms.key.size(), norms.value.size()));
    }
    std::vector<double> out;
    out.reserve(2 * norms.key.size());
    for (size_t layer = 0; layer < norms.key.size(); ++layer) {
        for (const double norm : {norms.key[layer], norms.value[layer]}) {
            if (!std::isfinite(norm) || norm < 0) {
                throw Error(ErrorCode::kInvalidArgument, fmt::format("norm of layer {}", layer),
                            "a number of 0 or more", fmt::format("{}", norm));
            }
            out.push_back(norm);
        }
    }
    return out;
}

template <typename T>
std::vector<T> sorted_set(std::span<const T> values) {
    std::vector<T> out(values.begin(), values.end());
    std::sort(out.begin(), out.end());
    out.erase(std::unique(out.begin(), out.end()), out.end());
    return out;
}

template <typename T>
void split_sides(const std::vector<T>& all, std::vector<T>& key, std::vector<T>& value) {
    for (size_t i = 0; i < all.size(); ++i) (i % 2 == 0 ? key : value).push_back(all[i]);
}

double inverse(size_t group) { return 1.0 / static_cast<double>(group); }

}  // namespace

BitAllocation allocate_bits_greedy(const LayerNorms& norms, double budget, std::span<const double> bits) {
    const std::vector<double> sensitivities = interleave(norms);
    const std::vector<double> widths = sorted_set(bits);
    if (widths.empty() || !std::isfinite(widths.front() + widths.back()) || widths.front() <= 0 || widths.back() > 16) {
        throw Error(ErrorCode::kInvalidArgument, "bit widths to choose from", "one or more above 0, at most 16",
                    "others");
    }
    if (!(budget >= widths.front()) || budget > 8) {
        throw Error(ErrorCode::kInvalidArgument, "bit budget per matrix",
                    fmt::format("{} (the smallest width) to 8", widths.front()), fmt::format("{}", budget));
    }
    const size_t n = sensitivities.size();
    std::vector<double> squared(n);
    for (size_t i = 0; i < n; ++i) squared[i] = std::pow(sensitivities[i], 2);
    const double total = 2.0 * budget * static_cast<double>(norms.key.size());

    std::vector<size_t> chosen(n, 0);  // index of the width
    double used = static_cast<double>(n) * widths.front();
    while (used + kTolerance < total) {
        double best_gain = -1.0;
        std::optional<size_t> best;
        for (size_t i = 0; i < n; ++i) {
            if (chosen[i] + 1 == widths.size()) continue;
            const double now = widths[chosen[i]];
            const double next = widths[chosen[i] + 1];
            const double delta = next - now;
            if (used + delta - total > kTolerance) continue;
            const double gain = (squared[i] * std::pow(2.0, -2 * now) - squared[i] * std::pow(2.0, -2 * next)) / delta;
            if (gain > best_gain + kTolerance) {
                best_gain = gain;
                best = i;
            }
        }
        if (!best) break;
        used += widths[chosen[*best] + 1] - widths[chosen[*best]];
        ++chosen[*best];
    }
    std::vector<double> all(n);
    for (size_t i = 0; i < n; ++i) all[i] = widths[chosen[i]];
    BitAllocation out;
    split_sides(all, out.key, out.value);
    for (const double b : all) out.used += b;
    out.total = total;
    return out;
}

GroupAllocation allocate_groups_greedy(const LayerNorms& norms, double budget, std::span<const size_t> groups) {
    const std::vector<double> cost = interleave(norms);
    const std::vector<size_t> sizes = sorted_set(groups);
    if (sizes.empty() || sizes.front() == 0) {
        throw Error(ErrorCode::kInvalidArgument, "group sizes to choose from", "one or more above 0", "others");
    }
    if (!std::isfinite(budget) || budget <= 0) {
        throw Error(ErrorCode::kInvalidArgument, "group budget", "a mean group size above 0",
                    fmt::format("{}", budget));
    }
    const size_t n = cost.size();
    for (size_t i = 0; i < n; ++i) {
        if (cost[i] > 0) continue;
        throw Error(ErrorCode::kInvalidArgument, fmt::format("norm of {} of layer {}", i % 2 == 0 ? "K" : "V", i / 2),
                    "more than 0 (a group size goes with 1 / sqrt(norm))", "0");
    }
    const double target = static_cast<double>(n) / budget;
    double roots = 0;
    for (const double c : cost) roots += std::sqrt(c);
    const double kappa = roots / target;

    std::vector<size_t> chosen(n, 0);  // index of the size
    double sum = 0;
    for (size_t i = 0; i < n; ++i) {
        const double optimum = kappa / std::sqrt(cost[i]);
        const auto distance = [&](size_t k) { return std::fabs(static_cast<double>(sizes[k]) - optimum); };
        for (size_t k = 1; k < sizes.size(); ++k) {
            if (distance(k) < distance(chosen[i])) chosen[i] = k;
        }
        sum += inverse(sizes[chosen[i]]);
    }
    while (std::fabs(sum - target) > kTolerance) {
        const bool grow = sum > target;  // fewer groups
        double best_rate = 0;
        std::optional<size_t> best;
        for (size_t i = 0; i < n; ++i) {
            if (grow ? chosen[i] + 1 == sizes.size() : chosen[i] == 0) continue;
            const size_t now = sizes[chosen[i]];
            const size_t next = sizes[grow ? chosen[i] + 1 : chosen[i] - 1];
            const double delta = inverse(next) - inverse(now);
            if (grow ? sum + delta + kTolerance < target : sum + delta - kTolerance > target) continue;
            const double step = static_cast<double>(grow ? next - now : now - next);
            const double rate = cost[i] * step / (grow ? -delta : delta);
            if (!best || (grow ? rate < best_rate : rate > best_rate)) {
                best_rate = rate;
                best = i;
            }
        }
        if (!best) break;
        const size_t next = grow ? chosen[*best] + 1 : chosen[*best] - 1;
        sum += inverse(sizes[next]) - inverse(sizes[chosen[*best]]);
        chosen[*best] = next;
    }
    std::vector<size_t> all(n);
    for (size_t i = 0; i < n; ++i) all[i] = sizes[chosen[i]];
    GroupAllocation out;
    split_sides(all, out.key, out.value);
    out.sum = sum;
    out.target = target;
    return out;
}

std::string leftover_warning(const BitAllocation& allocation) {
    if (std::fabs(allocation.used - allocation.total) <= kTolerance) return "";
    return fmt::format("the greedy allocation uses {:.2f} of {:.2f} bits; no step fits into the rest, which is lost",
                       allocation.used, allocation.total);
}

std::string leftover_warning(const GroupAllocation& allocation) {
    if (std::fabs(allocation.sum - allocation.target) <= kTolerance) return "";
    return fmt::format(
        "the greedy group sizes give a sum of 1/g of {:.6f}, not {:.6f}: {:.1f} % {} scales than the budget says",
        allocation.sum, allocation.target, 100 * std::fabs(allocation.sum / allocation.target - 1),
        allocation.sum > allocation.target ? "more" : "fewer");
}

}  // namespace kvaq
