#pragma once

// PRIVATE header of kvaq/cuda: 16 tokens of a page's keys or values as second operands (tile_fragments.cuh), whatever they are stored as.

#include "kvaq/cuda/tile_fragments.cuh"

namespace kvaq::cuda {

/// Sums of two columns of values, p: weights of 16 tokens.
__device__ __forceinline__ void weigh(float (&even)[4], float (&odd)[4], const uint4& p, const Operands& x) {
    multiply(even, p, x.even0, x.even1);
    multiply(odd, p, x.odd0, x.odd1);
}

// --- f16 pages --------------------------------------------------------------------------------------------------------

/// Keys [channel][slot], channels [16 g, 16 g + 16).
__device__ __forceinline__ Operands float16_keys(const uint16_t* keys, uint32_t stride, uint32_t dim, uint32_t g,
                                                 uint32_t first_token, const Lane& lane) {
    const uint32_t channel = 16 * g + 4 * lane.j;
    const bool valid = channel < dim;  // a multiple of 8
    const uint16_t* column = keys + channel * stride + first_token + 2 * lane.n;
    uint32_t w[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) w[i] = valid ? __ldg(reinterpret_cast<const uint32_t*>(column + i * stride)) : 0;
    return {lows(w[0], w[2]), lows(w[1], w[3]), highs(w[0], w[2]), highs(w[1], w[3])};
}

/// Values [slot][channel], channels [16 cell, 16 cell + 16); sums of channels past the last are not kept.
__device__ __forceinline__ Operands float16_values(const uint16_t* values, uint32_t dim, uint32_t cell,
                                                   uint32_t first_token, const Lane& lane) {
    const uint16_t* row = values + (first_token + 4 * lane.j) * dim + min(16 * cell + 2 * lane.n, dim - 2);
    uint32_t w[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) w[i] = __ldg(reinterpret_cast<const uint32_t*>(row + i * dim));
    return {lows(w[0], w[2]), lows(w[1], w[3]), highs(w[0], w[2]), highs(w[1], w[3])};
}

// --- affine codecs ----------------------------------------------------------------------------------------------------

struct AffineReader {
    CodeReader codes;
    ScaleReader scales;

    __device__ AffineReader(const TileCodec& codec, const uint8_t* tile)
        : codes(tile, codec.bands[0]), scales(codec, tile) {}

    __device__ __forceinline__ Operands keys(uint32_t tile_tokens, uint32_t dim, uint32_t g, uint32_t first_token,
                                             const Lane& lane) const {
        return scales.codec.per_channel ? keys_by_channel(tile_tokens, dim, g, first_token, lane)
                                        : keys_by_token(tile_tokens, dim, g, first_token, lane);
    }
    /// Groups along tokens.
    __device__ __forceinline__ Operands keys_by_channel(uint32_t tile_tokens, uint32_t dim, uint32_t g,
                                                        uint32_t first_token, const Lane& lane) const {
        const uint32_t token = first_token + 2 * lane.n;
        const uint32_t quad = min(4 * g + lane.j, dim / 4 - 1);  // past the last one the queries are zero
        const Operands x = numbers_of(codes.read(quad * (tile_tokens / 16) + first_token / 16, lane.n), 0.0F);
        uint32_t scale0, offset0, scale1, offset1;
        scales.read(token, 4 * quad, token, 4 * quad + 2, scale0, offset0);
        scales.read(token, 4 * quad + 1, token, 4 * quad + 3, scale1, offset1);
        return {scaled(x.even0, scale0, offset0), scaled(x.even1, scale1, offset1), scaled(x.odd0, scale0, offset0),
                scaled(x.odd1, scale1, offset1)};
    }
    /// Groups along channels, at least four of them.
    __device__ __forceinline__ Operands keys_by_token(uint32_t tile_tokens, uint32_t dim, uint32_t g,
                                                      uint32_t first_token, const Lane& lane) const {
        const uint32_t token = first_token + 2 * lane.n;
        const uint32_t quad = min(4 * g + lane.j, dim / 4 - 1);
        const Operands x = numbers_of(codes.read(quad * (tile_tokens / 16) + first_token / 16, lane.n), 0.0F);
        uint32_t scale, offset;
        scales.read(token, 4 * quad, token + 1, 4 * quad, scale, offset);
        return {scaled(x.even0, low_twice(scale), low_twice(offset)),
                scaled(x.even1, low_twice(scale), low_twice(offset)),
                scaled(x.odd0, high_twice(scale), high_twice(offset)),
                scaled(x.odd1, high_twice(scale), high_twice(offset))};
    }
    __device__ __forceinline__ Operands values(uint32_t dim, uint32_t cell, uint32_t first_token,
                                               const Lane& lane) const {
        const uint32_t n_cells = (dim + 15) / 16;
        const uint32_t quad = first_token / 4 + lane.j;
        const uint32_t token = 4 * quad;
        cell = min(cell, n_cells - 1);
        const uint32_t channel = min(16 * cell + 2 * lane.n, dim - 2);
        const Operands x = numbers_of(codes.read(quad * n_cells + cell, lane.n), 0.0F);
        if (scales.codec.per_channel) {
            uint32_t scale, offset;
            scales.read(token, channel, token, channel + 1, scale, offset);
            return {scaled(x.even0, low_twice(scale), low_twice(offset)),
                    scaled(x.even1, low_twice(scale), low_twice(offset)),
                    scaled(x.odd0, high_twice(scale), high_twice(offset)),
                    scaled(x.odd1, high_twice(scale), high_twice(offset))};
        }
        uint32_t scale0, offset0, scale1, offset1;
        scales.read(token, channel, token + 2, channel, scale0, offset0);
        scales.read(token + 1, channel, token + 3, channel, scale1, offset1);
        return {scaled(x.even0, scale0, offset0), scaled(x.even1, scale1, offset1), scaled(x.odd0, scale0, offset0),
                scaled(x.odd1, scale1, offset1)};
    }
};

// --- transform codecs: levels only; gains and the channels' scales and offsets are the caller's ------------------------

/// Levels of codes of a band. All lanes must call it.
__device__ __forceinline__ Operands band_levels(uint2 code, const TileBand& band, uint32_t bits, const uint16_t* books,
                                                const uint16_t* outputs, const Lane& lane) {
    if (band.trellis) return trellis_levels_of(code, bits, outputs + (bits - 1) * 256, lane);
    if (bits == 8) return numbers_of(code, 128.0F);
    return levels_of(code, books + (1U << bits) - 2);
}

/// Channels [16 g, 16 g + 16) of the band; past its last one the queries are zero.
__device__ __forceinline__ Operands transform_keys(const CodeReader& codes, const TileBand& band, uint32_t bits,
                                                   uint32_t tile_tokens, uint32_t g, const uint16_t* books,
                                                   const uint16_t* outputs, uint32_t first_token, const Lane& lane) {
    const uint32_t quad = min(4 * g + lane.j, band.n_channels / 4U - 1);
    return band_levels(codes.read(quad * (tile_tokens / 16) + first_token / 16, lane.n), band, bits, books, outputs,
                       lane);
}

/// Channels [16 cell, 16 cell + 16) of the band, which has n_cells.
__device__ __forceinline__ Operands transform_values(const CodeReader& codes, const TileBand& band, uint32_t bits,
                                                     uint32_t n_cells, uint32_t cell, const uint16_t* books,
                                                     const uint16_t* outputs, uint32_t first_token, const Lane& lane) {
    const uint32_t quad = first_token / 4 + lane.j;
    return band_levels(codes.read(quad * n_cells + cell, lane.n), band, bits, books, outputs, lane);
}

/// Gains of tokens 4 quad .. 4 quad + 3.
__device__ __forceinline__ float4 gains_of(const TileCodec& codec, const uint8_t* tile, uint32_t quad) {
    const uint32_t code = __ldg(reinterpret_cast<const uint32_t*>(tile + codec.gains + 4 * quad));
    const auto gain = [code](int i) {
        return exp2f((static_cast<float>((code >> (8 * i)) & 0xFFU) - 128.0F) * 0.0625F);
    };
    return make_float4(gain(0), gain(1), gain(2), gain(3));
}

// --- pages ------------------------------------------------------------------------------------------------------------

/// Where a visit's keys and values of a head are.
struct Tiles {
    const uint8_t* keys;
    const uint8_t* values;
    uint32_t stride;  ///< of f16 pages, in slots

    __device__ Tiles(const LayerView& layer, const Visit& visit, int head, const TileCodec& key_codec,
                     const TileCodec& value_codec)
        : stride(static_cast<uint32_t>(visit.source == Source::kSink ? layer.sink_slots : layer.tile_tokens)) {
        const auto item = static_cast<size_t>(visit.item);
        if (visit.source == Source::kPacked) {
            const uint8_t* page = layer.packed + item * layer.packed_bytes;
            keys = page + key_codec.place;
            values = page + value_codec.place;
            return;
        }
        const uint16_t* page =
            visit.source == Source::kSink
                ? layer.sinks + item * layer.sink_size
                : (visit.source == Source::kOpen ? layer.open : layer.scratch) + item * layer.open_size;
        const auto n = static_cast<size_t>(stride);
        keys = reinterpret_cast<const uint8_t*>(page + static_cast<size_t>(head) * n * layer.dim_k);
        values = reinterpret_cast<const uint8_t*>(
            page + n * (static_cast<size_t>(layer.n_kv_heads) * layer.dim_k + static_cast<size_t>(head) * layer.dim_v));
    }
};

}  // namespace kvaq::cuda
