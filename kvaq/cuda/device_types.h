#pragma once

// PRIVATE header of kvaq/cuda: what host code and kernels share. Plain data; no other kvaq header, so that both compilers see the same.

#include <vector_types.h>

#include <cstddef>
#include <cstdint>

namespace kvaq::cuda {

/// A matrix instruction's rows: query rows (token x head of a KV head's group) that one warp holds.
inline constexpr int kTileRows = 16;
inline constexpr int kMaxBands = 8;
inline constexpr int kMaxHeadDim = 512;
/// Most partial results of each kind (packed, f16) that one row is merged from.
inline constexpr int kMaxRuns = 128;

enum class Store : uint8_t { kFloat16, kAffine, kTransform };
enum class BasisKind : uint8_t { kIdentity, kHadamard, kMatrix };

/// A plane of codes: cells of 64 codes, 2^log_cells of them in a 64-byte block (kvaq/cache/tile.h).
struct Plane {
    uint32_t offset = 0;  ///< bytes from the tile's start
    uint8_t bits = 0;     ///< 0: there is none
    uint8_t log_cells = 0;
};

struct TileBand {
    uint16_t first_channel = 0;
    uint16_t n_channels = 0;
    uint8_t bits = 0;  ///< 0 to 6, 8
    bool trellis = false;
    bool ternary = false;
    Plane planes[2];
    uint32_t ternary_bytes = 0;
};

/// How the tiles of one (layer, side, KV head) are read.
struct TileCodec {
    Store store = Store::kFloat16;
    BasisKind basis = BasisKind::kIdentity;
    uint8_t n_bands = 0;
    bool per_channel = false;   ///< affine: groups along tokens
    bool symmetric = false;     ///< affine: offset = symmetric_offset * scale
    uint8_t token_shift = 0;    ///< affine: group row of token t is t >> token_shift
    uint8_t channel_shift = 0;  ///< affine: group column of channel c is c >> channel_shift (31: one column)
    uint16_t n_channel_blocks = 1;
    float symmetric_offset = 0;
    uint32_t place = 0;  ///< of the tile in a packed page, bytes
    uint32_t bytes = 0;  ///< of a tile
    uint32_t scales = 0, offsets = 0, gains = 0;
    // Transform codecs and their bases, device memory.
    const float* channel_scale = nullptr;
    const float* channel_offset = nullptr;
    const float* row_scale = nullptr;
    const int8_t* matrix = nullptr;
    const int8_t* levels = nullptr;  ///< codebooks of 1 to 6 bits: that of b bits begins at 2^b - 2
    TileBand bands[kMaxBands];
};

enum class Source : uint8_t { kPacked, kOpen, kScratch, kSink };

/// Tokens of a page that the query tokens [token_begin, token_end) of a block look at: slot j of [begin, end) at position first_pos + j.
struct Visit {
    int32_t item = 0;  ///< in the source's arena
    int32_t first_pos = 0;
    int16_t begin = 0, end = 0;
    int16_t token_begin = 0, token_end = 0;
    int16_t turn = 0;  ///< which of the queries' turns
    Source source = Source::kPacked;
};

/// Up to kTileRows query rows of a block, with one KV head.
struct RowTile {
    int32_t first_token = 0;  ///< of the block, in the micro-batch
    int32_t first_pos = 0;
    int32_t first_row = 0;  ///< in the block: row = token * heads_per_kv + head of the group
    int32_t n_rows = 0;
    int32_t first_run = 0;  ///< runs of packed visits, then of f16 ones
    int32_t n_packed_runs = 0;
    int32_t n_runs = 0;
    bool in_block = false;  ///< done by attend_blocks, not by attend_tiles
};

/// Row tiles side by side whose runs have the same visits: what these read is made operands once for all of them. Results do not depend on which
/// tiles are in a block together.
struct RowBlock {
    int32_t first_row_tile = 0;
    int32_t n_row_tiles = 0;  ///< up to kBlockTiles
    int32_t run = 0;          ///< which of each tile's runs
};
inline constexpr int kBlockTiles = 8;

/// Visits of one kind (packed or f16) by one row tile: per KV head the work of four warps in attend_tiles, of one in attend_blocks.
struct Run {
    int32_t row_tile = 0;
    int32_t first_visit = 0;
    int32_t n_visits = 0;
};

/// A token's K and V to be written to an f16 page.
struct RowWrite {
    int32_t token = 0;
    int32_t item = 0;
    int16_t slot = 0;
    bool scratch = false;
    bool clear_rest =
        false;  ///< the page's first tokens: slots past this one hold what was there before, which need not be finite
};

/// Strided rows in device memory, strides in elements.
template <typename T>
struct DeviceRows {
    T* data = nullptr;
    size_t token_stride = 0, head_stride = 0;
};

/// A layer's memory on the device.
struct LayerView {
    const TileCodec* keys = nullptr;  ///< [n_kv_heads]
    const TileCodec* values = nullptr;
    uint8_t* packed = nullptr;
    uint16_t* open = nullptr;
    uint16_t* scratch = nullptr;
    uint16_t* sinks = nullptr;
    size_t packed_bytes = 0;  ///< of an item
    size_t open_size = 0;     ///< numbers of an item, scratch likewise
    size_t sink_size = 0;
    int32_t tile_tokens = 64;
    int32_t sink_slots = 0;  ///< room in a sink item, a multiple of 16
    int32_t n_kv_heads = 0, group = 0, dim_k = 0, dim_v = 0;
};

struct AppendArgs {
    LayerView layer;
    const RowWrite* writes = nullptr;
    int32_t n_writes = 0;
    DeviceRows<const uint16_t> k, v;
    uint16_t* host_k = nullptr;  ///< mapped host memory [token][head][channel], or null
    uint16_t* host_v = nullptr;
};

struct PrepareArgs {
    LayerView layer;
    const RowTile* row_tiles = nullptr;
    int32_t n_row_tiles = 0;
    int32_t n_turns = 0;
    DeviceRows<const float> q;
    float scale = 1;
    // Turns: channel pairs of rope, [turn][n_pairs] cosines and sines; null if no query is turned.
    const double* cosines = nullptr;
    const double* sines = nullptr;
    int32_t n_pairs = 0, first_channel = 0;
    bool interleaved = false;
    uint4* fragments = nullptr;
    float2* row_info = nullptr;
    int32_t n_groups = 0;  ///< room for groups of 16 channels
};

struct AttendArgs {
    LayerView layer;
    const RowTile* row_tiles = nullptr;
    const RowBlock* blocks = nullptr;
    const Run* runs = nullptr;  ///< those of the first row tile, and on
    const Visit* visits = nullptr;
    int32_t first_row_tile = 0;  ///< that of fragments, row_info
    int32_t first_run = 0;       ///< that of runs, sums, norms
    int32_t n_row_tiles = 0, n_runs = 0, n_groups = 0;
    int32_t n_blocks = 0;
    bool all_in_blocks = false;
    const uint4* fragments = nullptr;
    const float2* row_info = nullptr;
    const int8_t* trellis = nullptr;  ///< [6][256]
    float softcap = 0;
    const float* slopes = nullptr;  ///< ALiBi, [n_heads], or null
    int32_t sliding_window = 0;
    bool chunked_window = false;
    float* sums = nullptr;    ///< [kv head][run][kTileRows][padded dim_v]
    float2* norms = nullptr;  ///< [kv head][run][kTileRows] largest score, sum of weights
};

struct MergeArgs {
    LayerView layer;
    const RowTile* row_tiles = nullptr;
    int32_t n_row_tiles = 0, n_runs = 0;
    int32_t first_run = 0;  ///< that of sums, norms
    const float* sums = nullptr;
    const float2* norms = nullptr;
    const float* sink_logits = nullptr;  ///< [n_heads] or null
    DeviceRows<float> out;
};

/// n items of `bytes` bytes (a multiple of 16) from mapped host memory to target + ids[i] * stride.
struct ScatterArgs {
    const uint4* from = nullptr;
    const int32_t* ids = nullptr;
    uint8_t* target = nullptr;
    size_t bytes = 0, stride = 0;
    int32_t n = 0;
};

}  // namespace kvaq::cuda
