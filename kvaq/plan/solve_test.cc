#include "kvaq/plan/solve.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>

namespace kvaq {
namespace {

using Slots = std::vector<std::vector<Choice>>;

struct Sum {
    size_t bytes = 0;
    double damage = 0;
};
Sum sum_of(const Slots& slots, const std::vector<size_t>& picked) {
    Sum sum;
    for (size_t s = 0; s < slots.size(); ++s) {
        sum.bytes += slots[s][picked[s]].bytes;
        sum.damage += slots[s][picked[s]].damage;
    }
    return sum;
}

double brute_force(const Slots& slots, size_t budget) {
    double best = std::numeric_limits<double>::infinity();
    const std::function<void(size_t, size_t, double)> go = [&](size_t slot, size_t bytes, double damage) {
        if (bytes > budget) return;
        if (slot == slots.size()) {
            best = std::min(best, damage);
            return;
        }
        for (const Choice& choice : slots[slot]) go(slot + 1, bytes + choice.bytes, damage + choice.damage);
    };
    go(0, 0, 0);
    return best;
}

/// Noise falls about threefold per bit, with luck: not convex, sometimes not even falling.
Slots random_slots(unsigned seed, size_t n_slots, size_t n_choices, size_t unit) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<double> uniform(0.3, 1.7);
    Slots slots(n_slots);
    for (auto& slot : slots) {
        const double size = std::exp(3 * uniform(random));
        for (size_t i = 0; i < n_choices; ++i) {
            slot.push_back({.bytes = unit * (10 + 5 * i + random() % 4),
                            .damage = size * std::pow(0.3, static_cast<double>(i)) * uniform(random)});
        }
    }
    return slots;
}

/// Unlike sizes, so that the coarse programme after the hull would round one budget's rest away and not another's.
Slots unlike_slots() {
    return {{{.bytes = 0, .damage = 1000}, {.bytes = 30000000, .damage = 0}},
            {{.bytes = 0, .damage = 1}, {.bytes = 3333333, .damage = 0}},
            {{.bytes = 0, .damage = 1}, {.bytes = 3333333, .damage = 0}}};
}

/// Lower bound of the least damage by duality: for every lambda, sum of min (damage + lambda * bytes) - lambda * budget.
double dual_bound(const Slots& slots, size_t budget) {
    double bound = 0;
    for (double lambda = 1e-8; lambda < 10; lambda *= 1.05) {
        double value = -lambda * static_cast<double>(budget);
        for (const auto& slot : slots) {
            double best = std::numeric_limits<double>::infinity();
            for (const Choice& c : slot) best = std::min(best, c.damage + lambda * static_cast<double>(c.bytes));
            value += best;
        }
        bound = std::max(bound, value);
    }
    return bound;
}

TEST(SolveBudget, IsWithinOnePercentOfTheBruteForceOnSmallProblems) {
    for (unsigned seed = 0; seed < 30; ++seed) {
        const Slots slots = random_slots(seed, 5, 6, 64);
        for (size_t budget = 64 * 40; budget < 64 * 230; budget += 64 * 7 + 13) {
            const double wanted = brute_force(slots, budget);
            const std::vector<size_t> picked = solve_budget(slots, budget);
            if (!std::isfinite(wanted)) {
                EXPECT_TRUE(picked.empty()) << "seed " << seed;
                continue;
            }
            ASSERT_EQ(picked.size(), slots.size()) << "seed " << seed;
            EXPECT_LE(sum_of(slots, picked).bytes, budget);
            EXPECT_LE(sum_of(slots, picked).damage, 1.01 * wanted) << "seed " << seed << " budget " << budget;
        }
    }
}

TEST(SolveBudget, NeverDoesMoreDamageWithMoreBytes) {
    for (unsigned seed = 0; seed < 5; ++seed) {
        const Slots slots = random_slots(seed, 12, 6, 32);
        double last = std::numeric_limits<double>::infinity();
        for (size_t budget = smallest_bytes(slots); budget < 15000; budget += 32) {
            const Sum sum = sum_of(slots, solve_budget(slots, budget));
            EXPECT_LE(sum.bytes, budget);
            EXPECT_LE(sum.damage, last * (1 + 1e-12)) << "seed " << seed << " budget " << budget;
            last = sum.damage;
        }
    }
}

TEST(SolveBudget, OfAWholeModelIsWithinOnePercentOfTheDualBound) {
    // Unit 64 is solved exactly; unit 397 with odd bytes has no common divisor and takes the way of large models.
    for (const size_t unit : {size_t{64}, size_t{397}}) {
        Slots slots = random_slots(99, 400, 8, unit);
        size_t highest = 0;
        for (auto& slot : slots) {
            for (size_t i = 0; i < slot.size() && unit == 397; ++i) slot[i].bytes += i;
            highest += slot.back().bytes;
        }
        const size_t lowest = smallest_bytes(slots);
        if (unit == 397) {
            ASSERT_GT(400 * (highest - lowest), size_t{50'000'000});
        }
        double last = std::numeric_limits<double>::infinity();
        for (size_t budget = lowest + 5000; budget < highest; budget += (highest - lowest) / 20) {
            const Sum sum = sum_of(slots, solve_budget(slots, budget));
            EXPECT_LE(sum.bytes, budget);
            EXPECT_LE(sum.damage, dual_bound(slots, budget) * 1.01) << "unit " << unit << " budget " << budget;
            EXPECT_LE(sum.damage, last) << "unit " << unit << " budget " << budget;
            last = sum.damage;
        }
    }
}

TEST(SolveBudget, DoesNotPayForNothing) {
    const Slots slots = {{{.bytes = 10, .damage = 1}, {.bytes = 20, .damage = 1}, {.bytes = 30, .damage = 2}},
                         {{.bytes = 5, .damage = 3}, {.bytes = 5, .damage = 0}}};
    EXPECT_EQ(solve_budget(slots, 1000), (std::vector<size_t>{0, 1}));
    EXPECT_EQ(smallest_bytes(slots), 15U);
    EXPECT_TRUE(solve_budget(slots, 14).empty());
    EXPECT_EQ(solve_budget(slots, 15), (std::vector<size_t>{0, 1}));
}

TEST(Solve, AByteMoreNeverDoesMoreDamage) {
    const Slots slots = unlike_slots();
    double before = std::numeric_limits<double>::infinity();
    for (const size_t budget : {3333332U, 3333333U, 6666665U, 6666666U, 6666667U, 20000000U, 30000000U, 33333333U,
                                36666665U, 36666666U, 40000000U}) {
        const double damage = sum_of(slots, solve_budget(slots, budget)).damage;
        EXPECT_LE(damage, before) << budget;
        before = damage;
    }
    EXPECT_EQ(before, 0.0);
}

}  // namespace
}  // namespace kvaq
