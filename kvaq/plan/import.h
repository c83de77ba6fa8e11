#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kvaq/base/model_shape.h"
#include "kvaq/plan/greedy.h"
#include "kvaq/plan/plan.h"

namespace kvaq {

/// Which norm a sensitivity is, numbered as the authors do (their `score`).
enum class NormScore { kFrobenius = 0, kSpectral = 1 };

/// What an import needs beside the file.
struct ImportContext {
    std::string what;  ///< the file or flag, for messages and the plan's name
    ModelShape shape;
    Preset base;              ///< everything the file leaves open: bits, group, axis, rule, basis, window, sinks
    double budget = 0;        ///< bits per matrix for a file of norms; 0 = not given
    double group_budget = 0;  ///< mean group size for a file of norms; 0 = groups from the base
    bool qk_norm = false;  ///< the model normalises keys after W_K, so that the norm of W_K says nothing of the cache
    std::function<LayerNorms(NormScore)> weight_norms;  ///< called when the file names a budget; empty = none to be had
};

struct ImportedPlan {
    Plan plan;
    std::string format;                 ///< what the file was, in words
    std::vector<std::string> warnings;  ///< what was changed, and what the paper's numbers warn of; one sentence each
};

/// Turns a foreign plan into a plan of the given model. Recognised by its content:
///   norms         {"w_k": [..], "w_v": [..]}: the authors' greedy allocator at context.budget (and group_budget)
///   allocation    {"nbits_k": .., "nbits_v": ..} and / or {"g_k": .., "g_v": ..}: one value per layer, or one for all
///   KVQConfig     the authors' --kvq text, as JSON or key=value,...: nbits | budget [bit_range, score], group_size |
///   group_budget
///                 [group_range], axis, residual_length; or the older nbits_k, nbits_v, axis_key, axis_value,
///                 q_group_size, backend
///   KVTuner YAML  layer: {nbits_key, nbits_value} in block style, per layer or per layer and KV head
/// The rule of a KVQConfig is HQQ's (its only backend), of the older form Quanto's or what `backend` says; of others
/// the base's. Axis: HQQ 1 and Quanto 0 are groups along the channels (kPerToken); the others become kPerChannel, with
/// a warning for HQQ 0, whose groups run through tokens and heads alike. residual_length becomes the window (the larger
/// of K and V). Throws Error: kInvalidArgument (unknown key or value, missing budget or norms; by name), kMismatch
/// (another number of layers or heads).
[[nodiscard]] ImportedPlan import_plan(const std::string& text, const ImportContext& context);

/// Reads {"w_k", "w_v"} alone. Throws Error kInvalidArgument.
[[nodiscard]] LayerNorms parse_norms(const std::string& text, const std::string& what);
/// Writes it, in the authors' layout (indented by two).
[[nodiscard]] std::string norms_to_json(const LayerNorms& norms);

/// A plan from the authors' allocators: bits at `budget` of kEvaluationBits, groups {32, 64, 128} at group_budget if
/// above 0. Their leftovers are added to `warnings`.
[[nodiscard]] Plan greedy_plan(const LayerNorms& norms, const ImportContext& context,
                               std::vector<std::string>& warnings);

/// What the paper's own tables warn of (checklist 3E): values of 1 bit, layers with fewer bits for K than for V.
[[nodiscard]] std::vector<std::string> plan_warnings(const Plan& plan);

/// "0, 3-7, 9": for messages about many layers.
[[nodiscard]] std::string layer_list(const std::vector<int32_t>& layers);

}  // namespace kvaq
