#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kvaq/base/float16.h"
#include "kvaq/quant/codec_spec.h"

namespace kvaq {

/// The binary16 at x or its neighbour towards -inf / +inf, so that a group's stored range covers its true one. |x| <= 65504.
[[nodiscard]] float16 round_down_f16(double x) noexcept;
[[nodiscard]] float16 round_up_f16(double x) noexcept;

/// x^ = code * scale + offset, codes 0 .. n_levels - 1.
struct AffineParams {
    double scale = 0;
    double offset = 0;
    bool operator==(const AffineParams&) const = default;
};

/// Round to nearest between the extremes of a group: scale = (max - min) / (L - 1), offset = min, L = n_levels(bits).
/// A constant group has scale 0.
[[nodiscard]] AffineParams minmax_params(std::span<const double> group, CodeBits bits) noexcept;

/// Symmetric rule (paper item 12): alpha = max|x| / (2^(b-1) - 1), levels alpha * {-(2^(b-1)) .. 2^(b-1) - 1}, written as
/// offset = -2^(b-1) * alpha. The paper leaves b = 1 undefined (division by zero): here its two levels are -a and +a with
/// a = mean|x|, the least-squares choice. Ternary: -a, 0, +a with a = max|x|.
[[nodiscard]] AffineParams symmetric_params(std::span<const double> group, CodeBits bits) noexcept;

/// offset / scale of the symmetric rule: -1/2 at 1 bit, -1 ternary, -2^(b-1) else. It is not stored.
[[nodiscard]] double symmetric_offset(CodeBits bits) noexcept;

/// Optimum Quanto (paper item 23): scale = (max - min) / (2^b - 1), shift = -min, q = round((x + shift) / scale).
[[nodiscard]] AffineParams quanto_params(std::span<const double> group, CodeBits bits) noexcept;

/// q = clamp(round_half_even((x - offset) / scale), 0, L - 1); scale 0 gives code 0.
[[nodiscard]] uint32_t affine_code(double x, const AffineParams& params, CodeBits bits) noexcept;

/// HQQ (paper item 24) over groups that are refined together: [n_groups][group_size], row-major.
///   max_v = round(2^b - 1) (2 for ternary); s = max_v / (max - min), 1 where the range is <= 1e-4, at most 2e4; z = -min * s;
///   q = clip(round(x s + z), 0, max_v); x^ = (q - z) / s.
/// Refinement of z, at most 20 rounds, p = 0.7, beta = 10: r = x - x^; W_e = sgn(r) max(|r| - |r|^(p-1) / beta, 0);
///   z = mean over the group of q - (x - W_e) s; stops when mean|r| over all groups no longer falls (kappa is unused in
///   the authors' loop). params: scale = 1 / s, offset = -z / s. codes [n_groups][group_size].
void hqq_quantize(std::span<const double> x, size_t group_size, CodeBits bits, std::span<AffineParams> params,
                  std::span<uint32_t> codes);

}  // namespace kvaq
