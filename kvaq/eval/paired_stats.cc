#include "kvaq/eval/paired_stats.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

struct Cluster {
    double sum = 0;
    double weight = 0;
    size_t n = 0;
};

/// By item; by sample where there is one item only.
std::vector<Cluster> clusters_of(std::span<const Sample> samples) {
    std::map<size_t, Cluster> by_item;
    std::vector<Cluster> by_sample;
    for (const Sample& sample : samples) {
        const Cluster one{.sum = sample.weight * sample.value, .weight = sample.weight, .n = 1};
        Cluster& item = by_item[sample.item];
        item.sum += one.sum;
        item.weight += one.weight;
        ++item.n;
        by_sample.push_back(one);
    }
    if (by_item.size() < 2) return by_sample;
    std::vector<Cluster> clusters;
    for (const auto& [item, cluster] : by_item) clusters.push_back(cluster);
    return clusters;
}

}  // namespace

Estimate clustered_mean(std::span<const Sample> samples) {
    KVAQ_CHECK(!samples.empty());
    const std::vector<Cluster> clusters = clusters_of(samples);
    double sum = 0;
    double weight = 0;
    for (const Cluster& cluster : clusters) {
        sum += cluster.sum;
        weight += cluster.weight;
    }
    Estimate mean{.value = sum / weight, .error = 0};
    const auto n = static_cast<double>(clusters.size());
    if (clusters.size() < 2) return mean;
    double squares = 0;
    for (const Cluster& cluster : clusters) {
        const double residual = cluster.sum - mean.value * cluster.weight;
        squares += residual * residual;
    }
    mean.error = std::sqrt(n / (n - 1) * squares) / weight;
    return mean;
}

double mcnemar_p(size_t b, size_t c) {
    const size_t n = b + c;
    if (n == 0) return 1;
    // log C(n, k) - n log 2, so that no power over- or underflows
    const double log_all = static_cast<double>(n) * std::log(2.0);
    const auto log_factorial = [](size_t k) { return std::lgamma(static_cast<double>(k) + 1); };
    double tail = 0;
    for (size_t k = 0; k <= std::min(b, c); ++k)
        tail += std::exp(log_factorial(n) - log_factorial(k) - log_factorial(n - k) - log_all);
    return std::min(1.0, 2 * tail);
}

double sign_flip_p(std::span<const double> item_sums) {
    constexpr size_t kExact = 14;
    constexpr size_t kRandom = 20000;
    double found = 0;
    double size = 0;
    for (const double x : item_sums) {
        found += x;
        size += std::fabs(x);
    }
    if (!(size > 0)) return std::isnan(size) ? std::nan("") : 1.0;
    const double threshold = std::fabs(found) - 1e-12 * size;  // equal patterns must count in spite of rounding
    const size_t n = item_sums.size();
    size_t as_large = 0;
    if (n <= kExact) {
        for (size_t pattern = 0; pattern < size_t{1} << n; ++pattern) {
            double total = 0;
            for (size_t i = 0; i < n; ++i) total += (pattern >> i & 1) != 0 ? -item_sums[i] : item_sums[i];
            as_large += std::fabs(total) >= threshold ? 1 : 0;
        }
        return static_cast<double>(as_large) / static_cast<double>(size_t{1} << n);
    }
    std::mt19937 random(1);
    for (size_t draw = 0; draw < kRandom; ++draw) {
        double total = 0;
        for (size_t i = 0; i < n; i += 32) {
            const auto signs = static_cast<uint32_t>(random());
            for (size_t j = i; j < std::min(n, i + 32); ++j)
                total += (signs >> (j - i) & 1) != 0 ? -item_sums[j] : item_sums[j];
        }
        as_large += std::fabs(total) >= threshold ? 1 : 0;
    }
    return static_cast<double>(as_large + 1) / static_cast<double>(kRandom + 1);
}

PairedDifference paired_difference(std::span<const Sample> row, std::span<const Sample> reference) {
    KVAQ_CHECK(row.size() == reference.size() && !row.empty());
    PairedDifference out;
    std::vector<Sample> differences(row.begin(), row.end());
    std::map<size_t, size_t> samples_of_item;
    bool shares = true;
    bool single = true;
    for (size_t i = 0; i < row.size(); ++i) {
        KVAQ_CHECK(row[i].item == reference[i].item && row[i].weight == reference[i].weight);
        const double x = row[i].value;
        const double y = reference[i].value;
        differences[i].value = x - y;
        out.gained += x > y ? 1 : 0;
        out.lost += x < y ? 1 : 0;
        shares = shares && (x == 0 || x == 1) && (y == 0 || y == 1) && row[i].weight == 1;
        single = ++samples_of_item[row[i].item] == 1 && single;
    }
    out.difference = clustered_mean(differences);
    if (shares && single) {
        out.test = "McNemar";
        out.p = mcnemar_p(out.gained, out.lost);
        return out;
    }
    std::vector<double> sums;
    for (const Cluster& cluster : clusters_of(differences)) sums.push_back(cluster.sum);
    out.test = "sign flip";
    out.p = sign_flip_p(sums);
    return out;
}

}  // namespace kvaq
