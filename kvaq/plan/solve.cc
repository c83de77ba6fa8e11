#include "kvaq/plan/solve.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

constexpr size_t kMaxCells = 20'000'000;  // bytes of the programme's table of decisions

/// A choice on its slot's staircase: costs more and hurts less than the one before. Bytes beyond the cheapest.
struct Step {
    size_t choice = 0;
    size_t extra = 0;
    double damage = 0;
};
using Stairs = std::vector<Step>;

Stairs stairs_of(const std::vector<Choice>& choices) {
    KVAQ_CHECK(!choices.empty() && choices.size() <= 255);
    std::vector<size_t> order(choices.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        return std::pair(choices[a].bytes, choices[a].damage) < std::pair(choices[b].bytes, choices[b].damage);
    });
    Stairs stairs;
    for (const size_t i : order) {
        KVAQ_CHECK(std::isfinite(choices[i].damage));
        if (!stairs.empty() && choices[i].damage >= stairs.back().damage) continue;
        stairs.push_back(
            {.choice = i, .extra = choices[i].bytes - choices[order[0]].bytes, .damage = choices[i].damage});
    }
    return stairs;
}

/// The exact programme: for every slot a step at or above from[slot], at most `room` bytes beyond those of `from`, bytes
/// counted in `unit`s, rounded up.
std::vector<size_t> programme(const std::vector<Stairs>& slots, const std::vector<size_t>& from, size_t room,
                              size_t unit) {
    const auto cost = [&](size_t s, size_t step) {
        return (slots[s][step].extra - slots[s][from[s]].extra + unit - 1) / unit;
    };
    size_t useful = 0;
    for (size_t s = 0; s < slots.size(); ++s) useful += cost(s, slots[s].size() - 1);
    const size_t n = std::min(room / unit, useful) + 1;
    std::vector<double> best(n, 0.0);
    std::vector<double> next(n);
    std::vector<uint8_t> taken(slots.size() * n);
    for (size_t s = 0; s < slots.size(); ++s) {
        uint8_t* decision = taken.data() + s * n;
        std::fill(next.begin(), next.end(), std::numeric_limits<double>::infinity());
        for (size_t step = from[s]; step < slots[s].size(); ++step) {
            const size_t bytes = cost(s, step);
            const double damage = slots[s][step].damage;
            for (size_t w = bytes; w < n; ++w) {
                const double total = best[w - bytes] + damage;
                if (total < next[w]) {
                    next[w] = total;
                    decision[w] = static_cast<uint8_t>(step);
                }
            }
        }
        std::swap(best, next);
    }
    // The least spending among the best.
    size_t w = static_cast<size_t>(std::min_element(best.begin(), best.end()) - best.begin());
    std::vector<size_t> steps(slots.size());
    for (size_t s = slots.size(); s-- > 0;) {
        steps[s] = taken[s * n + w];
        w -= cost(s, steps[s]);
    }
    return steps;
}

/// The Lagrangian optimum: segments of the lower convex hulls in the order of damage saved per byte, until one does not fit;
/// `wanted` are its bytes, or the last one's.
std::vector<size_t> hull_prefix(const std::vector<Stairs>& slots, size_t room, size_t& left, size_t& wanted) {
    struct Segment {
        double slope;
        size_t slot, step, bytes;
    };
    std::vector<Segment> segments;
    for (size_t s = 0; s < slots.size(); ++s) {
        const Stairs& stairs = slots[s];
        for (size_t at = 0; at + 1 < stairs.size();) {
            Segment best{.slope = -1, .slot = s, .step = 0, .bytes = 0};
            for (size_t to = at + 1; to < stairs.size(); ++to) {
                const size_t bytes = stairs[to].extra - stairs[at].extra;
                const double slope = (stairs[at].damage - stairs[to].damage) / static_cast<double>(bytes);
                if (slope >= best.slope) best = {.slope = slope, .slot = s, .step = to, .bytes = bytes};
            }
            segments.push_back(best);
            at = best.step;
        }
    }
    std::stable_sort(segments.begin(), segments.end(),
                     [](const Segment& a, const Segment& b) { return a.slope > b.slope; });
    std::vector<size_t> steps(slots.size(), 0);
    left = room;
    wanted = 0;
    for (const Segment& segment : segments) {
        // Going on past it would do more damage for some larger budgets; the programme spends what is left.
        wanted = segment.bytes;
        if (segment.bytes > left) break;
        left -= segment.bytes;
        steps[segment.slot] = segment.step;
    }
    return steps;
}

}  // namespace

size_t smallest_bytes(const std::vector<std::vector<Choice>>& slots) {
    size_t bytes = 0;
    for (const std::vector<Choice>& choices : slots) {
        bytes += std::min_element(choices.begin(), choices.end(), [](const Choice& a, const Choice& b) {
                     return a.bytes < b.bytes;
                 })->bytes;
    }
    return bytes;
}

std::vector<size_t> solve_budget(const std::vector<std::vector<Choice>>& slots, size_t budget) {
    const size_t floor = smallest_bytes(slots);
    if (floor > budget) return {};
    std::vector<Stairs> all;
    size_t unit = 0;    // common divisor of all differences
    size_t useful = 0;  // bytes beyond which nothing gets better
    for (const std::vector<Choice>& choices : slots) {
        all.push_back(stairs_of(choices));
        for (const Step& step : all.back()) unit = std::gcd(unit, step.extra);
        useful += all.back().back().extra;
    }
    std::vector<size_t> steps(slots.size(), 0);
    if (unit > 0) {
        const size_t room = std::min(budget - floor, useful);
        // The way is chosen by the problem, not by the budget, so that results compare over budgets.
        if (slots.size() * (useful / unit + 1) <= kMaxCells) {
            steps = programme(all, steps, room, unit);
        } else {
            size_t left = 0;
            size_t wanted = 0;
            steps = hull_prefix(all, room, left, wanted);
            // By the segment that does not fit, not by what is left: more room for the same segment is then never worse.
            const size_t coarse = (wanted * slots.size() + kMaxCells - 1) / kMaxCells;
            steps = programme(all, steps, left, std::max(unit, coarse));
        }
    }
    std::vector<size_t> picked(slots.size());
    for (size_t s = 0; s < slots.size(); ++s) picked[s] = all[s][steps[s]].choice;
    return picked;
}

}  // namespace kvaq
