#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvaq {

/// log p of a softmax over logits: out[i] = x[i] - max - log sum exp(x - max), the sum in double. Returns the arg max.
size_t log_softmax(std::span<const float> logits, std::span<float> out) noexcept;

/// Indices of the k largest values, ascending by index; of equal values the first ones. k <= values.size().
[[nodiscard]] std::vector<size_t> top_indices(std::span<const float> values, size_t k);

/// KL(p || q) = sum_i p_i (log p_i - log q_i) in nats over a whole vocabulary, given the logarithms; the sum in double. Never
/// negative but for rounding.
[[nodiscard]] double kl_divergence(std::span<const float> log_p, std::span<const float> log_q) noexcept;

/// What one row of an evaluation says of one scored token.
struct TokenScore {
    double nll = 0;  ///< -log q(next token), nats
    double kl = 0;   ///< KL(reference || row), nats
    bool same_top = false;
};

struct Estimate {
    double value = 0;
    double error = 0;  ///< standard error
};

struct ScoreSummary {
    size_t n_tokens = 0;
    Estimate perplexity;  ///< exp(mean nll), error by the delta method over tokens
    Estimate mean_kl;     ///< error: bootstrap over chunks (1000 resamples) when there are at least 2, else over tokens
    double median_kl = 0;
    double kl_99 = 0;  ///< 99th percentile
    double max_kl = 0;
    Estimate same_top;  ///< share of tokens with the reference's top token, binomial error
};

/// chunks[i] holds the scores of chunk i. Deterministic (the bootstrap's seed is fixed). At least one token.
[[nodiscard]] ScoreSummary summarize(std::span<const std::vector<TokenScore>> chunks);

/// Quantile of sorted values by linear interpolation, q in [0, 1].
[[nodiscard]] double quantile(std::span<const double> sorted, double q) noexcept;

/// Standard error of the mean of `values` weighted by `weights`, by resampling entries with replacement.
[[nodiscard]] double bootstrap_error(std::span<const double> values, std::span<const double> weights,
                                     uint32_t seed = 1);

}  // namespace kvaq
