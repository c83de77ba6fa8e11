#pragma once

// PRIVATE header of kvaq/cache: decode_tile on a chosen target, for tests and benchmarks.

#include "kvaq/base/simd_target.h"
#include "kvaq/cache/tile.h"

namespace kvaq {

/// What the kernels of every target get: one band, its code planes (ternary codes already spread to bytes) and its
/// parameters as f32.
struct DecodeJob {
    const uint8_t* low = nullptr;    ///< plane of the low bits, 64-byte blocks
    const uint8_t* high = nullptr;   ///< second plane, or null
    unsigned low_bits = 0;           ///< 1, 2, 4 or 8
    unsigned high_bits = 0;          ///< 0, 1 or 2
    size_t n_lanes16 = 0;            ///< blocks of 16 lanes: tokens / 16 (keys), padded channels / 16 (values)
    size_t n_quads = 0;              ///< blocks of 4 along the reduction axis: channels / 4 (keys), tokens / 4 (values)
    size_t ld_out = 0;               ///< out[quad_index * ld_out + lane]
    /// scale of element (quad index j, lane i) = scale[j / quad_group * scale_stride + i], an array along the lanes, when
    /// by_lane; otherwise scale[i / lane_group * scale_stride + j], one number for all 16 lanes.
    const float* scale = nullptr;
    const float* offset = nullptr;
    bool by_lane = true;
    size_t quad_group = 1;
    size_t lane_group = 16;
    size_t scale_stride = 0;
};

/// A band of a transform codec: out[j * ld_out + i] = table[code] * quad_scale[j] * lane_scale[i] + (quad_offset[j] + lane_offset[i]).
struct CodebookJob {
    const uint8_t* low = nullptr;
    const uint8_t* high = nullptr;
    unsigned low_bits = 0;
    unsigned high_bits = 0;
    size_t n_lanes16 = 0;
    size_t n_quads = 0;
    size_t ld_out = 0;
    const float* table = nullptr;  ///< 64 entries; null (8 bits): level = code - 128
    const float* quad_scale = nullptr;
    const float* quad_offset = nullptr;
    const float* lane_scale = nullptr;
    const float* lane_offset = nullptr;
};

struct DecodeKernels {
    void (*affine)(const DecodeJob& job, float* out);
    void (*codebook)(const CodebookJob& job, float* out);
    void (*to_float)(const float16* from, size_t n, float* to);
};

[[nodiscard]] const DecodeKernels& decode_kernels(SimdTarget target) noexcept;
void decode_tile_on(SimdTarget target, const TileLayout& layout, const std::byte* packed, float* out) noexcept;

}  // namespace kvaq
