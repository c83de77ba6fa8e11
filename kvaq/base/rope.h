#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvaq {

/// Rotary position embedding of one layer: pair i of a head turns by position * frequencies[i] radians. Length scalings (linear, YaRN,
/// per-pair factors) are all linear in the position, so they are in the frequencies; the factor YaRN puts on q and k is not.
struct RopeRule {
    bool interleaved = false;         ///< pairs (2 i, 2 i + 1), ggml's "normal"; else (i, i + n_dims / 2), "neox"
    size_t first_channel = 0;         ///< the channels before it and after n_dims more stay as they are
    size_t n_dims = 0;                ///< rotated channels; 0: the layer has no RoPE
    std::vector<double> frequencies;  ///< [n_dims / 2]
    bool operator==(const RopeRule&) const = default;
};

/// cos and sin of a turn by `delta` positions, ready for many heads.
class RopeTurn {
  public:
    RopeTurn() = default;
    /// delta in positions, may be negative.
    void set(const RopeRule& rule, int32_t delta) {
        rule_ = &rule;
        const size_t n = rule.n_dims / 2;
        if (cos_.size() < n) {
            cos_.resize(n);
            sin_.resize(n);
        }
        for (size_t i = 0; i < n; ++i) {
            cos_[i] = std::cos(rule.frequencies[i] * delta);
            sin_[i] = std::sin(rule.frequencies[i] * delta);
        }
    }
    /// y = R(delta) x for the rotated channels, y = x for the others. In place is fine.
    template <typename T>
    void apply(const T* x, T* y, size_t head_dim) const noexcept {
        const size_t half = rule_->n_dims / 2;
        const size_t begin = rule_->first_channel;
        for (size_t c = 0; c < begin; ++c) y[c] = x[c];
        for (size_t c = begin + 2 * half; c < head_dim; ++c) y[c] = x[c];
        for (size_t i = 0; i < half; ++i) {
            const size_t a = begin + (rule_->interleaved ? 2 * i : i);
            const size_t b = rule_->interleaved ? a + 1 : a + half;
            const auto x0 = static_cast<double>(x[a]);
            const auto x1 = static_cast<double>(x[b]);
            y[a] = static_cast<T>(x0 * cos_[i] - x1 * sin_[i]);
            y[b] = static_cast<T>(x0 * sin_[i] + x1 * cos_[i]);
        }
    }

  private:
    const RopeRule* rule_ = nullptr;
    std::vector<double> cos_, sin_;
};

}  // namespace kvaq
