#pragma once

// PRIVATE header of kvaq/cache: decode_tile on a chosen target, for tests and benchmarks.

#include "kvaq/base/simd_target.h"
#include "kvaq/cache/tile.h"

namespace kvaq {

/// Code planes of one band (ternary codes already spread to bytes).
struct CodePlanes {
    const uint8_t* low = nullptr;   ///< plane of the low bits, 64-byte blocks
    const uint8_t* high = nullptr;  ///< second plane, or null
    unsigned low_bits = 0;          ///< 1, 2, 4 or 8
    unsigned high_bits = 0;         ///< 0, 1 or 2
    size_t n_lanes16 = 0;           ///< blocks of 16 lanes: tokens / 16 (keys), padded channels / 16 (values)
    size_t n_quads = 0;             ///< blocks of 4 along the reduction axis: channels / 4 (keys), tokens / 4 (values)
};

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
    /// The same for trellis codes: table [256] by window (kvaq/quant/trellis.h).
    void (*trellis)(const CodePlanes& planes, const uint8_t* table, uint8_t* cells, size_t cell_stride);
    void (*to_float)(const float16* from, size_t n, float* to);
    /// to[i] = transform_gain(from[i])
    void (*gains)(const uint8_t* from, size_t n, float* to);
};

/// trellis_outputs + 128, [256].
[[nodiscard]] const uint8_t* trellis_table(unsigned bits) noexcept;

/// Planes of a band; ternary codes are spread into `codes` (band_codes bytes).
[[nodiscard]] CodePlanes code_planes(const TileLayout& layout, const Band& band, const std::byte* packed,
                                     uint8_t* codes) noexcept;
/// Scales and offsets of an affine band, spread. One array of the tile's tokens per block of channels ([channel block][token]), or, where
/// groups run along tokens, one of the channels padded to 16 per block of tokens ([token block][padded channel], padding 0).
void affine_params(const DecodeKernels& kernels, const TileLayout& layout, const Band& band, const std::byte* packed,
                   float* scale, float* offset) noexcept;

[[nodiscard]] const DecodeKernels& decode_kernels(SimdTarget target) noexcept;
void decode_tile_on(SimdTarget target, const TileLayout& layout, const std::byte* packed, float* out) noexcept;

}  // namespace kvaq
