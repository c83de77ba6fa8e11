#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvaq/plan/plan.h"

namespace kvaq {

/// True for "norm-greedy" and "spectral", with or without ":options".
[[nodiscard]] bool is_norm_policy(const std::string& policy);

struct NormPolicyRequest {
    std::string policy;  ///< "norm-greedy:bits=3,score=S,groups=64,base=k4v4-rot"; spectral is norm-greedy with score=S
    std::string model;   ///< weight norms come from here ...
    std::string stats;   ///< ... or, if given, cache norms from here
    int32_t window = 0;
    int32_t sinks = 0;
};

/// The authors' allocator (kvaq/plan/greedy.h) on this model's norms. Appends warnings: leftovers, QK-norm, 1-bit
/// values, K below V. Throws Error: kInvalidArgument (an unknown option, by name), kMismatch (statistics of another
/// model).
[[nodiscard]] Plan norm_policy_plan(const NormPolicyRequest& request, std::vector<std::string>& warnings);

}  // namespace kvaq
