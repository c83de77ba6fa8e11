#include "kvaq/stats/moments.h"

#include <algorithm>

#include "kvaq/base/clones.h"

// No sum is reordered: every element has its own running sum over the vectors.
namespace kvaq {

namespace {

KVAQ_CLONES void widen(const float16* from, float* to, size_t n) noexcept {
    for (size_t i = 0; i < n; ++i) to[i] = static_cast<float>(from[i]);
}

/// partial[i, j] += sum_t block[t, i] * block[t, j] for j >= i (from i rounded down to 16); n a multiple of 4.
KVAQ_CLONES void rank_update(const float* __restrict block, float* __restrict partial, size_t n, size_t dim,
                             size_t row) noexcept {
    for (size_t t = 0; t < n; t += 4) {
        const float* x0 = block + t * row;
        const float* x1 = x0 + row;
        const float* x2 = x1 + row;
        const float* x3 = x2 + row;
        for (size_t i = 0; i < dim; ++i) {
            const float a0 = x0[i];
            const float a1 = x1[i];
            const float a2 = x2[i];
            const float a3 = x3[i];
            float* out = partial + i * row;
            for (size_t j = i / 16 * 16; j < row; ++j) out[j] += (a0 * x0[j] + a1 * x1[j]) + (a2 * x2[j] + a3 * x3[j]);
        }
    }
}

}  // namespace

Moments::Moments(size_t dim)
    : dim_(dim),
      row_((dim + 15) / 16 * 16),
      sum_(dim, 0.0),
      products_(dim * dim, 0.0),
      block_(kBlock * row_, 0.0F),
      partial_(dim * row_, 0.0F) {}

void Moments::add(const float* x, size_t n, size_t stride) noexcept {
    for (size_t first = 0; first < n; first += kBlock) {
        const size_t count = std::min(kBlock, n - first);
        for (size_t t = 0; t < count; ++t) std::copy_n(x + (first + t) * stride, dim_, block_.data() + t * row_);
        add_block(count);
    }
}

void Moments::add(const float16* x, size_t n, size_t stride) noexcept {
    for (size_t first = 0; first < n; first += kBlock) {
        const size_t count = std::min(kBlock, n - first);
        for (size_t t = 0; t < count; ++t) widen(x + (first + t) * stride, block_.data() + t * row_, dim_);
        add_block(count);
    }
}

void Moments::add_block(size_t n) noexcept {
    const size_t padded = (n + 3) / 4 * 4;
    std::fill(block_.begin() + static_cast<std::ptrdiff_t>(n * row_),
              block_.begin() + static_cast<std::ptrdiff_t>(padded * row_), 0.0F);
    std::fill(partial_.begin(), partial_.end(), 0.0F);
    rank_update(block_.data(), partial_.data(), padded, dim_, row_);
    for (size_t t = 0; t < n; ++t) {
        for (size_t i = 0; i < dim_; ++i) sum_[i] += static_cast<double>(block_[t * row_ + i]);
    }
    for (size_t i = 0; i < dim_; ++i) {
        for (size_t j = i; j < dim_; ++j) products_[i * dim_ + j] += static_cast<double>(partial_[i * row_ + j]);
    }
    count_ += n;
}

std::vector<double> Moments::mean() const {
    std::vector<double> out = sum_;
    for (double& value : out) value /= static_cast<double>(std::max<uint64_t>(count_, 1));
    return out;
}

std::vector<double> Moments::second_moment() const {
    std::vector<double> out(dim_ * dim_);
    const double scale = 1.0 / static_cast<double>(std::max<uint64_t>(count_, 1));
    for (size_t i = 0; i < dim_; ++i) {
        for (size_t j = i; j < dim_; ++j) out[i * dim_ + j] = out[j * dim_ + i] = products_[i * dim_ + j] * scale;
    }
    return out;
}

}  // namespace kvaq
