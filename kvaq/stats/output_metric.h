#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvaq/base/attention_call.h"

namespace kvaq {

/// G = W_O,h^T W_O,h of every query head h of a layer, [head][dv, dv]: |W_O,h x|^2 = x^T G x.
using OutputGrams = std::vector<std::vector<double>>;

/// What errors of one KV head's keys and values do to the layer's output, from sampled queries and where their attention
/// rests. With y = sum_t p_t v_t of query q in head h of the group, to first order and for errors that differ from token
/// to token:
///   keys    q^T e_t bends the output by p_t s (q^T e_t) W_O (v_t - y), so the output's error power is e^T S e with
///           S = E_q sum_h c q q^T,   c = s^2 sum_t p_t^2 |W_O,h (v_t - y)|^2   (s: scale, times the softcap's slope)
///   values  W_O,h sum_t p_t e_t, so it is e^T M e with M = E_q sum_h (sum_t p_t^2) G_h
/// Both count in the same unit. Thread-safety: distinct objects only.
class OutputMetric {
  public:
    OutputMetric() = default;
    /// grams: of the query heads of the group; an empty one stands for the identity.
    OutputMetric(size_t dim_k, size_t dim_v, std::span<const std::vector<double>> grams);

    /// One sequence's history and queries in it. Key t stands at position t.
    struct Sample {
        std::span<const float16> keys;            ///< [n, dk]
        std::span<const float16> values;          ///< [n, dv]
        HeadRows<const float> queries;            ///< unscaled, after RoPE; head 0 = first head of the group
        std::span<const size_t> query_tokens;     ///< rows of `queries`
        std::span<const size_t> query_positions;  ///< < n
        size_t first_head = 0;                    ///< of the group, among the layer's query heads
        size_t n_heads = 0;                       ///< of the layer
        ScoreRule rule;
    };
    /// Allocates scratch of n x (dk + 2 dv + 2 queries) floats.
    void add(const Sample& sample);

    [[nodiscard]] uint64_t n_queries() const noexcept { return n_queries_; }
    [[nodiscard]] std::vector<double> keys() const;    ///< S [dk, dk]; zeros when nothing was added
    [[nodiscard]] std::vector<double> values() const;  ///< M [dv, dv]

  private:
    size_t dim_k_ = 0;
    size_t dim_v_ = 0;
    uint64_t n_queries_ = 0;
    std::vector<std::vector<double>> grams_;   ///< [head of the group][dv, dv]
    std::vector<std::vector<float>> factors_;  ///< L with G = L L^T, [dv, dv] column-major
    std::vector<double> key_sum_;              ///< [dk, dk]
    std::vector<double> mass_;                 ///< [head of the group] sum over queries of sum_t p_t^2
};

}  // namespace kvaq
