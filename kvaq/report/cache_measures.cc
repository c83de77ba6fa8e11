#include "kvaq/report/cache_measures.h"

#include <algorithm>
#include <cmath>

#include "kvaq/stats/spectrum.h"

namespace kvaq {
namespace {

double energy(const std::vector<double>& sigma, size_t first_n) {
    double sum = 0;
    for (size_t i = 0; i < std::min(first_n, sigma.size()); ++i) sum += sigma[i] * sigma[i];
    return sum;
}

double quantile_of(std::vector<double>& values, double q) {
    std::sort(values.begin(), values.end());
    const double at = q * static_cast<double>(values.size() - 1);
    const auto below = static_cast<size_t>(at);
    const size_t above = std::min(below + 1, values.size() - 1);
    return values[below] + (at - static_cast<double>(below)) * (values[above] - values[below]);
}

SpectrumFall fall_of(const std::vector<LayerSpectra>& layers, std::vector<double> HeadSpectra::*side) {
    SpectrumFall fall;
    for (size_t i = 0;; ++i) {
        std::vector<double> values;
        for (const LayerSpectra& layer : layers) {
            for (const HeadSpectra& head : layer.heads) {
                const std::vector<double>& sigma = head.*side;
                if (i < sigma.size() && sigma[0] > 0) values.push_back(sigma[i] / sigma[0]);
            }
        }
        if (values.empty()) return fall;
        fall.low.push_back(quantile_of(values, 0.1));
        fall.median.push_back(quantile_of(values, 0.5));
        fall.high.push_back(quantile_of(values, 0.9));
    }
}

}  // namespace

CacheMeasures measures_of_spectra(const std::vector<LayerSpectra>& layers, uint64_t n_tokens) {
    CacheMeasures out;
    out.n_tokens = n_tokens;
    const double tokens = std::max(1.0, static_cast<double>(n_tokens));
    for (const LayerSpectra& layer : layers) {
        LayerNumbers norm{.layer = layer.layer}, rank{.layer = layer.layer}, four{.layer = layer.layer};
        const auto n = static_cast<double>(std::max<size_t>(layer.heads.size(), 1));
        const auto add = [&](const std::vector<double>& sigma, double LayerNumbers::*side) {
            const double all = energy(sigma, sigma.size());
            norm.*side += std::sqrt(all / tokens) / n;
            rank.*side += effective_rank(sigma) / n;
            four.*side += (all > 0 ? energy(sigma, 4) / all : 0) / n;
        };
        for (const HeadSpectra& head : layer.heads) {
            add(head.key, &LayerNumbers::key);
            add(head.value, &LayerNumbers::value);
        }
        out.norm.push_back(norm);
        out.rank.push_back(rank);
        out.first_four.push_back(four);
        out.n_heads += layer.heads.size();
    }
    out.key_fall = fall_of(layers, &HeadSpectra::key);
    out.value_fall = fall_of(layers, &HeadSpectra::value);
    return out;
}

CacheMeasures measures_of(const ModelStats& stats) {
    std::vector<LayerSpectra> layers;
    for (const LayerStats& layer : stats.layers) {
        LayerSpectra spectra{.layer = layer.shape.layer, .heads = {}};
        for (const HeadStats& head : layer.heads)
            spectra.heads.push_back(
                {.key = singular_values(head.cached_keys(), head.key_mean.size(), stats.n_tokens),
                 .value = singular_values(head.value_second, head.value_mean.size(), stats.n_tokens)});
        layers.push_back(std::move(spectra));
    }
    return measures_of_spectra(layers, stats.n_tokens);
}

}  // namespace kvaq
