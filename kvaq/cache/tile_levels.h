#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvaq/base/aligned_vector.h"
#include "kvaq/base/simd_target.h"
#include "kvaq/cache/tile.h"
#include "kvaq/cache/tile_codes.h"

namespace kvaq {

struct DecodeKernels;

/// How a quantized codec's elements follow from unsigned bytes u, in the codec's basis. Fixed by the layout:
///   x[token][channel] = channel_scale * scale * (u - bias) + offset + channel_offset
/// with scale and offset per (token, block of channels), or per (channel, block of tokens) when per_channel. channel_scale and
/// channel_offset are a transform codec's, the same for all tiles; otherwise 1 and 0.
struct LevelShape {
    bool per_channel = false;
    size_t n_blocks = 1;
    size_t block = 0;   ///< channels (tokens when per_channel) of a block; the last one of channels may be shorter
    size_t stride = 0;  ///< of a block in scale and offset: tokens that are read side by side, or channels padded to 16
    size_t n_channels = 0;  ///< coded ones, from 0: a transform's last channels may have 0 bits
    int32_t bias = 0;
    bool has_offset = false;
    /// Scales (and offsets) are of tokens, so tiles may be read side by side.
    [[nodiscard]] bool joins() const noexcept { return !per_channel; }
    /// One scale (and offset) serves all channels of a token.
    [[nodiscard]] bool one_scale() const noexcept { return joins() && n_blocks == 1; }
    /// Of a block, where blocks are of channels.
    [[nodiscard]] size_t channels_of(size_t at) const noexcept {
        return std::min(block, n_channels - std::min(n_channels, at * block));
    }
};
/// Not for float16.
[[nodiscard]] LevelShape level_shape(const TileLayout& layout) noexcept;

/// A packed tile as attention's integer kernels read it. cells[quad * cell_stride + lane * 4 + i]; keys: lane = token, 4 quad + i =
/// channel; values: lane = channel, 4 quad + i = token.
struct TileLevels {
    AlignedVector<uint8_t> cells;
    size_t cell_stride = 0;
    std::vector<float> scale, offset;  ///< [block][stride], see LevelShape

    /// Makes room for tiles up to these sizes.
    void reserve(size_t head_dim, size_t tile_tokens);
};

/// Reads tiles of one layout on a target. What follows from the layout is found out once.
class LevelReader {
  public:
    /// `tile`: any of the layout's tiles. The layout must outlive the reader.
    LevelReader(SimdTarget target, const TileLayout& layout, const std::byte* tile) noexcept;
    LevelReader(const LevelReader&) = delete;  // codes point inside
    LevelReader& operator=(const LevelReader&) = delete;

    /// Unpacks the tile-th of n_tiles tiles, side by side as if they were one of so many more tokens; LevelShape::stride then counts those, and more than
    /// one need a layout that joins_tiles(). No allocation after TileLevels::reserve().
    void read(const std::byte* packed, TileLevels& levels, size_t tile = 0, size_t n_tiles = 1) noexcept;
    /// Its scales and offsets only, for readers of the packed codes.
    void read_scales(const std::byte* packed, TileLevels& levels, size_t tile = 0, size_t n_tiles = 1) noexcept;

    /// With the stride of what was read last.
    [[nodiscard]] const LevelShape& shape() const noexcept { return shape_; }
    /// Can codes() be read where they lie?
    [[nodiscard]] bool in_planes() const noexcept { return !ternary_; }
    /// Bands with bits, by channel.
    [[nodiscard]] size_t n_bands() const noexcept { return n_bands_; }
    [[nodiscard]] size_t first_channel(size_t band) const noexcept { return bands_[band]->first_channel; }
    /// A band's codes in a tile, if in_planes().
    [[nodiscard]] PackedCodes codes(size_t band, const std::byte* packed) const noexcept {
        PackedCodes codes = codes_[band];
        codes.planes.low = reinterpret_cast<const uint8_t*>(packed) + (codes.planes.low - first_);
        if (codes.planes.high != nullptr)
            codes.planes.high = reinterpret_cast<const uint8_t*>(packed) + (codes.planes.high - first_);
        return codes;
    }
    /// Codes of a block's channels in a key tile, where a band has several blocks.
    [[nodiscard]] PackedCodes key_block_codes(size_t block, const std::byte* packed) const noexcept;
    static constexpr size_t kMostBands = 8;  ///< of different bits: 8, 6, 5, 4, 3, 2, 1, 0

  private:
    const DecodeKernels& kernels_;
    const TileLayout& layout_;
    const uint8_t* first_;
    LevelShape shape_;
    bool ternary_;
    size_t n_bands_ = 0;
    std::array<const Band*, kMostBands> bands_;
    std::array<PackedCodes, kMostBands> codes_;
    alignas(64) std::array<std::array<uint8_t, 64>, kMostBands> tables_;
};

/// Can tiles lie side by side? Not where scales are of channels and blocks of tokens.
[[nodiscard]] bool joins_tiles(const TileLayout& layout) noexcept;

}  // namespace kvaq
