#pragma once

// PRIVATE header of kvaq/cache: decode_tile on a chosen target, for tests and benchmarks.

#include "kvaq/base/simd_target.h"
#include "kvaq/cache/tile.h"
#include "kvaq/cache/tile_codes.h"

namespace kvaq {

/// An affine band and its parameters as f32.
struct DecodeJob {
    CodePlanes planes;
    size_t ld_out = 0;  ///< out[quad_index * ld_out + lane]
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
    CodePlanes planes;
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
    /// cells[quad * cell_stride + lane * 4 + i] = table[code], table of 64 bytes; null or 8 bits: the code itself.
    void (*levels)(const CodePlanes& planes, const uint8_t* table, uint8_t* cells, size_t cell_stride);
    /// The same for trellis codes: table [256] as trellis_table has it.
    void (*trellis)(const CodePlanes& planes, const uint8_t* table, uint8_t* cells, size_t cell_stride);
    void (*to_float)(const float16* from, size_t n, float* to);
    /// to[i] = transform_gain(from[i])
    void (*gains)(const uint8_t* from, size_t n, float* to);
};

/// Scales and offsets of an affine band, spread. One array of the tile's tokens per block of channels ([channel block][token], `stride` from block to block), or, where
/// groups run along tokens, one of the channels padded to 16 per block of tokens ([token block][padded channel], padding 0).
void affine_params(const DecodeKernels& kernels, const TileLayout& layout, const Band& band, const std::byte* packed,
                   size_t stride, float* scale, float* offset) noexcept;

[[nodiscard]] const DecodeKernels& decode_kernels(SimdTarget target) noexcept;
void decode_tile_on(SimdTarget target, const TileLayout& layout, const std::byte* packed, float* out) noexcept;

}  // namespace kvaq
