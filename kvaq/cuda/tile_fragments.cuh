#pragma once

// PRIVATE header of kvaq/cuda: tiles as operands of the matrix instruction m16n8k16, straight from their bits.
//
// A thread is (n = lane / 4, j = lane % 4). As the second operand it holds four numbers of column n: two pairs along the sum. Which channel or
// token stands at which place of a sum is free as long as both operands agree, and so is which one a column stands for. So a 32-bit word of a
// code plane, four codes along the sum of one lane (kvaq/cache/tile.h), is a thread's whole operand:
//   columns: tile 2 s of a cell's 16 lanes has the even lanes 2 n, tile 2 s + 1 the odd ones 2 n + 1: a 64-bit load brings both
//   sum:     quad 4 g + j; first pair = its numbers 0 and 2, second pair = 1 and 3

#include <cuda_fp16.h>

#include "kvaq/cuda/device_types.h"

namespace kvaq::cuda {

struct Lane {
    uint32_t n, j, all;
};

__device__ __forceinline__ uint32_t bits_of(__half2 x) { return *reinterpret_cast<uint32_t*>(&x); }
__device__ __forceinline__ __half2 half2_of(uint32_t x) { return *reinterpret_cast<__half2*>(&x); }

/// d += a b, one 16 x 8 x 16 product.
__device__ __forceinline__ void multiply(float (&d)[4], const uint4& a, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

/// Operands of two columns: pairs of the even and of the odd lane.
struct Operands {
    uint32_t even0, even1, odd0, odd1;
};

/// Scores of two columns: queries in two binary16 numbers each.
__device__ __forceinline__ void score(float (&even)[4], float (&odd)[4], const uint4& high, const uint4& low,
                                      const Operands& x) {
    multiply(even, high, x.even0, x.even1);
    multiply(odd, high, x.odd0, x.odd1);
    multiply(even, low, x.even0, x.even1);
    multiply(odd, low, x.odd0, x.odd1);
}

// --- codes ------------------------------------------------------------------------------------------------------------

struct PlaneReader {
    const uint8_t* data;
    uint32_t log_cells, bits, mask;

    __device__ PlaneReader(const uint8_t* tile, const Plane& plane)
        : data(tile + plane.offset), log_cells(plane.log_cells), bits(plane.bits) {
        mask = 0x01010101U * ((1U << bits) - 1U);
    }
    __device__ __forceinline__ uint2 read(uint32_t cell, uint32_t n) const {
        const uint2 word = __ldg(reinterpret_cast<const uint2*>(data + (cell >> log_cells) * 64 + n * 8));
        const uint32_t shift = (cell & ((1U << log_cells) - 1U)) * bits;
        return make_uint2((word.x >> shift) & mask, (word.y >> shift) & mask);
    }
};

/// Codes of a band, one a byte: lanes 2 n (x) and 2 n + 1 (y) of a cell.
struct CodeReader {
    PlaneReader low, high;
    const uint8_t* tile;
    uint32_t ternary_bytes;

    __device__ CodeReader(const uint8_t* tile, const TileBand& band)
        : low(tile, band.planes[0]),
          high(tile, band.planes[1]),
          tile(tile + band.planes[0].offset),
          ternary_bytes(band.ternary ? band.ternary_bytes : 0) {}

    __device__ __forceinline__ uint2 read(uint32_t cell, uint32_t n) const {
        if (ternary_bytes != 0) return read_ternary(cell, n);
        uint2 code = low.read(cell, n);
        if (high.bits != 0) {
            const uint2 more = high.read(cell, n);
            code.x |= more.x << low.bits;
            code.y |= more.y << low.bits;
        }
        return code;
    }

  private:
    __device__ uint2 read_ternary(uint32_t cell, uint32_t n) const {
        const uint32_t digit = cell * 64 / ternary_bytes;
        const uint2 word = __ldg(reinterpret_cast<const uint2*>(tile + cell * 64 - digit * ternary_bytes + n * 8));
        return make_uint2(digit_of(word.x, digit), digit_of(word.y, digit));
    }
    /// The digit in base 3 of four bytes. Reciprocals in 1/65536 that are exact for bytes.
    static __device__ uint32_t digit_of(uint32_t word, uint32_t digit) {
        const uint32_t factor = digit == 0   ? 65536U
                                : digit == 1 ? 21846U
                                : digit == 2 ? 7282U
                                : digit == 3 ? 2428U
                                             : 810U;
        uint32_t out = 0;
        for (int i = 0; i < 4; ++i) {
            const uint32_t quotient = (((word >> (8 * i)) & 0xFFU) * factor) >> 16;
            out |= (quotient - 3U * ((quotient * 21846U) >> 16)) << (8 * i);
        }
        return out;
    }
};

/// Bytes 0 and 2 (or 1 and 3) of a word as binary16 numbers plus 1024.
__device__ __forceinline__ __half2 bytes02(uint32_t word) { return half2_of(__byte_perm(word, 0x64646464U, 0x4240)); }
__device__ __forceinline__ __half2 bytes13(uint32_t word) { return half2_of(__byte_perm(word, 0x64646464U, 0x4341)); }

/// Codes minus `bias`.
__device__ __forceinline__ Operands numbers_of(uint2 code, float bias) {
    const __half2 shift = __float2half2_rn(1024.0F + bias);
    return {bits_of(__hsub2(bytes02(code.x), shift)), bits_of(__hsub2(bytes13(code.x), shift)),
            bits_of(__hsub2(bytes02(code.y), shift)), bits_of(__hsub2(bytes13(code.y), shift))};
}

__device__ __forceinline__ uint32_t pair_of(const uint16_t* table, uint32_t first, uint32_t second) {
    return static_cast<uint32_t>(table[first]) | static_cast<uint32_t>(table[second]) << 16;
}

/// Levels of codes by a table of binary16 numbers.
__device__ __forceinline__ Operands levels_of(uint2 code, const uint16_t* table) {
    const auto byte = [](uint32_t word, int i) { return (word >> (8 * i)) & 0xFFU; };
    return {pair_of(table, byte(code.x, 0), byte(code.x, 2)), pair_of(table, byte(code.x, 1), byte(code.x, 3)),
            pair_of(table, byte(code.y, 0), byte(code.y, 2)), pair_of(table, byte(code.y, 1), byte(code.y, 3))};
}

/// Last bits of four codes, the first code's highest.
__device__ __forceinline__ uint32_t last_bits(uint32_t word) {
    return ((word & 0x01010101U) * 0x08040201U) >> 24 & 0xFU;
}

/// Levels of trellis codes: every window is a code and the last bits of those before it in the cell (kvaq/quant/trellis.h). All lanes must call it.
__device__ __forceinline__ Operands trellis_levels_of(uint2 code, uint32_t bits, const uint16_t* table,
                                                      const Lane& lane) {
    const uint32_t own = last_bits(code.y) | last_bits(code.x) << 4;
    const uint32_t before = __shfl_sync(0xFFFFFFFFU, own, ((lane.n + 7) % 8) * 4 + lane.j);
    const uint32_t history_x = own >> 4 | before << 4;
    const uint32_t history_y = own | (before & 0xFU) << 8;
    const auto window = [bits](uint32_t word, uint32_t history, int i) {
        return ((word >> (8 * i)) & 0xFFU) | ((history >> (4 - i)) << bits & 0xFFU);
    };
    return {pair_of(table, window(code.x, history_x, 0), window(code.x, history_x, 2)),
            pair_of(table, window(code.x, history_x, 1), window(code.x, history_x, 3)),
            pair_of(table, window(code.y, history_y, 0), window(code.y, history_y, 2)),
            pair_of(table, window(code.y, history_y, 1), window(code.y, history_y, 3))};
}

// --- scales of affine codecs ------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t low_twice(uint32_t x) { return __byte_perm(x, 0, 0x1010); }
__device__ __forceinline__ uint32_t high_twice(uint32_t x) { return __byte_perm(x, 0, 0x3232); }
__device__ __forceinline__ uint32_t lows(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
__device__ __forceinline__ uint32_t highs(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }

__device__ __forceinline__ uint32_t scaled(uint32_t x, uint32_t scale, uint32_t offset) {
    return bits_of(__hfma2(half2_of(x), half2_of(scale), half2_of(offset)));
}

/// Scale and offset of elements, two at a time as binary16 pairs.
struct ScaleReader {
    const TileCodec& codec;
    const uint8_t* tile;
    __half2 symmetric;

    __device__ ScaleReader(const TileCodec& codec, const uint8_t* tile)
        : codec(codec), tile(tile), symmetric(__float2half2_rn(codec.symmetric_offset)) {}

    __device__ __forceinline__ uint32_t index(uint32_t token, uint32_t channel) const {
        return (token >> codec.token_shift) * codec.n_channel_blocks + (channel >> codec.channel_shift);
    }
    __device__ __forceinline__ uint32_t pair(uint32_t at, uint32_t first, uint32_t second) const {
        const auto* table = reinterpret_cast<const uint16_t*>(tile + at);
        return static_cast<uint32_t>(__ldg(table + first)) | static_cast<uint32_t>(__ldg(table + second)) << 16;
    }
    /// Of (t0, c0) and (t1, c1).
    __device__ __forceinline__ void read(uint32_t t0, uint32_t c0, uint32_t t1, uint32_t c1, uint32_t& scale,
                                         uint32_t& offset) const {
        const uint32_t first = index(t0, c0);
        const uint32_t second = index(t1, c1);
        scale = pair(codec.scales, first, second);
        offset = codec.symmetric ? bits_of(__hmul2(half2_of(scale), symmetric)) : pair(codec.offsets, first, second);
    }
};

// --- tables of levels in shared memory --------------------------------------------------------------------------------

/// Codebooks [128] (that of b bits begins at 2^b - 2), then trellis outputs [6][256], as binary16.
inline constexpr int kBookSize = 128;

/// Fills what a head's codec needs of them. All threads of the block call it; the caller synchronizes.
__device__ inline void load_books(const TileCodec& codec, const int8_t* trellis, uint16_t* books, uint16_t* outputs) {
    for (int b = 0; b < codec.n_bands; ++b) {
        const TileBand& band = codec.bands[b];
        if (band.bits == 0 || band.bits > 6 || codec.store != Store::kTransform) continue;
        const int n = band.trellis ? 256 : 1 << band.bits;
        const int8_t* from = band.trellis ? trellis + (band.bits - 1) * 256 : codec.levels + (1 << band.bits) - 2;
        uint16_t* to = band.trellis ? outputs + (band.bits - 1) * 256 : books + (1 << band.bits) - 2;
        for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x))
            to[i] = __half_as_ushort(__float2half(static_cast<float>(from[i])));
    }
}

}  // namespace kvaq::cuda
