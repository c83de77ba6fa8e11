#pragma once

// PRIVATE header of kvaq/cuda: what a tile layout is for the kernels.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvaq/cache/tile.h"
#include "kvaq/cuda/device_types.h"

namespace kvaq::cuda {

/// A layout as kernels read it; the pointers to tables stay null. place: of the tile in a packed page, bytes.
[[nodiscard]] TileCodec tile_codec_of(const TileLayout& layout, size_t place);

/// Groups of 16 channels that queries are cut into for such keys, at least those of plain f16 keys.
[[nodiscard]] size_t query_groups(const TileCodec& keys, size_t head_dim);

/// A transform codec's tables in the order of TileCodec's pointers: channel scales, channel offsets, row scales (floats), matrix, codebooks. Every
/// part begins at a multiple of 16 bytes.
struct CodecTables {
    std::vector<std::byte> bytes;
    size_t channel_offset = 0, row_scale = 0, matrix = 0, levels = 0;
};
[[nodiscard]] CodecTables codec_tables_of(const CodecSpec& spec);

/// Trellis outputs of 1 to 6 bits, [6][256].
[[nodiscard]] std::vector<int8_t> trellis_table();

}  // namespace kvaq::cuda
