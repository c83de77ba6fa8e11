#include "kvaq/quant/hadamard.h"

#include <algorithm>
#include <cmath>

#include "kvaq/base/clones.h"

namespace kvaq {
namespace {

template <typename T>
void transform(T* x, size_t n) noexcept {
    const size_t block = n & (~n + 1);  // lowest set bit
    const T norm = T{1} / std::sqrt(static_cast<T>(block));
    for (size_t first = 0; first < n; first += block) {
        T* y = x + first;
        for (size_t half = 1; half < block; half *= 2) {
            for (size_t i = 0; i < block; i += 2 * half) {
                for (size_t j = i; j < i + half; ++j) {
                    const T a = y[j];
                    const T b = y[j + half];
                    y[j] = a + b;
                    y[j + half] = a - b;
                }
            }
        }
        for (size_t i = 0; i < block; ++i) y[i] *= norm;
    }
}

using Eight = float __attribute__((vector_size(32), aligned(4), may_alias));

/// Eight neighbours: the first three halvings, in the order of `transform`.
inline void transform_eight(float* from) noexcept {
    auto& y = *reinterpret_cast<Eight*>(from);
    Eight x = y;
    const Eight alternate1 = {1, -1, 1, -1, 1, -1, 1, -1};
    const Eight alternate2 = {1, 1, -1, -1, 1, 1, -1, -1};
    const Eight alternate4 = {1, 1, 1, 1, -1, -1, -1, -1};
    x = __builtin_shufflevector(x, x, 0, 0, 2, 2, 4, 4, 6, 6) +
        __builtin_shufflevector(x, x, 1, 1, 3, 3, 5, 5, 7, 7) * alternate1;
    x = __builtin_shufflevector(x, x, 0, 1, 0, 1, 4, 5, 4, 5) +
        __builtin_shufflevector(x, x, 2, 3, 2, 3, 6, 7, 6, 7) * alternate2;
    y = __builtin_shufflevector(x, x, 0, 1, 2, 3, 0, 1, 2, 3) +
        __builtin_shufflevector(x, x, 4, 5, 6, 7, 4, 5, 6, 7) * alternate4;
}

/// The same numbers as `transform` of every block, eight at a time: n a multiple of block, a power of two from 8 on.
KVAQ_CLONES void transform_eights(float* x, size_t n, size_t block) noexcept {
    const float norm = 1.0F / std::sqrt(static_cast<float>(block));
    const Eight norms = {norm, norm, norm, norm, norm, norm, norm, norm};
    const auto at = [](float* y) -> Eight& { return *reinterpret_cast<Eight*>(y); };
    for (size_t first = 0; first < n; first += block) {
        float* y = x + first;
        for (size_t i = 0; i < block; i += 8) transform_eight(y + i);
        for (size_t half = 8; half < block; half *= 2) {
            for (size_t i = 0; i < block; i += 2 * half) {
                for (size_t j = i; j < i + half; j += 8) {
                    const Eight a = at(y + j);
                    const Eight b = at(y + j + half);
                    at(y + j) = a + b;
                    at(y + j + half) = a - b;
                }
            }
        }
        for (size_t i = 0; i < block; i += 8) at(y + i) *= norms;
    }
}

KVAQ_CLONES void butterfly(float* __restrict a, float* __restrict b, size_t n) noexcept {
    for (size_t i = 0; i < n; ++i) {
        const float x = a[i];
        const float y = b[i];
        a[i] = x + y;
        b[i] = x - y;
    }
}

}  // namespace

void hadamard_columns(float* x, size_t n, size_t n_columns, size_t stride) noexcept {
    const size_t block = n & (~n + 1);
    const float norm = 1.0F / std::sqrt(static_cast<float>(block));
    for (size_t half = 1; half < block; half *= 2) {
        for (size_t i = 0; i < n; i += 2 * half) {
            for (size_t j = i; j < i + half; ++j) butterfly(x + j * stride, x + (j + half) * stride, n_columns);
        }
    }
    for (size_t i = 0; i < n; ++i) {
        for (size_t t = 0; t < n_columns; ++t) x[i * stride + t] *= norm;
    }
}

void hadamard_transform(float* x, size_t n) noexcept { hadamard_units(x, n, n & (~n + 1)); }
void hadamard_transform(double* x, size_t n) noexcept { transform(x, n); }

void hadamard_units(float* x, size_t n, size_t unit) noexcept {
    const size_t whole = unit % 8 == 0 && (unit & (unit - 1)) == 0 ? n / unit * unit : 0;
    if (whole > 0) transform_eights(x, whole, unit);
    for (size_t first = whole; first < n; first += unit) transform(x + first, std::min(unit, n - first));
}
void hadamard_units(double* x, size_t n, size_t unit) noexcept {
    for (size_t first = 0; first < n; first += unit) transform(x + first, std::min(unit, n - first));
}

}  // namespace kvaq
