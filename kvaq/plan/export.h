#pragma once

#include <string>
#include <vector>

#include "kvaq/plan/plan.h"

namespace kvaq {

/// A plan in another program's words.
struct ExportedPlan {
    std::string text;               ///< flags on one line, JSON or YAML; ends with a newline
    std::vector<std::string> lost;  ///< what the other program cannot express, one sentence each; empty = nothing
};

/// The formats, as `kvaq export --to` names them.
///   llama.cpp  --cache-type-k / -v: the types nearest in bits per element, scales counted, to the plan's K and V
///   vllm       --kv-cache-dtype nearest to the plan's code bits, --kv-cache-dtype-skip-layers for its f16 layers
///   sglang     --kv-cache-dtype; one for all layers
///   kvtuner    layer (and head) -> nbits_key, nbits_value; widths rounded up to 2, 4, 8
///   kvq        {"nbits_k", "nbits_v", "g_k", "g_v"} per layer, the authors' allocation
///   json       everything
[[nodiscard]] const std::vector<std::string>& export_formats();

/// Throws Error kInvalidArgument for another format, with the list.
[[nodiscard]] ExportedPlan export_plan(const Plan& plan, const std::string& format);

}  // namespace kvaq
