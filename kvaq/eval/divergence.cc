#include "kvaq/eval/divergence.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "kvaq/base/clones.h"
#include "kvaq/base/error.h"

namespace kvaq {

namespace {

constexpr size_t kLanes =
    16;  // partial sums, so that compilers use vectors; every copy of a loop adds in the same order
constexpr size_t kBlock = 1024;  // numbers at a time, a multiple of kLanes

/// exp(x) for x up to about 0, as the attention kernels make it: 2^n 2^f, |f| <= 1/2, a polynomial of degree 6; under -87 it gives 0, NaN stays NaN.
inline float exp_nonpositive(float x) noexcept {
    constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23: adding it rounds to the nearest integer
    const float y = x < -87.0F ? -87.0F : x;
    const float n_biased = y * 1.44269504088896341F + kMagic;
    const float n = n_biased - kMagic;
    const float f = (y - n * 0.693145751953125F) - n * 1.42860682030941723e-6F;
    float poly = 1.0F / 720.0F;
    poly = poly * f + 1.0F / 120.0F;
    poly = poly * f + 1.0F / 24.0F;
    poly = poly * f + 1.0F / 6.0F;
    poly = poly * f + 0.5F;
    poly = poly * f + 1.0F;
    poly = poly * f + 1.0F;
    const uint32_t exponent = std::bit_cast<uint32_t>(n_biased) - std::bit_cast<uint32_t>(kMagic) + 127U;
    return x < -87.0F ? 0.0F : poly * std::bit_cast<float>(exponent << 23);
}

KVAQ_CLONES float largest(const float* x, size_t n) noexcept {
    std::array<float, kLanes> top;
    top.fill(-std::numeric_limits<float>::infinity());
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (size_t j = 0; j < kLanes; ++j) top[j] = x[i + j] > top[j] ? x[i + j] : top[j];
    }
    for (; i < n; ++i) top[0] = x[i] > top[0] ? x[i] : top[0];
    return *std::max_element(top.begin(), top.end());
}

/// out[i] = exp(x[i] - top)
KVAQ_CLONES void exponentials(const float* __restrict x, size_t n, float top, float* __restrict out) noexcept {
    for (size_t i = 0; i < n; ++i) out[i] = exp_nonpositive(x[i] - top);
}

/// out[i] = p_i (log p_i - log q_i), 0 where p_i < exp(-40)
KVAQ_CLONES void kl_terms(const float* __restrict log_p, const float* __restrict logits, size_t n, float top,
                          float log_sum, float* __restrict out) noexcept {
    for (size_t i = 0; i < n; ++i) {
        const float term = exp_nonpositive(log_p[i]) * (log_p[i] - (logits[i] - top - log_sum));
        out[i] = log_p[i] < -40.0F ? 0.0F : term;
    }
}

KVAQ_CLONES void add_to(const float* __restrict x, size_t n, double* __restrict sums) noexcept {
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (size_t j = 0; j < kLanes; ++j) sums[j] += static_cast<double>(x[i + j]);
    }
    for (; i < n; ++i) sums[0] += static_cast<double>(x[i]);
}

/// The sum over i < n of what make(first, n, out) writes, block by block.
template <typename Make>
double sum_of(size_t n, const Make& make) noexcept {
    std::array<float, kBlock> block;
    std::array<double, kLanes> sums = {};
    for (size_t first = 0; first < n; first += kBlock) {
        const size_t here = std::min(kBlock, n - first);
        make(first, here, block.data());
        add_to(block.data(), here, sums.data());
    }
    double sum = 0;
    for (const double part : sums) sum += part;
    return sum;
}

}  // namespace

SoftmaxNorm softmax_norm(std::span<const float> logits) noexcept {
    SoftmaxNorm norm;
    norm.top = largest(logits.data(), logits.size());
    const auto at = std::find(logits.begin(), logits.end(), norm.top);
    norm.arg_max = at == logits.end() ? 0 : static_cast<size_t>(at - logits.begin());  // 0: nothing but NaN
    const double sum = sum_of(logits.size(), [&](size_t first, size_t n, float* out) {
        exponentials(logits.data() + first, n, norm.top, out);
    });
    norm.log_sum = static_cast<float>(std::log(sum));
    return norm;
}

size_t log_softmax(std::span<const float> logits, std::span<float> out) noexcept {
    const SoftmaxNorm norm = softmax_norm(logits);
    for (size_t i = 0; i < logits.size(); ++i) out[i] = norm.log_of(logits[i]);
    return norm.arg_max;
}

std::vector<size_t> top_indices(std::span<const float> values, size_t k) {
    std::vector<size_t> best;  // a heap with the least of the best at its front
    const auto better = [&](size_t a, size_t b) { return values[a] > values[b] || (values[a] == values[b] && a < b); };
    for (size_t i = 0; i < values.size(); ++i) {
        if (best.size() == k && !better(i, best.front())) continue;
        if (best.size() == k) {
            std::pop_heap(best.begin(), best.end(), better);
            best.pop_back();
        }
        best.push_back(i);
        std::push_heap(best.begin(), best.end(), better);
    }
    std::sort(best.begin(), best.end());
    return best;
}

double kl_divergence(std::span<const float> log_p, std::span<const float> log_q) noexcept {
    return kl_divergence(log_p, log_q, {});
}

double kl_divergence(std::span<const float> log_p, std::span<const float> logits, const SoftmaxNorm& norm) noexcept {
    return sum_of(log_p.size(), [&](size_t first, size_t n, float* out) {
        kl_terms(log_p.data() + first, logits.data() + first, n, norm.top, norm.log_sum, out);
    });
}

double quantile(std::span<const double> sorted, double q) noexcept {
    const double at = q * static_cast<double>(sorted.size() - 1);
    const auto low = static_cast<size_t>(at);
    const size_t high = std::min(low + 1, sorted.size() - 1);
    return sorted[low] + (sorted[high] - sorted[low]) * (at - static_cast<double>(low));
}

double bootstrap_error(std::span<const double> values, std::span<const double> weights, uint32_t seed) {
    constexpr size_t kResamples = 1000;
    std::mt19937 random(seed);
    std::uniform_int_distribution<size_t> pick(0, values.size() - 1);
    double sum = 0;
    double squares = 0;
    for (size_t i = 0; i < kResamples; ++i) {
        double total = 0;
        double weight = 0;
        for (size_t j = 0; j < values.size(); ++j) {
            const size_t k = pick(random);
            total += values[k] * weights[k];
            weight += weights[k];
        }
        const double mean = total / weight;
        sum += mean;
        squares += mean * mean;
    }
    const double mean = sum / kResamples;
    const auto n = static_cast<double>(values.size());
    return std::sqrt(std::max(0.0, squares / kResamples - mean * mean) * n / (n - 1));
}

ScoreSummary summarize(std::span<const std::vector<TokenScore>> chunks) {
    ScoreSummary summary;
    std::vector<double> kl;
    std::vector<double> chunk_kl;
    std::vector<double> chunk_tokens;
    double nll = 0;
    double nll_squares = 0;
    double kl_squares = 0;
    double same = 0;
    for (const std::vector<TokenScore>& chunk : chunks) {
        double sum = 0;
        for (const TokenScore& score : chunk) {
            kl.push_back(score.kl);
            sum += score.kl;
            kl_squares += score.kl * score.kl;
            nll += score.nll;
            nll_squares += score.nll * score.nll;
            same += score.same_top ? 1 : 0;
        }
        if (chunk.empty()) continue;
        chunk_kl.push_back(sum / static_cast<double>(chunk.size()));
        chunk_tokens.push_back(static_cast<double>(chunk.size()));
    }
    KVAQ_CHECK(!kl.empty());
    const auto n = static_cast<double>(kl.size());
    const auto error_of_mean = [n](double mean, double squares) {
        return n > 1 ? std::sqrt(std::max(0.0, squares / n - mean * mean) / (n - 1)) : 0.0;
    };
    summary.n_tokens = kl.size();
    const double mean_nll = nll / n;
    summary.perplexity.value = std::exp(mean_nll);
    summary.perplexity.error = summary.perplexity.value * error_of_mean(mean_nll, nll_squares);
    double sum = 0;
    for (const double x : kl) sum += x;
    summary.mean_kl.value = sum / n;
    summary.mean_kl.error = chunk_kl.size() >= 2 ? bootstrap_error(chunk_kl, chunk_tokens)
                                                 : error_of_mean(summary.mean_kl.value, kl_squares);
    std::sort(kl.begin(), kl.end());
    summary.median_kl = quantile(kl, 0.5);
    summary.kl_99 = quantile(kl, 0.99);
    summary.max_kl = kl.back();
    summary.same_top.value = same / n;
    summary.same_top.error = std::sqrt(summary.same_top.value * (1 - summary.same_top.value) / n);
    return summary;
}

}  // namespace kvaq
