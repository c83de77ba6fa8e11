#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kvaq/quant/codec_spec.h"
#include "kvaq/quant/transform.h"

namespace kvaq {

/// Lloyd-Max codebook of 2^bits levels for a standard normal variable (Max 1960), in steps of sigma / kLevelsPerSigma, rounded; bits 1 to 6.
[[nodiscard]] std::vector<int8_t> gaussian_codebook(unsigned bits);

/// A transform that needs no calibration: Hadamard rotation, every channel alike, Gaussian codebooks; the gain per token is its root mean square. With equal
/// bits everywhere this is TurboQuant's first stage (Zandieh et al. 2025, arXiv 2504.19874: rotation, Lloyd-Max per coordinate, one norm a token), the norm in
/// 8 bits: b + 8 / dim bits per element.
[[nodiscard]] std::shared_ptr<const TransformFit> gaussian_fit(Side side, size_t dim);

/// Its codec with equal bits (1 to 6 or 8) in every unit of channels; 16 bits stay float16.
[[nodiscard]] CodecSpec gaussian_codec(Side side, size_t dim, CodeBits bits, TransformCodes codes);

}  // namespace kvaq
