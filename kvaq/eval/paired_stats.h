#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "kvaq/eval/divergence.h"

namespace kvaq {

/// One observed number. Observations of one item (a text, a question) are not independent of each other; items are.
struct Sample {
    size_t item = 0;
    double weight = 1;  ///< tokens it stands for
    double value = 0;
};

/// Mean over samples with the cluster-robust standard error over items: with S_j = sum of w x and n_j = sum of w of item j, N = sum of n_j,
///   m = sum_j S_j / N      error^2 = J / (J - 1) * sum_j (S_j - m n_j)^2 / N^2
/// which is s / sqrt(J) when every item has one sample. With one item: the same over its samples; with one sample: 0. At least one sample.
[[nodiscard]] Estimate clustered_mean(std::span<const Sample> samples);

/// How one row differs from the reference on the same items.
struct PairedDifference {
    Estimate difference;  ///< row - reference: clustered_mean of the samples' differences
    double p = 1;         ///< two-sided
    std::string test;     ///< "McNemar" or "sign flip"
    size_t gained = 0;    ///< samples that are larger (of shares: right here, wrong in the reference)
    size_t lost = 0;
};

/// Exact two-sided McNemar test of b and c discordant pairs: min(1, 2 P(X <= min(b, c))), X binomial(b + c, 1/2). 1 without any.
[[nodiscard]] double mcnemar_p(size_t b, size_t c);

/// Two-sided p of the hypothesis that an item's difference is as likely negative as positive: the share of sign patterns of the items' sums whose |total|
/// is at least the one
/// found. All 2^J patterns up to 14 items, else 20,000 random ones with the found one (fixed seed).
[[nodiscard]] double sign_flip_p(std::span<const double> item_sums);

/// row and reference hold the same items and weights in the same order. McNemar's test when every value is 0 or 1 and every item has one sample, else the
/// sign-flip
/// test over items (over samples, if there is one item only).
[[nodiscard]] PairedDifference paired_difference(std::span<const Sample> row, std::span<const Sample> reference);

}  // namespace kvaq
