#pragma once

#include <cstddef>
#include <vector>

namespace kvaq {

/// One way to store a slot (one layer, side and KV head): its bytes per tile and the damage predicted for it.
struct Choice {
    size_t bytes = 0;
    double damage = 0;  ///< nats per token; finite
};

/// Picks one choice per slot so that the sum of damages is least while the sum of bytes is at most `budget` (the
/// multiple-choice knapsack). Exact, by a dynamic programme over the common divisor of all byte differences, while
/// slots x byte steps stay under 2e7. Beyond that: steps along the slots' lower convex hulls in the order of damage saved
/// per byte (the Lagrangian optimum, H. Everett 1963), and the programme for the bytes left; within one hull step of the
/// exact optimum. Never over the budget; more budget never does more damage; no byte is paid that saves nothing.
///   slots[i]   choices of slot i, any order, 1 to 255
/// Returns the index of the choice of every slot; empty if even the smallest choices do not fit.
[[nodiscard]] std::vector<size_t> solve_budget(const std::vector<std::vector<Choice>>& slots, size_t budget);

/// Sum of the smallest choices: the least budget that has a solution.
[[nodiscard]] size_t smallest_bytes(const std::vector<std::vector<Choice>>& slots);

}  // namespace kvaq
