#include "kvaq/quant/hadamard.h"

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

void hadamard_transform(float* x, size_t n) noexcept { transform(x, n); }
void hadamard_transform(double* x, size_t n) noexcept { transform(x, n); }

}  // namespace kvaq
