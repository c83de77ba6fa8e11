#include "kvaq/cache/tile_levels.h"

#include <algorithm>
#include <array>

#include "kvaq/cache/tile_decode.h"
#include "kvaq/quant/transform.h"

namespace kvaq {
namespace {

constexpr size_t kMaxElements = 128 * 512;
constexpr int kBias = 128;  // a codebook's int8 levels as unsigned bytes; 8-bit codes are biased by as much already

size_t padded(size_t channels) noexcept { return (channels + 15) / 16 * 16; }

void read_codebook(const DecodeKernels& kernels, const TileLayout& layout, const std::byte* packed, uint8_t* cells,
                   size_t cell_stride, float* scale) noexcept {
    const TransformFit& fit = *layout.spec.transform->fit;
    kernels.gains(reinterpret_cast<const uint8_t*>(packed + layout.gain_offset), layout.tile_tokens, scale);
    for (const Band& band : layout.bands) {
        const auto bits = static_cast<size_t>(band.bits);
        if (bits == 0) continue;
        const size_t first =
            layout.side == Side::kKey ? band.first_channel / 4 * cell_stride : band.first_channel / 16 * size_t{64};
        if (band.coding == BandCoding::kTrellis) {
            kernels.trellis(code_planes(layout, band, packed, nullptr), trellis_table(static_cast<unsigned>(bits)),
                            cells + first, cell_stride);
            continue;
        }
        alignas(64) std::array<uint8_t, 64> table;
        if (bits <= 6) {
            for (size_t i = 0; i < fit.levels[bits].size(); ++i)
                table[i] = static_cast<uint8_t>(fit.levels[bits][i] + kBias);
        }
        kernels.levels(code_planes(layout, band, packed, nullptr), bits == 8 ? nullptr : table.data(), cells + first,
                       cell_stride);
    }
}

}  // namespace

LevelShape level_shape(const TileLayout& layout) noexcept {
    if (layout.spec.transform != nullptr) {
        LevelShape shape{.block = layout.head_dim, .stride = layout.tile_tokens, .bias = kBias};
        for (const Band& band : layout.bands) {
            if (static_cast<int>(band.bits) != 0) shape.n_channels = size_t{band.first_channel} + band.n_channels;
        }
        return shape;
    }
    const Band& band = layout.bands[0];
    if (band.group_channels == 1) {
        return {.per_channel = true,
                .n_blocks = band.n_token_blocks,
                .block = band.group_tokens,
                .stride = padded(layout.head_dim),
                .n_channels = layout.head_dim,
                .has_offset = true};
    }
    // Codes are taken from their middle, so that a rounded weight's error is multiplied with small numbers.
    const int bias = band.bits == CodeBits::kTernary ? 1
                     : band.bits == CodeBits::k1     ? 0
                                                     : 1 << (static_cast<int>(band.bits) - 1);
    return {.n_blocks = band.n_channel_blocks,
            .block = band.group_channels,
            .stride = layout.tile_tokens,
            .n_channels = layout.head_dim,
            .bias = bias,
            .has_offset = !layout.spec.symmetric || bias == 0};
}

void TileLevels::reserve(size_t head_dim, size_t tile_tokens) {
    const size_t n_cells = padded(head_dim) * tile_tokens;
    const size_t n_params = n_cells / 8;  // blocks of at least 32 elements, or of a whole small head of at least 8
    if (cells.size() < n_cells) cells.resize(n_cells);
    if (scale.size() < n_params) scale.resize(n_params);
    if (offset.size() < n_params) offset.resize(n_params);
}

bool joins_tiles(const TileLayout& layout) noexcept {
    if (layout.spec.is_float16()) return false;
    const LevelShape shape = level_shape(layout);
    return !shape.per_channel && shape.n_blocks == 1;
}

void read_levels(SimdTarget target, const TileLayout& layout, const std::byte* packed, TileLevels& levels, size_t tile,
                 size_t n_tiles) noexcept {
    thread_local std::array<uint8_t, kMaxElements> ternary;
    const DecodeKernels& kernels = decode_kernels(target);
    const size_t n = layout.tile_tokens;
    const bool key = layout.side == Side::kKey;
    levels.cell_stride = (key ? n_tiles * n : padded(layout.head_dim)) * 4;
    uint8_t* cells = &levels.cells[key ? tile * n * 4 : tile * n / 4 * levels.cell_stride];
    float* scale = &levels.scale[tile * n];
    if (layout.spec.transform != nullptr) {
        read_codebook(kernels, layout, packed, cells, levels.cell_stride, scale);
        return;
    }
    const Band& band = layout.bands[0];
    float* offset = &levels.offset[tile * n];
    affine_params(kernels, layout, band, packed, scale, offset);
    const LevelShape shape = level_shape(layout);
    if (shape.bias != 0 && shape.has_offset) {
        const auto bias = static_cast<float>(shape.bias);
        for (size_t i = 0; i < shape.n_blocks * shape.stride; ++i) offset[i] += bias * scale[i];
    }
    kernels.levels(code_planes(layout, band, packed, ternary.data()), nullptr, cells, levels.cell_stride);
}

}  // namespace kvaq
