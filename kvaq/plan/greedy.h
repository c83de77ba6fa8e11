#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace kvaq {

/// One sensitivity per layer and side: norms of W_K and W_V (the authors' files {"w_k", "w_v"}) or of the cache. Same
/// length.
struct LayerNorms {
    std::vector<double> key;
    std::vector<double> value;
    bool operator==(const LayerNorms&) const = default;
};

/// Bit widths of the authors' experiments.
inline constexpr double kEvaluationBits[] = {1, 1.58, 2, 4, 6, 8};
/// Their default group sizes.
inline constexpr size_t kAuthorsGroups[] = {16, 32, 64, 128, 256};

struct BitAllocation {
    std::vector<double> key;  ///< bits per layer
    std::vector<double> value;
    double used = 0;   ///< sum of all
    double total = 0;  ///< 2 * layers * budget
};

/// The authors' greedy bit allocation (checklist 31, 32), operation by operation in double, so that ties fall alike:
///   error of matrix i at b bits = norm_i^2 * 2^(-2b);  all start at min(bits);
///   each round the step to the next width with the largest (error now - error then) / (bits more) that still fits is
///   taken; a later one (order K0, V0, K1, V1, ...) replaces an earlier one only if it is better by more than 1e-6.
/// Ends when the budget is used (to 1e-6) or nothing fits; what is left over is lost (used < total).
///   budget   mean bits per matrix, at most 8;   bits   allowed widths, any order, at least one
/// Throws Error kInvalidArgument: norms empty, of unequal lengths, negative or not finite; a bad budget or width.
[[nodiscard]] BitAllocation allocate_bits_greedy(const LayerNorms& norms, double budget, std::span<const double> bits);

struct GroupAllocation {
    std::vector<size_t> key;  ///< group size per layer
    std::vector<size_t> value;
    double sum = 0;     ///< sum of 1 / g
    double target = 0;  ///< 2 * layers / budget
};

/// The authors' greedy group sizes (checklist 33): least sum of norm_i * g_i at a sum of 1/g_i of 2 * layers / budget.
/// The continuous optimum g ~ 1 / sqrt(norm) is rounded to the nearest allowed size (tie: the smaller), then single
/// steps that do not cross the target: too many groups, the step with the least error per group saved; too few, the one
/// with the most error saved per group. May miss the target (sum != target) where no step is left. Throws Error
/// kInvalidArgument: as above, and norms of 0.
[[nodiscard]] GroupAllocation allocate_groups_greedy(const LayerNorms& norms, double budget,
                                                     std::span<const size_t> groups);

/// "" when the allocation meets its budget to 1e-6, else a sentence that says by how much it misses.
[[nodiscard]] std::string leftover_warning(const BitAllocation& allocation);
[[nodiscard]] std::string leftover_warning(const GroupAllocation& allocation);

}  // namespace kvaq
