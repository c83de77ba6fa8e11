#include "kvaq/quant/hadamard.h"

#include <cmath>

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

}  // namespace

void hadamard_transform(float* x, size_t n) noexcept { transform(x, n); }
void hadamard_transform(double* x, size_t n) noexcept { transform(x, n); }

}  // namespace kvaq
