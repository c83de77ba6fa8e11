#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kvaq/plan/budget.h"
#include "kvaq/plan/budget_text.h"
#include "kvaq/plan/plan.h"

namespace kvaq {

/// One way to store one slot: what it costs and what it hurts (any unit, the same for all slots; see kvaq/plan/damage.h).
struct Choice {
    size_t cost = 0;  ///< bytes
    double damage = 0;
};

/// Picks one choice for every slot:
///   minimise sum damage   subject to   sum cost <= budget        (multiple-choice knapsack)
/// choices[slot] is not empty. Result: an index for every slot, or nothing if even the cheapest choices do not fit.
/// Exact (dynamic programme over the common divisor of all cost differences) while slots x cost steps stay under about
/// 5e7; beyond that the prefix of the convex hulls' segments in the order of damage saved per byte (the Lagrangian
/// optimum) and an exact programme over the bytes left, whose loss is less than one segment's. Either way the damage never
/// grows with the budget, and a choice that costs more without hurting less is never taken.
[[nodiscard]] std::vector<size_t> allocate(const std::vector<std::vector<Choice>>& choices, size_t budget);

/// A KV head's side and the codecs it may get.
struct Slot {
    size_t layer = 0;  ///< index into ModelShape::layers
    size_t head = 0;   ///< KV head
    Side side = Side::kKey;
    std::vector<CodecSpec> codecs;
    std::vector<double> damage;  ///< of each codec
};

struct SolveOptions {
    size_t n_tokens = 0;   ///< context at which bits and bytes are counted; a budget that names its own wins; 0: n_ctx_train
    int32_t window = 32;   ///< residual window of the plan
    int32_t sinks = 4;     ///< sink tokens of the plan
    bool keep_sliding = true;
};

struct Solution {
    Plan plan;            ///< name, window, sinks, layers are set; provenance is the caller's
    double damage = 0;    ///< sum over the slots
    size_t n_tokens = 0;  ///< the context that was counted at
    size_t bytes = 0;     ///< spent of the budget: cache_bytes(plan, n_tokens).total, or per 64 tokens for a per-token budget
    size_t floor = 0;     ///< the same of the cheapest plan
};

/// The plan of least damage within a budget, by exact bytes (sealed tiles, f16 window and open pages, sinks, padding):
///   bits: cache_bytes(plan, n).effective_bits <= amount;  bytes: cache_bytes(plan, n).total <= amount;
///   bytes per token: sealed tiles of all layers / tile_tokens <= amount.
/// slots must name every (layer, head, side) once, with at least one codec. Throws Error kBudgetTooSmall with the floor and
/// the smallest plan, kInvalidArgument when no context is known.
[[nodiscard]] Solution solve_plan(const ModelShape& shape, const std::vector<Slot>& slots, const Budget& budget,
                                  const SolveOptions& options = {});

}  // namespace kvaq
