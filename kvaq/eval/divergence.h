#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvaq {

/// What turns logits into the logarithm of their softmax: log q_i = (x_i - top) - log sum_j exp(x_j - top).
struct SoftmaxNorm {
    float top = 0;      ///< the largest logit
    float log_sum = 0;  ///< log sum_j exp(x_j - top); exp to 3e-7 of itself, the sum in double
    size_t arg_max = 0;
    [[nodiscard]] float log_of(float logit) const noexcept { return logit - top - log_sum; }
};
/// A logit that is NaN makes log_sum NaN.
[[nodiscard]] SoftmaxNorm softmax_norm(std::span<const float> logits) noexcept;

/// log p of a softmax over logits: out[i] = softmax_norm(logits).log_of(logits[i]). Returns the arg max.
size_t log_softmax(std::span<const float> logits, std::span<float> out) noexcept;

/// Indices of the k largest values, ascending by index; of equal values the first ones. k <= values.size().
[[nodiscard]] std::vector<size_t> top_indices(std::span<const float> values, size_t k);

/// KL(p || q) = sum_i p_i (log p_i - log q_i) in nats over a whole vocabulary, given the logarithms; the sum in double. Never
/// negative but for rounding.
[[nodiscard]] double kl_divergence(std::span<const float> log_p, std::span<const float> log_q) noexcept;
/// The same with q as logits and their norm: needs no room for log q.
[[nodiscard]] double kl_divergence(std::span<const float> log_p, std::span<const float> logits,
                                   const SoftmaxNorm& norm) noexcept;

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

/// Standard error of the mean of `values` weighted by `weights`, by resampling entries with replacement; times sqrt(n / (n - 1)), since resamples of n
/// entries scatter by their variance over n, not n - 1 (Efron and Tibshirani 1993, section 5.3). At least two.
[[nodiscard]] double bootstrap_error(std::span<const double> values, std::span<const double> weights,
                                     uint32_t seed = 1);

}  // namespace kvaq
