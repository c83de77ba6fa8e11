#pragma once

#include <cstddef>
#include <cstdint>

#include "kvaq/base/float16.h"
#include "kvaq/base/simd_target.h"
#include "kvaq/cache/tile_codes.h"

namespace kvaq {

/// How finely the coefficients of packed tiles are rounded. Bytes need half the multiplications where they are done on bytes.
enum class CoefSize : uint8_t {
    kByte,  ///< |coefficient| <= kByteCoef
    kWide,  ///< |coefficient| <= kWideCoef
};
inline constexpr int kByteCoef = 127;
inline constexpr int kWideCoef = 16319;

/// Inner pieces of attention over one decoded tile, in f32, one table per SIMD target. All sizes named n_tokens are
/// multiples of 16, all dims of `dim_v` are padded to a multiple of 16. Results are the same for any split of rows.
struct BlockKernels {
    /// s[r * ld_s + t] = sum_c q[r * ld_q + c] * kt[c * ld_kt + t]
    void (*scores)(const float* q, size_t ld_q, size_t n_rows, size_t dim_k, const float* kt, size_t ld_kt,
                   size_t n_tokens, float* s, size_t ld_s);
    /// o[r * ld_o + d] += sum_{t in [lo[r], hi[r])} p[r * ld_p + t] * v[t * ld_v + d]; p outside [lo, hi) is zero already,
    /// the caller gives one common range [t_begin, t_end) that covers every row's.
    void (*accumulate)(const float* p, size_t ld_p, size_t n_rows, size_t t_begin, size_t t_end, const float* v,
                       size_t ld_v, size_t dim_v, float* o, size_t ld_o);
    /// Online softmax step of every row: s[r * ld + 0 .. n_tokens) becomes exp(s - m'), zero outside [lo, hi); m' = max(m, max s).
    /// Updates m[r], l[r]; factors[r] = exp(m - m') by which earlier sums must be multiplied (1 if nothing changes); tile_sums[r]: sum of the new s.
    /// A range without any score leaves m, l as they are, factor 1.
    void (*softmax_step)(float* s, size_t ld, size_t n_rows, size_t n_tokens, size_t lo, size_t hi, float* m, float* l,
                         float* tile_sums, float* factors);
    /// x[i] *= factor
    void (*scale)(float* x, size_t n, float factor);
    /// to[i] = from[i]
    void (*bytes_to_float)(const int8_t* from, size_t n, float* to);
    /// to[r * ld_to + i] = from[r * ld_from + i]
    void (*to_float)(const float16* from, size_t ld_from, size_t n_rows, size_t n, float* to, size_t ld_to);

    // Packed tiles as integers (TileLevels): bytes in cells of 16 lanes x 4 quads times integer coefficients.
    /// Of every row: y = x * weight (weight null: 1), n a multiple of 4; coef = round(y / step), ordered as coef_at() says; sums[r] = sum of coef;
    /// steps[r] = max |y| / the largest of `size`; NaN, and coef 0, if a y is not finite.
    void (*quantize_coefs)(const float* x, size_t ld_x, const float* weight, size_t n_rows, size_t n, CoefSize size,
                           int16_t* coef, size_t ld_coef, float* steps, int32_t* sums);
    /// softmax_step, then the weights of values whose scales lie along tokens: s becomes exp(s - m') * scale, rounded as quantize_coefs does (kWide);
    /// offset_sums[r] = sum of exp(s - m') * offset (offset null: 0).
    void (*softmax_coefs)(float* s, size_t ld, size_t n_rows, size_t n_tokens, size_t lo, size_t hi, const float* scale,
                          const float* offset, float* m, float* l, float* tile_sums, float* factors, int16_t* coef,
                          size_t ld_coef, float* steps, int32_t* sums, float* offset_sums);
    /// out[r * ld_out + i] = init[r] + sum_j coef[r * ld_coef + j] * byte(j, i) for 16 n_lanes16 lanes i and 4 n_quads terms j, exact;
    /// byte(j, i) = cells[j / 4 * cell_stride + i / 16 * 64 + i % 16 * 4 + j % 4]; coefficients as above.
    void (*dot_cells)(const uint8_t* cells, size_t cell_stride, size_t n_lanes16, size_t n_quads, CoefSize size,
                      const int16_t* coef, size_t ld_coef, size_t n_rows, const int32_t* init, int32_t* out,
                      size_t ld_out);
    /// The same of codes as they are packed, of n_runs runs of terms one after the other, all of as many lanes, 16 n_lanes16 of them from the 16 first_lane16-th on:
    /// out[r * ld_out + i] = init[r] + sum_j coef[r * ld_coef + j] * level(j, 16 first_lane16 + i). Codes are read again for every four rows. Null where the target is
    /// better off with bytes in memory.
    void (*dot_codes)(const PackedCodes* runs, size_t n_runs, size_t first_lane16, size_t n_lanes16, CoefSize size,
                      const int16_t* coef, size_t ld_coef, size_t n_rows, const int32_t* init, int32_t* out,
                      size_t ld_out);
    /// out[r, i] = before + acc[r, i] * steps[r] * scale[i] + offset_factors[r] * offset[i], before = start[r], or out[r, i] if start is null; scale
    /// null: 1, offset null: 0; n a multiple of 16.
    void (*add_levels)(const int32_t* acc, size_t ld_acc, size_t n_rows, size_t n, const float* steps,
                       const float* scale, const float* offset, const float* offset_factors, const float* start,
                       float* out, size_t ld_out);
    /// sum of a[i] * b[i]
    float (*dot)(const float* a, const float* b, size_t n);
    bool byte_digits = false;  ///< how coefficients lie, see coef_at
};

/// Coefficient i of a row as quantize_coefs writes it: of every four neighbours 0, 2, 1, 3, or with byte_digits their four low digits, then their four
/// high ones (c = 256 high + low, signed bytes).
[[nodiscard]] int32_t coef_at(const BlockKernels& kernels, const int16_t* coef, size_t i) noexcept;
/// The same written.
void set_coef(const BlockKernels& kernels, int16_t* coef, size_t i, int32_t value) noexcept;

/// Table of a target. The target must be supported by this CPU (see supported_simd_targets()).
[[nodiscard]] const BlockKernels& block_kernels(SimdTarget target) noexcept;

}  // namespace kvaq
