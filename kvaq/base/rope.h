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

/// Turns back by multiples of a number of positions, made beforehand: y = R(-multiple * step) x, and the way back. Beyond n_ready multiples cosines and
/// sines are computed at every use. Rounded to f32, so a number turned there and back differs by 2^-23 of the pair's length.
class TurnTable {
  public:
    TurnTable(const RopeRule& rule, int32_t step, size_t n_ready) : rule_(rule), step_(step), n_ready_(n_ready) {
        const size_t half = rule.n_dims / 2;
        for (size_t m = 0; m < n_ready; ++m) {
            for (size_t i = 0; i < half; ++i) cosines_.push_back(cosine(static_cast<int32_t>(m), i));
            for (size_t i = 0; i < half; ++i) sines_.push_back(sine(static_cast<int32_t>(m), i));
        }
    }
    [[nodiscard]] const RopeRule& rule() const noexcept { return rule_; }
    [[nodiscard]] int32_t step() const noexcept { return step_; }
    /// In place, for n vectors of head_dim numbers that lie one after the other; n = 1: one vector.
    void back(int32_t multiple, float* x, size_t n, size_t head_dim) const noexcept {
        turn(multiple, -1, x, n, head_dim);
    }
    void forward(int32_t multiple, double* x, size_t n, size_t head_dim) const noexcept {
        turn(multiple, 1, x, n, head_dim);
    }

  private:
    [[nodiscard]] float cosine(int32_t multiple, size_t i) const noexcept {
        return static_cast<float>(std::cos(rule_.frequencies[i] * step_ * multiple));
    }
    [[nodiscard]] float sine(int32_t multiple, size_t i) const noexcept {
        return static_cast<float>(std::sin(rule_.frequencies[i] * step_ * multiple));
    }
    template <typename T>
    void turn(int32_t multiple, int sign, T* x, size_t n, size_t head_dim) const noexcept {
        if (multiple == 0) return;
        const size_t half = rule_.n_dims / 2;
        std::array<float, kMaxRopePairs> made_cosines, made_sines;
        const float* c = made_cosines.data();
        const float* s = made_sines.data();
        if (multiple >= 0 && static_cast<size_t>(multiple) < n_ready_) {
            c = cosines_.data() + static_cast<size_t>(multiple) * half;
            s = sines_.data() + static_cast<size_t>(multiple) * half;
        } else {
            for (size_t i = 0; i < half; ++i) {
                made_cosines[i] = cosine(multiple, i);
                made_sines[i] = sine(multiple, i);
            }
        }
        for (size_t row = 0; row < n; ++row) {
            T* from = x + row * head_dim + rule_.first_channel;
            for (size_t i = 0; i < half; ++i) {
                T& a = from[rule_.interleaved ? 2 * i : i];
                T& b = from[rule_.interleaved ? 2 * i + 1 : i + half];
                const T cosine = static_cast<T>(c[i]);
                const T sine = static_cast<T>(sign < 0 ? -s[i] : s[i]);
                const T turned = a * cosine - b * sine;
                b = a * sine + b * cosine;
                a = turned;
            }
        }
    }

    RopeRule rule_;
    int32_t step_ = 0;
    size_t n_ready_ = 0;
    std::vector<float> cosines_, sines_;  ///< [multiple][pair]
};

}  // namespace kvaq
