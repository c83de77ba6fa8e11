#include "kvaq/eval/divergence.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "kvaq/base/error.h"

namespace kvaq {

size_t log_softmax(std::span<const float> logits, std::span<float> out) noexcept {
    const size_t top = static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    const float shift = logits[top];
    double sum = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
        out[i] = logits[i] - shift;
        sum += static_cast<double>(std::exp(out[i]));
    }
    const auto log_sum = static_cast<float>(std::log(sum));
    for (float& x : out) x -= log_sum;
    return top;
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
    double sum = 0;
    for (size_t i = 0; i < log_p.size(); ++i) {
        if (log_p[i] > -40.0F) sum += static_cast<double>(std::exp(log_p[i]) * (log_p[i] - log_q[i]));
    }
    return sum;
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
    return std::sqrt(std::max(0.0, squares / kResamples - mean * mean));
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
