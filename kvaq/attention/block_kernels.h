#pragma once

#include <cstddef>
#include <cstdint>

#include "kvaq/base/float16.h"
#include "kvaq/base/simd_target.h"

namespace kvaq {

/// Inner pieces of attention over one decoded tile, in f32, one table per SIMD target. All sizes named n_tokens are
/// multiples of 16, all dims of `dim_v` are padded to a multiple of 16. Results are the same for any split of rows.
struct BlockKernels {
    /// s[r * ld_s + t] = sum_c q[r * ld_q + c] * kt[c * ld_kt + t]
    void (*scores)(const float* q, size_t ld_q, size_t n_rows, size_t dim_k, const float* kt, size_t ld_kt, size_t n_tokens,
                   float* s, size_t ld_s);
    /// o[r * ld_o + d] += sum_{t in [lo[r], hi[r])} p[r * ld_p + t] * v[t * ld_v + d]; p outside [lo, hi) is zero already,
    /// the caller gives one common range [t_begin, t_end) that covers every row's.
    void (*accumulate)(const float* p, size_t ld_p, size_t n_rows, size_t t_begin, size_t t_end, const float* v, size_t ld_v,
                       size_t dim_v, float* o, size_t ld_o);
    /// Online softmax step of one row: s[0, n_tokens) becomes exp(s - m'), zero outside [lo, hi); m' = max(m, max s).
    /// Updates *m, *l; returns the factor exp(m - m') by which earlier sums must be multiplied (1 if nothing changes).
    /// A range without any score leaves m, l as they are and returns 1.
    float (*softmax_step)(float* s, size_t n_tokens, size_t lo, size_t hi, float* m, float* l);
    /// x[i] *= factor
    void (*scale)(float* x, size_t n, float factor);
    /// to[i] = from[i]
    void (*bytes_to_float)(const int8_t* from, size_t n, float* to);
    /// to[i] = from[i]
    void (*to_float)(const float16* from, size_t n, float* to);
};

/// Table of a target. The target must be supported by this CPU (see supported_simd_targets()).
[[nodiscard]] const BlockKernels& block_kernels(SimdTarget target) noexcept;

}  // namespace kvaq
