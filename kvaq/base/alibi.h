#pragma once

#include <cstddef>

namespace kvaq {

/// ALiBi slope of a query head, as ggml computes it (soft_max / flash_attn_ext). 0 when max_bias is 0.
[[nodiscard]] float alibi_slope(float max_bias, size_t head, size_t n_heads) noexcept;

}  // namespace kvaq
