#include "kvaq/eval/analysis_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "kvaq/cache/tile.h"

namespace kvaq {
namespace {

constexpr size_t kBits4 = 2;  // index into kStudyBits
constexpr size_t kBits2 = 0;

Comparison compare(size_t n, const std::function<int32_t(size_t)>& number, const std::function<double(size_t)>& ratio) {
    Comparison out;
    double logs = 0;
    for (size_t i = 0; i < n; ++i) {
        const double r = ratio(i);
        if (!(r > 1)) out.smaller.push_back(number(i));
        if (r > 0 && std::isfinite(r)) {
            logs += std::log(r);
            ++out.n;
        }
    }
    out.ratio = out.n > 0 ? std::exp(logs / static_cast<double>(out.n)) : 0;
    out.n = n;
    return out;
}

/// Mean over all heads of f(side of a head).
double over_heads(const CacheAnalysis& cache, Side side, const std::function<double(const SideAnalysis&)>& f) {
    double sum = 0;
    size_t n = 0;
    for (const LayerAnalysis& layer : cache.layers) {
        for (const HeadAnalysis& head : layer.heads) {
            sum += f(head.side(side));
            ++n;
        }
    }
    return sum / static_cast<double>(n);
}

double relative(double error, const SideAnalysis& side) { return side.mean_square > 0 ? error / side.mean_square : 0; }

/// By what factor rotation divides the error, geometric mean over heads; heads without error count as 1.
double rotation_gain(const CacheAnalysis& cache, Side side, size_t bits_index) {
    return std::exp(over_heads(cache, side, [&](const SideAnalysis& s) {
        const double plain = s.mse[bits_index];
        const double rotated = s.mse_rotated[bits_index];
        return plain > 0 && rotated > 0 ? std::log(plain / rotated) : 0.0;
    }));
}

/// Bits per element of keys at 4 and values at 2 bits with these groups, scales and padding included.
double grouped_bits(const LayerShape& s, uint16_t group_k, uint16_t group_v) {
    const auto key = static_cast<CodeBits>(kGroupStudyKeyBits);
    const auto value = static_cast<CodeBits>(kGroupStudyValueBits);
    const size_t bytes =
        packed_bytes({.bits = key, .group = group_k}, Side::kKey, s.head_dim_k, kDefaultTileTokens) +
        packed_bytes({.bits = value, .group = group_v}, Side::kValue, s.head_dim_v, kDefaultTileTokens);
    return 8.0 * static_cast<double>(bytes) / static_cast<double>(kDefaultTileTokens * (s.head_dim_k + s.head_dim_v));
}

std::string where_not(const Comparison& c) {
    if (c.smaller.empty()) return fmt::format("in all {} layers", c.n);
    if (c.smaller.size() == c.n) return fmt::format("in none of {} layers", c.n);
    return fmt::format("in {} of {} layers (not in {})", c.n - c.smaller.size(), c.n, layer_list(c.smaller));
}

std::string times(double ratio) {
    return ratio >= 1 ? fmt::format("{:.2f} times as large as", ratio) : fmt::format("smaller, {:.2f} times", ratio);
}

void describe_weights(const ModelAnalysis& a, std::vector<std::string>& out) {
    if (!a.weights) {
        out.push_back("Weight norms could not be had: " + a.weights_missing);
        return;
    }
    const Comparison f = compare_weights(*a.weights, NormScore::kFrobenius);
    const Comparison s = compare_weights(*a.weights, NormScore::kSpectral);
    out.push_back(
        fmt::format("Weights: W_K is {} W_V by Frobenius norm (geometric mean over layers); |W_K| > |W_V| {}. By "
                    "spectral norm: {:.2f}, {}.",
                    times(f.ratio), where_not(f), s.ratio, where_not(s)));
    out.push_back(fmt::format("Theorem 1 (|W_K|_F > |W_V|_F) holds {}.", where_not(f)));
    if (std::any_of(a.weights->layers.begin(), a.weights->layers.end(),
                    [](const LayerWeightNorms& l) { return l.value_is_key; })) {
        out.push_back("Some layers have no W_V (their values come from W_K's output): they count as equal.");
    }
    for (const Side side : {Side::kKey, Side::kValue}) {
        const double exponent = propagation_exponent(*a.weights, side, 4);
        out.push_back(
            fmt::format("Error propagation (the bound that holds, for W_{} at 4 bits in a linear residual net): "
                        "10^{:.0f} times the input{}.",
                        to_string(side), exponent, exponent > 1 ? ": true, and far too loose to plan with" : ""));
    }
}

void describe_cache(const ModelAnalysis& a, std::vector<std::string>& out) {
    const CacheAnalysis& cache = *a.cache;
    const Comparison f = compare_cache(cache, NormScore::kFrobenius);
    const Comparison s = compare_cache(cache, NormScore::kSpectral);
    if (!cache.as_cached) {
        out.emplace_back(
            "The statistics hold keys turned back as plans keep them, not as the model caches them: spectra and errors "
            "of K "
            "are of those. Calibrate again to have both.");
    }
    out.push_back(
        fmt::format("Cache: keys are {} values by Frobenius norm; |K| > |V| {}. By spectral norm: {:.2f}, {}.",
                    times(f.ratio), where_not(f), s.ratio, where_not(s)));
    const double gap = balance_gap(f.ratio, 1);
    double equal = 0;
    for (const LayerAnalysis& layer : cache.layers)
        equal += 0.5 * balance_gap(layer.mean(Side::kKey, &SideAnalysis::mse, kBits2),
                                   layer.mean(Side::kValue, &SideAnalysis::mse, kBits2));
    equal /= static_cast<double>(cache.layers.size());
    out.push_back(
        fmt::format("Balance rule b_K - b_V = log2(|K|/|V|): {:+.1f} bits (Frobenius), {:+.1f} (spectral); measured "
                    "2-bit errors would be equal at {:+.1f}. It balances "
                    "squared errors of K and V, not the damage to the model.",
                    gap, balance_gap(s.ratio, 1), equal));
    const double k_rot = rotation_gain(cache, Side::kKey, kBits4);
    const double v_rot = rotation_gain(cache, Side::kValue, kBits2);
    out.push_back(
        fmt::format("Rotation divides the error of 4-bit keys by {:.2f} and of 2-bit values by {:.2f}.", k_rot, v_rot));
    out.push_back(
        fmt::format("The first four singular values carry {:.0f} % of the keys' and {:.0f} % of the values' energy; "
                    "effective rank {:.1f} and {:.1f}.",
                    100 * over_heads(cache, Side::kKey, [](const SideAnalysis& x) { return x.first_four; }),
                    100 * over_heads(cache, Side::kValue, [](const SideAnalysis& x) { return x.first_four; }),
                    over_heads(cache, Side::kKey, [](const SideAnalysis& x) { return x.rank; }),
                    over_heads(cache, Side::kValue, [](const SideAnalysis& x) { return x.rank; })));
    size_t broken = 0;
    for (const LayerAnalysis& layer : cache.layers) {
        for (const HeadAnalysis& head : layer.heads) {
            for (const Side side : {Side::kKey, Side::kValue}) {
                for (const BoundCheck& check : head.side(side).bounds) broken += check.holds() ? 0 : 1;
            }
        }
    }
    const auto slack = [&](Side side, double BoundCheck::*bound, double BoundCheck::*error) {
        return std::exp(over_heads(cache, side, [&](const SideAnalysis& x) {
            const BoundCheck& c = x.bounds[kBits4];
            return c.*error > 0 ? std::log(c.*bound / c.*error) : 0.0;
        }));
    };
    out.push_back(
        fmt::format("Theorems 3 and 4 {}; at 4 bits the bounds are {:.0f} (spectral) and {:.0f} (Frobenius) times the "
                    "measured error of K, {:.0f} and {:.0f} times that of V.",
                    broken == 0 ? "hold for every head and width" : fmt::format("fail in {} cases", broken),
                    slack(Side::kKey, &BoundCheck::bound_spectral, &BoundCheck::error_spectral),
                    slack(Side::kKey, &BoundCheck::bound_frobenius, &BoundCheck::error_frobenius),
                    slack(Side::kValue, &BoundCheck::bound_spectral, &BoundCheck::error_spectral),
                    slack(Side::kValue, &BoundCheck::bound_frobenius, &BoundCheck::error_frobenius)));
    if (a.weights) {
        const Comparison w = compare_weights(*a.weights, NormScore::kFrobenius);
        if ((w.ratio > 1) != (f.ratio > 1)) {
            out.push_back(
                fmt::format("Weights and cache disagree: |W_K|/|W_V| is {:.2f}, |K|/|V| is {:.2f}. Believe the cache.",
                            w.ratio, f.ratio));
        }
    }
}

}  // namespace

Comparison compare_weights(const WeightNorms& norms, NormScore score) {
    return compare(
        norms.layers.size(), [&](size_t i) { return norms.layers[i].layer; },
        [&](size_t i) {
            const LayerWeightNorms& l = norms.layers[i];
            const double key = score == NormScore::kFrobenius ? l.key_frobenius : l.key_spectral;
            const double value = score == NormScore::kFrobenius ? l.value_frobenius : l.value_spectral;
            return key / value * std::sqrt(static_cast<double>(l.value_elements) / static_cast<double>(l.key_elements));
        });
}

Comparison compare_cache(const CacheAnalysis& cache, NormScore score) {
    return compare(
        cache.layers.size(), [&](size_t i) { return cache.layers[i].shape.layer; },
        [&](size_t i) {
            const LayerAnalysis& l = cache.layers[i];
            const double key = score == NormScore::kFrobenius ? l.frobenius(Side::kKey) : l.spectral(Side::kKey);
            const double value = score == NormScore::kFrobenius ? l.frobenius(Side::kValue) : l.spectral(Side::kValue);
            return key / value *
                   std::sqrt(static_cast<double>(l.shape.head_dim_v) / static_cast<double>(l.shape.head_dim_k));
        });
}

double propagation_exponent(const WeightNorms& norms, Side side, int bits) {
    std::vector<double> weights, quantized, errors;
    for (const LayerWeightNorms& layer : norms.layers) {
        const double norm = side == Side::kKey ? layer.key_spectral : layer.value_spectral;
        const auto elements = static_cast<double>(side == Side::kKey ? layer.key_elements : layer.value_elements);
        weights.push_back(norm);
        errors.push_back(std::sqrt(elements) * norm / (2 * (std::exp2(bits - 1) - 1)));
        quantized.push_back(norm + errors.back());
    }
    return log10_propagation_bound(weights, quantized, errors);
}

std::vector<std::string> describe(const ModelAnalysis& analysis) {
    std::vector<std::string> out;
    describe_weights(analysis, out);
    if (analysis.qk_norm) {
        out.emplace_back(
            "QK-norm: this model normalises its keys after W_K, so the norm of W_K says nothing about the cache; do "
            "not plan by weight norms here.");
    }
    if (analysis.cache) {
        describe_cache(analysis, out);
    } else {
        out.emplace_back(
            "No statistics: give -f TEXT or --stats FILE to see the cache itself, which is what gets quantized.");
    }
    return out;
}

std::string analysis_tables(const ModelAnalysis& analysis) {
    std::string out;
    if (analysis.weights) {
        out += "| layer | W_K F | W_V F | W_K 2 | W_V 2 |\n|---|---|---|---|---|\n";
        for (const LayerWeightNorms& l : analysis.weights->layers) {
            out += fmt::format("| {} | {:.2f} | {:.2f} | {:.2f} | {:.2f} |\n", l.layer, l.key_frobenius,
                               l.value_frobenius, l.key_spectral, l.value_spectral);
        }
    }
    if (!analysis.cache) return out;
    const CacheAnalysis& cache = *analysis.cache;
    out += fmt::format(
        "\nCache over {} tokens: norms of all heads (F) and mean over heads (2), effective rank, energy of the first "
        "four singular values\n\n"
        "| layer | K F | V F | K 2 | V 2 | K rank | V rank | K first 4 | V first 4 | b_K - b_V "
        "|\n|---|---|---|---|---|---|---|---|---|---|\n",
        cache.n_tokens);
    for (const LayerAnalysis& l : cache.layers) {
        out += fmt::format(
            "| {} | {:.1f} | {:.1f} | {:.1f} | {:.1f} | {:.1f} | {:.1f} | {:.0f} % | {:.0f} % | {:+.1f} |\n",
            l.shape.layer, l.frobenius(Side::kKey), l.frobenius(Side::kValue), l.spectral(Side::kKey),
            l.spectral(Side::kValue), l.mean(Side::kKey, &SideAnalysis::rank),
            l.mean(Side::kValue, &SideAnalysis::rank), 100 * l.mean(Side::kKey, &SideAnalysis::first_four),
            100 * l.mean(Side::kValue, &SideAnalysis::first_four),
            balance_gap(l.frobenius(Side::kKey), l.frobenius(Side::kValue)));
    }
    for (const Side side : {Side::kKey, Side::kValue}) {
        out += fmt::format(
            "\nMean squared error of {} over {} tokens per head, groups of 64: plain / rotated\n\n| layer |",
            to_string(side), cache.n_sample_tokens);
        for (const int bits : kStudyBits) out += fmt::format(" {} bits |", bits);
        out += "\n|---|";
        for (size_t i = 0; i < kStudyBits.size(); ++i) out += "---|";
        out += "\n";
        for (const LayerAnalysis& l : cache.layers) {
            out += fmt::format("| {} |", l.shape.layer);
            for (size_t i = 0; i < kStudyBits.size(); ++i)
                out += fmt::format(" {:.3g} / {:.3g} |", l.mean(side, &SideAnalysis::mse, i),
                                   l.mean(side, &SideAnalysis::mse_rotated, i));
            out += "\n";
        }
    }
    out +=
        "\nGroup sizes at K4V2 without rotation: error relative to the side's own energy, mean over heads\n\n| g_K | "
        "g_V | bits/element | K error | V error |\n|---|---|---|---|---|\n";
    for (size_t k = 0; k < kStudyGroups.size(); ++k) {
        for (size_t v = 0; v < kStudyGroups.size(); ++v) {
            out += fmt::format("| {} | {} | {:.2f} | {:.3f} % | {:.2f} % |\n", kStudyGroups[k], kStudyGroups[v],
                               grouped_bits(cache.layers[0].shape, kStudyGroups[k], kStudyGroups[v]),
                               100 * over_heads(cache, Side::kKey,
                                                [&](const SideAnalysis& x) { return relative(x.mse_grouped[k], x); }),
                               100 * over_heads(cache, Side::kValue,
                                                [&](const SideAnalysis& x) { return relative(x.mse_grouped[v], x); }));
        }
    }
    return out;
}

}  // namespace kvaq
