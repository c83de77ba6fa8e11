#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvaq {

inline constexpr size_t kMaxRopePairs = 256;  // head sizes go up to 512

/// Rotary position embedding of one layer: pair i of a head turns by position * frequencies[i] radians. Length scalings (linear, YaRN,
/// per-pair factors) are all linear in the position, so they are in the frequencies; the factor YaRN puts on q and k is not.
struct RopeRule {
    bool interleaved = false;         ///< pairs (2 i, 2 i + 1), ggml's "normal"; else (i, i + n_dims / 2), "neox"
    size_t first_channel = 0;         ///< the channels before it and after n_dims more stay as they are
    size_t n_dims = 0;                ///< rotated channels, at most 2 kMaxRopePairs; 0: the layer has no RoPE
    std::vector<double> frequencies;  ///< [n_dims / 2] radians per position
    bool operator==(const RopeRule&) const = default;
};

/// cos and sin of a turn by a number of positions, ready for many heads. Allocates nothing.
class RopeTurn {
  public:
    /// delta in positions, may be negative. Computes only what differs from the last call.
    void set(const RopeRule& rule, int32_t delta) noexcept {
        const size_t half = rule.n_dims / 2;
        bool same = half == half_ && delta == delta_;
        for (size_t i = 0; i < half && same; ++i) same = frequencies_[i] == rule.frequencies[i];
        interleaved_ = rule.interleaved;
        first_ = rule.first_channel;
        if (same) return;
        half_ = half;
        delta_ = delta;
        for (size_t i = 0; i < half; ++i) {
            frequencies_[i] = rule.frequencies[i];
            cos_[i] = std::cos(rule.frequencies[i] * delta);
            sin_[i] = std::sin(rule.frequencies[i] * delta);
        }
    }
    /// y = R(delta) x for the rotated channels, y = x for the others. In place is fine.
    template <typename T>
    void apply(const T* x, T* y, size_t head_dim) const noexcept {
        for (size_t c = 0; c < first_; ++c) y[c] = x[c];
        for (size_t c = first_ + 2 * half_; c < head_dim; ++c) y[c] = x[c];
        for (size_t i = 0; i < half_; ++i) {
            const size_t a = first_ + (interleaved_ ? 2 * i : i);
            const size_t b = interleaved_ ? a + 1 : a + half_;
            const auto x0 = static_cast<double>(x[a]);
            const auto x1 = static_cast<double>(x[b]);
            y[a] = static_cast<T>(x0 * cos_[i] - x1 * sin_[i]);
            y[b] = static_cast<T>(x0 * sin_[i] + x1 * cos_[i]);
        }
    }

  private:
    bool interleaved_ = false;
    size_t first_ = 0, half_ = 0;
    int32_t delta_ = 0;
    std::array<double, kMaxRopePairs> frequencies_ = {}, cos_ = {}, sin_ = {};
};

}  // namespace kvaq
