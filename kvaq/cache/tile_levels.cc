#include "kvaq/cache/tile_levels.h"

#include <algorithm>
#include <array>

#include "kvaq/base/clones.h"
#include "kvaq/cache/tile_decode.h"

namespace kvaq {
namespace {

constexpr size_t kMaxElements = 128 * 512;

KVAQ_CLONES void add_multiple(float factor, const float* __restrict x, size_t n, float* __restrict y) noexcept {
    for (size_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

size_t padded(size_t channels) noexcept { return (channels + 15) / 16 * 16; }

}  // namespace

LevelShape level_shape(const TileLayout& layout) noexcept {
    if (layout.spec.transform != nullptr) {
        LevelShape shape{.block = layout.head_dim, .stride = layout.tile_tokens, .bias = kLevelBias};
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

bool joins_tiles(const TileLayout& layout) noexcept { return !layout.spec.is_float16() && level_shape(layout).joins(); }

LevelReader::LevelReader(SimdTarget target, const TileLayout& layout, const std::byte* tile) noexcept
    : kernels_(decode_kernels(target)),
      layout_(layout),
      first_(reinterpret_cast<const uint8_t*>(tile)),
      shape_(level_shape(layout)),
      ternary_(layout.bands[0].bits == CodeBits::kTernary) {
    for (const Band& band : layout.bands) {
        if (static_cast<int>(band.bits) == 0) continue;
        if (!ternary_) codes_[n_bands_] = packed_codes(layout, band, tile, tables_[n_bands_], nullptr);
        bands_[n_bands_++] = &band;
    }
}

void LevelReader::read_scales(const std::byte* packed, TileLevels& levels, size_t tile, size_t n_tiles) noexcept {
    const size_t n = layout_.tile_tokens;
    if (shape_.joins()) shape_.stride = n_tiles * n;
    float* scale = &levels.scale[tile * n];
    if (layout_.spec.transform != nullptr) {
        kernels_.gains(reinterpret_cast<const uint8_t*>(packed + layout_.gain_offset), n, scale);
        return;
    }
    float* offset = &levels.offset[tile * n];
    affine_params(kernels_, layout_, layout_.bands[0], packed, shape_.stride, scale, offset);
    if (shape_.bias == 0 || !shape_.has_offset) return;
    for (size_t block = 0; block < shape_.n_blocks; ++block)
        add_multiple(static_cast<float>(shape_.bias), scale + block * shape_.stride, n, offset + block * shape_.stride);
}

void LevelReader::read(const std::byte* packed, TileLevels& levels, size_t tile, size_t n_tiles) noexcept {
    thread_local std::array<uint8_t, kMaxElements> spread;
    const size_t n = layout_.tile_tokens;
    const bool key = layout_.side == Side::kKey;
    read_scales(packed, levels, tile, n_tiles);
    levels.cell_stride = (key ? n_tiles * n : padded(layout_.head_dim)) * 4;
    uint8_t* cells = &levels.cells[key ? tile * n * 4 : tile * n / 4 * levels.cell_stride];
    for (size_t i = 0; i < n_bands_; ++i) {
        const PackedCodes band =
            ternary_ ? packed_codes(layout_, *bands_[i], packed, tables_[i], spread.data()) : codes(i, packed);
        uint8_t* to = cells + (key ? first_channel(i) / 4 * levels.cell_stride : first_channel(i) / 16 * size_t{64});
        const auto run = band.levels == CodeLevels::kTrellis ? kernels_.trellis : kernels_.levels;
        run(band.planes, band.table, to, levels.cell_stride);
    }
}

PackedCodes LevelReader::key_block_codes(size_t block, const std::byte* packed) const noexcept {
    PackedCodes part = codes(0, packed);
    CodePlanes& planes = part.planes;
    const size_t cells_before =
        block * shape_.block / 4 * planes.n_lanes16;  // whole 64-byte blocks: a block has 32 channels or more
    planes.low += cells_before * 8 * planes.low_bits;
    if (planes.high != nullptr) planes.high += cells_before * 8 * planes.high_bits;
    planes.n_quads = shape_.channels_of(block) / 4;
    return part;
}

}  // namespace kvaq
