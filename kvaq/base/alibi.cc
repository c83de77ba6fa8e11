#include "kvaq/base/alibi.h"

#include <cmath>

namespace kvaq {

float alibi_slope(float max_bias, size_t head, size_t n_heads) noexcept {
    if (max_bias <= 0.0F) return 0.0F;
    const auto n_log2 = static_cast<size_t>(1)
                        << static_cast<size_t>(std::floor(std::log2(static_cast<double>(n_heads))));
    const float base = static_cast<float>(n_log2);
    if (head < n_log2) return std::pow(std::pow(2.0F, -max_bias / base), static_cast<float>(head + 1));
    return std::pow(std::pow(2.0F, -(max_bias / 2.0F) / base), static_cast<float>(2 * (head - n_log2) + 1));
}

}  // namespace kvaq
