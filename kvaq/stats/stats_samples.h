#pragma once

// For tests: statistics of heads that were never measured.

#include <cmath>
#include <random>
#include <vector>

#include "kvaq/stats/model_stats.h"

namespace kvaq {

inline constexpr size_t kSampleTiles = 6;

/// Correlated keys and values with a mean and tokens of unequal size; queries that look at some directions more than at others.
inline HeadStats correlated_head(size_t dim, unsigned seed, bool mixed = true) {
    constexpr double kTokens = kSampleTiles * 64;
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    std::vector<double> mix(dim * dim);
    for (double& x : mix) x = normal(random) / std::sqrt(static_cast<double>(dim));
    if (!mixed) {
        for (size_t i = 0; i < dim * dim; ++i) mix[i] = i / dim == i % dim ? 1 : 0;
    }
    HeadStats head;
    head.key_mean.assign(dim, 0);
    head.value_mean.assign(dim, 0);
    head.key_second.assign(dim * dim, 0);
    head.value_second.assign(dim * dim, 0);
    head.query_second.assign(dim * dim, 0);
    head.value_metric.assign(dim * dim, 0);
    for (size_t i = 0; i < dim; ++i) head.value_metric[i * dim + i] = 1;
    const auto draw = [&](double size, double mean) {
        std::vector<double> z(dim), x(dim, mean);
        for (size_t i = 0; i < dim; ++i)
            z[i] = size * normal(random) * std::exp(-4.0 * static_cast<double>(i) / static_cast<double>(dim));
        for (size_t i = 0; i < dim; ++i) {
            for (size_t j = 0; j < dim; ++j) x[j] += z[i] * mix[i * dim + j];
        }
        return x;
    };
    const auto add = [&](const std::vector<double>& x, std::vector<double>& second, std::vector<double>* mean,
                         std::vector<float16>* rows) {
        for (size_t i = 0; i < dim; ++i) {
            if (mean != nullptr) (*mean)[i] += x[i] / kTokens;
            if (rows != nullptr) rows->push_back(static_cast<float16>(x[i]));
            for (size_t j = 0; j < dim; ++j) second[i * dim + j] += x[i] * x[j] / kTokens;
        }
    };
    for (size_t t = 0; t < kSampleTiles * 64; ++t) {
        const double size = t % 50 == 49 ? 3.0 : std::exp(0.4 * normal(random));
        add(draw(4 * size, 1.0), head.key_second, &head.key_mean, &head.key_tiles);
        add(draw(size, -0.5), head.value_second, &head.value_mean, &head.value_tiles);
        add(draw(1, 0), head.query_second, nullptr, nullptr);
    }
    head.key_metric = head.query_second;
    return head;
}

/// The same with channels that vary alone, the first ones most.
inline HeadStats uncorrelated_head(size_t dim, unsigned seed) { return correlated_head(dim, seed, false); }

}  // namespace kvaq
