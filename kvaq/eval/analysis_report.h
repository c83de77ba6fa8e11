#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kvaq/llama/weight_norms.h"
#include "kvaq/stats/cache_analysis.h"

namespace kvaq {

/// What `kvaq analyze` found: weights always unless they cannot be read, the cache only with statistics.
struct ModelAnalysis {
    std::string model;  ///< file
    std::string name;
    std::string architecture;
    std::string fingerprint;
    std::string source;  ///< of the statistics: a text or a stats file; "" = none
    bool qk_norm = false;
    std::optional<WeightNorms> weights;
    std::string weights_missing;  ///< why there are none
    std::optional<CacheAnalysis> cache;
};

/// How one side compares with the other over the layers.
struct Comparison {
    double ratio = 1;              ///< geometric mean over layers of |K| / |V|, per element: norm / sqrt(elements)
    size_t n = 0;                  ///< layers
    std::vector<int32_t> smaller;  ///< layers where |K| <= |V|
};
[[nodiscard]] Comparison compare_weights(const WeightNorms& norms, NormScore score);
[[nodiscard]] Comparison compare_cache(const CacheAnalysis& cache, NormScore score);

/// The bound of checklist 18 for W_K or W_V quantized to `bits` as Theorem 3 bounds it, relative to |h_0|, as a power
/// of ten.
[[nodiscard]] double propagation_exponent(const WeightNorms& norms, Side side, int bits);

/// What the model looks like, one sentence each: is K larger than V, by how much, where not; do weight norms mean
/// anything here; Theorem 1, the balance rule, rotation, groups, the bounds.
[[nodiscard]] std::vector<std::string> describe(const ModelAnalysis& analysis);
/// Tables per layer and of the group study.
[[nodiscard]] std::string analysis_tables(const ModelAnalysis& analysis);
/// Everything, per layer and KV head; schema in docs/formats.md.
[[nodiscard]] std::string analysis_json(const ModelAnalysis& analysis, const std::string& command);

}  // namespace kvaq
