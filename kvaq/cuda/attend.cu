// Attention of one run of visits by one row tile: a block of four warps, each taking 16 of every 64 tokens, so that all of a tile's bytes are asked for
// at once; online softmax, sums of products by the matrix instruction; the warps' states joined in their order.
#include <cuda_runtime.h>

#include "kvaq/cuda/kernels.h"
#include "kvaq/cuda/tile_fragments.cuh"

namespace kvaq::cuda {
namespace {

constexpr uint32_t kWarps = 4;
constexpr uint32_t kThreads = 32 * kWarps;
constexpr uint32_t kBlockTokens = 16;  // of a warp's step
constexpr float kMinusInf = -INFINITY;
constexpr int32_t kLongAgo = INT32_MIN / 2;  // differences of positions with it do not overflow

/// Keys of an f16 page [channel][slot], times the queries' fragments. even, odd: scores of the block's tokens 2 n, 2 n + 1.
__device__ __forceinline__ void score_float16(float (&even)[4], float (&odd)[4], const uint16_t* keys, uint32_t stride,
                                              uint32_t dim, const uint4* fragments, uint32_t first_token,
                                              const Lane& lane) {
    const uint32_t n_groups = (dim + 15) / 16;
    const uint16_t* column = keys + 4 * lane.j * stride + first_token + 2 * lane.n;
#pragma unroll 4
    for (uint32_t g = 0; g < n_groups; ++g) {
        const uint4 high = __ldg(fragments + (2 * g) * 32 + lane.all);
        const uint4 low = __ldg(fragments + (2 * g + 1) * 32 + lane.all);
        const bool valid = 16 * g + 4 * lane.j < dim;  // a multiple of 8
        uint32_t w[4];
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i)
            w[i] = valid ? __ldg(reinterpret_cast<const uint32_t*>(column + (16 * g + i) * stride)) : 0;
        score(even, odd, high, low, {lows(w[0], w[2]), lows(w[1], w[3]), highs(w[0], w[2]), highs(w[1], w[3])});
    }
}

__device__ __forceinline__ void score_affine(float (&even)[4], float (&odd)[4], const TileCodec& codec,
                                             const uint8_t* tile, uint32_t tile_tokens, uint32_t dim,
                                             const uint4* fragments, uint32_t first_token, const Lane& lane) {
    const CodeReader codes(tile, codec.bands[0]);
    const ScaleReader scales(codec, tile);
    const uint32_t n_groups = (dim + 15) / 16;
    const uint32_t token = first_token + 2 * lane.n;
    const uint32_t last_quad = dim / 4 - 1;
    if (codec.per_channel) {
#pragma unroll 2
        for (uint32_t g = 0; g < n_groups; ++g) {
            const uint4 high = __ldg(fragments + (2 * g) * 32 + lane.all);
            const uint4 low = __ldg(fragments + (2 * g + 1) * 32 + lane.all);
            const uint32_t quad = min(4 * g + lane.j, last_quad);  // past the last one the queries are zero
            Operands x = numbers_of(codes.read(quad * (tile_tokens / 16) + first_token / 16, lane.n), 0.0F);
            uint32_t scale0, offset0, scale1, offset1;
            scales.read(token, 4 * quad, token, 4 * quad + 2, scale0, offset0);
            scales.read(token, 4 * quad + 1, token, 4 * quad + 3, scale1, offset1);
            score(even, odd, high, low,
                  {scaled(x.even0, scale0, offset0), scaled(x.even1, scale1, offset1), scaled(x.odd0, scale0, offset0),
                   scaled(x.odd1, scale1, offset1)});
        }
        return;
    }
#pragma unroll 4
    for (uint32_t g = 0; g < n_groups; ++g) {
        const uint4 high = __ldg(fragments + (2 * g) * 32 + lane.all);
        const uint4 low = __ldg(fragments + (2 * g + 1) * 32 + lane.all);
        const uint32_t quad = min(4 * g + lane.j, last_quad);
        const Operands x = numbers_of(codes.read(quad * (tile_tokens / 16) + first_token / 16, lane.n), 0.0F);
        uint32_t scale, offset;
        scales.read(token, 4 * quad, token + 1, 4 * quad, scale, offset);
        score(
            even, odd, high, low,
            {scaled(x.even0, low_twice(scale), low_twice(offset)), scaled(x.even1, low_twice(scale), low_twice(offset)),
             scaled(x.odd0, high_twice(scale), high_twice(offset)),
             scaled(x.odd1, high_twice(scale), high_twice(offset))});
    }
}

/// Levels of codes of a band. All lanes must call it.
__device__ __forceinline__ Operands band_levels(uint2 code, const TileBand& band, uint32_t bits, const uint16_t* books,
                                                const uint16_t* outputs, const Lane& lane) {
    if (band.trellis) return trellis_levels_of(code, bits, outputs + (bits - 1) * 256, lane);
    if (bits == 8) return numbers_of(code, 128.0F);
    return levels_of(code, books + (1U << bits) - 2);
}

/// Levels only: gains, and the channels' scales and offsets, are in the queries and the caller.
__device__ __forceinline__ void score_transform(float (&even)[4], float (&odd)[4], const TileCodec& codec,
                                                const uint8_t* tile, uint32_t tile_tokens, const uint4* fragments,
                                                const uint16_t* books, const uint16_t* outputs, uint32_t first_token,
                                                const Lane& lane) {
    for (int b = 0; b < codec.n_bands; ++b) {
        const TileBand& band = codec.bands[b];
        const uint32_t bits = band.bits;
        if (bits == 0) break;  // bits never rise
        const CodeReader codes(tile, band);
        const uint32_t n_groups = (band.n_channels + 15U) / 16;
        const uint32_t last_quad = band.n_channels / 4U - 1;
#pragma unroll 2
        for (uint32_t g = 0; g < n_groups; ++g, fragments += 64) {
            const uint4 high = __ldg(fragments + lane.all);
            const uint4 low = __ldg(fragments + 32 + lane.all);
            const uint32_t quad = min(4 * g + lane.j, last_quad);  // past the last one the queries are zero
            const uint2 code = codes.read(quad * (tile_tokens / 16) + first_token / 16, lane.n);
            score(even, odd, high, low, band_levels(code, band, bits, books, outputs, lane));
        }
    }
}

/// o += p v over 16 tokens of an f16 page [slot][channel]; cells of 16 channels from first_cell.
template <int kCells>
__device__ __forceinline__ void sum_float16(float (&o)[2 * kCells][4], const uint4& p, const uint16_t* values,
                                            uint32_t dim, uint32_t first_cell, uint32_t first_token, const Lane& lane) {
    const uint16_t* row = values + (first_token + 4 * lane.j) * dim;
#pragma unroll
    for (uint32_t c = 0; c < kCells; ++c) {
        const uint32_t channel =
            min(16 * (first_cell + c) + 2 * lane.n, dim - 2);  // sums of channels past the last are not kept
        uint32_t w[4];
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) w[i] = __ldg(reinterpret_cast<const uint32_t*>(row + i * dim + channel));
        multiply(o[2 * c], p, lows(w[0], w[2]), lows(w[1], w[3]));
        multiply(o[2 * c + 1], p, highs(w[0], w[2]), highs(w[1], w[3]));
    }
}

template <int kCells>
__device__ __forceinline__ void sum_affine(float (&o)[2 * kCells][4], const uint4& p, const TileCodec& codec,
                                           const uint8_t* tile, uint32_t dim, uint32_t first_cell, uint32_t first_token,
                                           const Lane& lane) {
    const CodeReader codes(tile, codec.bands[0]);
    const ScaleReader scales(codec, tile);
    const uint32_t n_cells = (dim + 15) / 16;
    const uint32_t quad = first_token / 4 + lane.j;
    const uint32_t token = 4 * quad;
#pragma unroll
    for (uint32_t c = 0; c < kCells; ++c) {
        const uint32_t cell = min(first_cell + c, n_cells - 1);
        const uint32_t channel = min(16 * cell + 2 * lane.n, dim - 2);
        const Operands x = numbers_of(codes.read(quad * n_cells + cell, lane.n), 0.0F);
        if (codec.per_channel) {
            uint32_t scale, offset;
            scales.read(token, channel, token, channel + 1, scale, offset);
            multiply(o[2 * c], p, scaled(x.even0, low_twice(scale), low_twice(offset)),
                     scaled(x.even1, low_twice(scale), low_twice(offset)));
            multiply(o[2 * c + 1], p, scaled(x.odd0, high_twice(scale), high_twice(offset)),
                     scaled(x.odd1, high_twice(scale), high_twice(offset)));
        } else {
            uint32_t scale0, offset0, scale1, offset1;
            scales.read(token, channel, token + 2, channel, scale0, offset0);
            scales.read(token + 1, channel, token + 3, channel, scale1, offset1);
            multiply(o[2 * c], p, scaled(x.even0, scale0, offset0), scaled(x.even1, scale1, offset1));
            multiply(o[2 * c + 1], p, scaled(x.odd0, scale0, offset0), scaled(x.odd1, scale1, offset1));
        }
    }
}

template <int kCells>
__device__ __forceinline__ void sum_transform(float (&o)[2 * kCells][4], const uint4& p, const TileCodec& codec,
                                              const uint8_t* tile, uint32_t first_cell, const uint16_t* books,
                                              const uint16_t* outputs, uint32_t first_token, const Lane& lane) {
    const uint32_t quad = first_token / 4 + lane.j;
    for (int i = 0; i < codec.n_bands; ++i) {
        const TileBand& band = codec.bands[i];
        const uint32_t bits = band.bits;
        if (bits == 0) break;
        const uint32_t band_cell = band.first_channel / 16;
        const uint32_t n_cells = (band.n_channels + 15U) / 16;
        if (band_cell >= first_cell + kCells || band_cell + n_cells <= first_cell) continue;
        const CodeReader codes(tile, band);
#pragma unroll
        for (uint32_t c = 0; c < kCells; ++c) {
            const uint32_t cell = first_cell + c - band_cell;  // wraps where the band begins later
            if (cell >= n_cells) continue;
            const Operands x = band_levels(codes.read(quad * n_cells + cell, lane.n), band, bits, books, outputs, lane);
            multiply(o[2 * c], p, x.even0, x.even1);
            multiply(o[2 * c + 1], p, x.odd0, x.odd1);
        }
    }
}

/// Gains of tokens 4 quad .. 4 quad + 3.
__device__ __forceinline__ float4 gains_of(const TileCodec& codec, const uint8_t* tile, uint32_t quad) {
    const uint32_t code = __ldg(reinterpret_cast<const uint32_t*>(tile + codec.gains + 4 * quad));
    const auto gain = [code](int i) {
        return exp2f((static_cast<float>((code >> (8 * i)) & 0xFFU) - 128.0F) * 0.0625F);
    };
    return make_float4(gain(0), gain(1), gain(2), gain(3));
}

__device__ __forceinline__ uint32_t halves(float a, float b) { return bits_of(__floats2half2_rn(a, b)); }

/// Asks for [data, data + bytes) to be in the second-level cache; the block's threads share the lines.
__device__ __forceinline__ void prefetch(const void* data, uint32_t bytes) {
    const auto* from = static_cast<const char*>(data);
    for (uint32_t at = threadIdx.x * 128; at < bytes; at += kThreads * 128)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at));
}

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

/// kCells: cells of 16 value channels that a block sums up; heads with more take more blocks.
template <int kCells>
__global__ void __launch_bounds__(kThreads, 3) attend_kernel(const AttendArgs a) {
    constexpr int kStride = 16 * kCells + 4;  // of a row of sums: neighbouring rows in other banks
    __shared__ uint16_t books[2][kBookSize];
    __shared__ uint16_t outputs[6 * 256];
    __shared__ float tops[kWarps][kTileRows], totals[kWarps][kTileRows];
    __shared__ __align__(16) float joined[kTileRows][kStride];
    const int head = static_cast<int>(blockIdx.y);
    const TileCodec& key_codec = a.layer.keys[head];
    const TileCodec& value_codec = a.layer.values[head];
    const int run_index = static_cast<int>(blockIdx.x);
    const Run run = a.runs[run_index];
    const RowTile rows = a.row_tiles[run.row_tile];
    load_books(key_codec, a.trellis, books[0], outputs);
    load_books(value_codec, a.trellis, books[1], outputs);
    const Lane lane{threadIdx.x % 32 / 4, threadIdx.x % 4, threadIdx.x % 32};
    const uint32_t warp = threadIdx.x / 32;
    const auto first_cell = blockIdx.z * kCells;
    const auto dim_k = static_cast<uint32_t>(a.layer.dim_k);
    const auto dim_v = static_cast<uint32_t>(a.layer.dim_v);
    const auto tile_tokens = static_cast<uint32_t>(a.layer.tile_tokens);

    // Rows n and n + 8 are this thread's; rows past the last are computed as the last one and not kept.
    int32_t token[2], position[2], first_seen[2];
    float slope[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int32_t row = rows.first_row + min(static_cast<int32_t>(lane.n) + 8 * i, rows.n_rows - 1);
        token[i] = row / a.layer.group;
        position[i] = rows.first_pos + token[i];
        slope[i] = a.slopes == nullptr ? 0.0F : a.slopes[head * a.layer.group + row % a.layer.group];
        first_seen[i] = a.sliding_window <= 0 ? kLongAgo
                        : a.chunked_window    ? position[i] / a.sliding_window * a.sliding_window
                                              : position[i] - a.sliding_window + 1;
    }
    const int32_t oldest = rows.first_pos + rows.first_row / a.layer.group;
    const int32_t newest = rows.first_pos + (rows.first_row + rows.n_rows - 1) / a.layer.group;
    const int32_t oldest_seen = a.sliding_window <= 0 ? kLongAgo
                                : a.chunked_window    ? oldest / a.sliding_window * a.sliding_window
                                                      : oldest - a.sliding_window + 1;
    __syncthreads();  // books

    float o[2 * kCells][4] = {};
    float top[2] = {kMinusInf, kMinusInf}, total[2] = {0.0F, 0.0F};
    for (int32_t i = 0; i < run.n_visits; ++i) {
        const Visit visit = a.visits[run.first_visit + i];
        const int32_t begin = max(static_cast<int32_t>(visit.begin), oldest_seen - visit.first_pos);
        const int32_t end = min(static_cast<int32_t>(visit.end), newest - visit.first_pos + 1);
        if (begin >= end || rows.first_pos + visit.token_begin > newest || rows.first_pos + visit.token_end <= oldest)
            continue;
        const bool packed = visit.source == Source::kPacked;
        const Tiles tiles(a.layer, visit, head, key_codec, value_codec);
        if (i == 0) prefetch(tiles.values, packed ? value_codec.bytes : tiles.stride * dim_v * 2);
        if (i + 1 < run.n_visits) {
            const Visit next = a.visits[run.first_visit + i + 1];
            const Tiles next_tiles(a.layer, next, head, key_codec, value_codec);
            prefetch(next_tiles.keys, packed ? key_codec.bytes : next_tiles.stride * dim_k * 2);
            prefetch(next_tiles.values, packed ? value_codec.bytes : next_tiles.stride * dim_v * 2);
        }
        const size_t query =
            ((static_cast<size_t>(visit.turn) * a.n_row_tiles + (run.row_tile - a.first_row_tile)) * a.layer.n_kv_heads +
             head) *
                2 +
            (packed ? 1 : 0);
        const uint4* fragments = a.fragments + query * a.n_groups * 64;
        const float2 info[2] = {__ldg(a.row_info + query * kTileRows + lane.n),
                                __ldg(a.row_info + query * kTileRows + lane.n + 8)};
        for (uint32_t first = kBlockTokens * warp; first < tile_tokens; first += kBlockTokens * kWarps) {
            if (static_cast<int32_t>(first + kBlockTokens) <= begin || static_cast<int32_t>(first) >= end) continue;
            float s[2][4] = {};  // tokens 2 n, 2 n + 1 of the block
            const bool transform = packed && key_codec.store == Store::kTransform;
            if (transform) {
                score_transform(s[0], s[1], key_codec, tiles.keys, tile_tokens, fragments, books[0], outputs, first,
                                lane);
            } else if (packed && key_codec.store == Store::kAffine) {
                score_affine(s[0], s[1], key_codec, tiles.keys, tile_tokens, dim_k, fragments, first, lane);
            } else {
                score_float16(s[0], s[1], reinterpret_cast<const uint16_t*>(tiles.keys), tiles.stride, dim_k, fragments,
                              first, lane);
            }
            // Scores bent and masked; the largest of each row.
            float most[2] = {kMinusInf, kMinusInf};
            float4 gain = make_float4(1, 1, 1, 1);
            if (transform) gain = gains_of(key_codec, tiles.keys, first / 4 + lane.j);
#pragma unroll
            for (int half = 0; half < 2; ++half) {  // even lanes of the cell, odd ones
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const int row = k / 2;
                    const int place = (k % 2) * 2 + half;  // of the token in its quad
                    const int32_t slot = static_cast<int32_t>(first + 4 * lane.j) + place;
                    const int32_t at = visit.first_pos + slot;
                    const float g = place == 0 ? gain.x : place == 1 ? gain.y : place == 2 ? gain.z : gain.w;
                    float x = s[half][k] * (g * info[row].x) + info[row].y;
                    if (a.softcap > 0.0F) x = a.softcap * tanhf(x);
                    if (a.slopes != nullptr) x += slope[row] * static_cast<float>(at - position[row]);
                    const bool seen = slot >= visit.begin && slot < visit.end && at <= position[row] &&
                                      at >= first_seen[row] && token[row] >= visit.token_begin &&
                                      token[row] < visit.token_end;
                    x = seen ? x : kMinusInf;
                    s[half][k] = x;
                    most[row] = fmaxf(most[row], x);
                }
            }
            float factor[2];
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                most[row] = fmaxf(most[row], __shfl_xor_sync(0xFFFFFFFFU, most[row], 1));
                most[row] = fmaxf(most[row], __shfl_xor_sync(0xFFFFFFFFU, most[row], 2));
                const float now = fmaxf(top[row], most[row]);
                factor[row] = now == top[row] ? 1.0F : top[row] == kMinusInf ? 0.0F : __expf(top[row] - now);
                top[row] = now;
                total[row] *= factor[row];
            }
            // Weights as the first operand of the sum over tokens.
            const bool gained = packed && value_codec.store == Store::kTransform;
            if (gained) gain = gains_of(value_codec, tiles.values, first / 4 + lane.j);
            if (!gained) gain = make_float4(1, 1, 1, 1);
            float w[2][4];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const float x = s[half][k];
                    w[half][k] = x == kMinusInf ? 0.0F : __expf(x - top[k / 2]);
                    total[k / 2] += w[half][k];
                }
            }
            const uint4 p =
                make_uint4(halves(w[0][0] * gain.x, w[0][1] * gain.z), halves(w[0][2] * gain.x, w[0][3] * gain.z),
                           halves(w[1][0] * gain.y, w[1][1] * gain.w), halves(w[1][2] * gain.y, w[1][3] * gain.w));
            if (__any_sync(0xFFFFFFFFU, factor[0] != 1.0F || factor[1] != 1.0F)) {
#pragma unroll
                for (int c = 0; c < 2 * kCells; ++c) {
#pragma unroll
                    for (int k = 0; k < 4; ++k) o[c][k] *= factor[k / 2];
                }
            }
            if (gained) {
                sum_transform<kCells>(o, p, value_codec, tiles.values, first_cell, books[1], outputs, first, lane);
            } else if (packed && value_codec.store == Store::kAffine) {
                sum_affine<kCells>(o, p, value_codec, tiles.values, dim_v, first_cell, first, lane);
            } else {
                sum_float16<kCells>(o, p, reinterpret_cast<const uint16_t*>(tiles.values), dim_v, first_cell, first,
                                    lane);
            }
        }
    }

    // The warps' states, in their order.
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        total[row] += __shfl_xor_sync(0xFFFFFFFFU, total[row], 1);
        total[row] += __shfl_xor_sync(0xFFFFFFFFU, total[row], 2);
        if (lane.j == 0) {
            tops[warp][lane.n + 8 * row] = top[row];
            totals[warp][lane.n + 8 * row] = total[row];
        }
    }
    __syncthreads();
    float factor[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const uint32_t at = lane.n + 8 * row;
        const float all = fmaxf(fmaxf(tops[0][at], tops[1][at]), fmaxf(tops[2][at], tops[3][at]));
        factor[row] = top[row] == kMinusInf ? 0.0F : __expf(top[row] - all);
    }
    for (uint32_t w = 0; w < kWarps; ++w) {
        if (w == warp) {
#pragma unroll
            for (int row = 0; row < 2; ++row) {
#pragma unroll
                for (int c = 0; c < kCells; ++c) {
                    float4* to = reinterpret_cast<float4*>(&joined[lane.n + 8 * row][16 * c + 4 * lane.j]);
                    float4 sum = w == 0 ? make_float4(0, 0, 0, 0) : *to;
                    sum.x += o[2 * c][2 * row] * factor[row];
                    sum.y += o[2 * c + 1][2 * row] * factor[row];
                    sum.z += o[2 * c][2 * row + 1] * factor[row];
                    sum.w += o[2 * c + 1][2 * row + 1] * factor[row];
                    *to = sum;
                }
            }
        }
        __syncthreads();
    }
    const uint32_t padded = (dim_v + 15) / 16 * 16;
    const size_t first_state = (static_cast<size_t>(head) * a.n_runs + run_index) * kTileRows;
    const uint32_t n_channels = min(16U * kCells, padded - 16 * first_cell);
    for (uint32_t i = threadIdx.x; i < static_cast<uint32_t>(rows.n_rows) * (n_channels / 4); i += kThreads) {
        const uint32_t row = i / (n_channels / 4);
        const uint32_t channel = i % (n_channels / 4) * 4;
        *reinterpret_cast<float4*>(a.sums + (first_state + row) * padded + 16 * first_cell + channel) =
            *reinterpret_cast<const float4*>(&joined[row][channel]);
    }
    if (blockIdx.z == 0 && threadIdx.x < static_cast<uint32_t>(rows.n_rows)) {
        const uint32_t row = threadIdx.x;
        const float all = fmaxf(fmaxf(tops[0][row], tops[1][row]), fmaxf(tops[2][row], tops[3][row]));
        float sum = 0;
        for (uint32_t w = 0; w < kWarps; ++w)
            sum += tops[w][row] == kMinusInf ? 0.0F : totals[w][row] * __expf(tops[w][row] - all);
        a.norms[first_state + row] = make_float2(all, sum);
    }
}

template <int kCells>
int launch(const AttendArgs& args, cudaStream_t stream) noexcept {
    const int n_cells = (args.layer.dim_v + 15) / 16;
    const dim3 grid(static_cast<unsigned>(args.n_runs), static_cast<unsigned>(args.layer.n_kv_heads),
                    static_cast<unsigned>((n_cells + kCells - 1) / kCells));
    attend_kernel<kCells><<<grid, kThreads, 0, stream>>>(args);
    return cudaGetLastError();
}

}  // namespace

int attend_runs(const AttendArgs& args, void* stream) noexcept {
    if (args.n_runs == 0) return 0;
    if (args.layer.dim_v <= 64) return launch<4>(args, static_cast<cudaStream_t>(stream));
    return launch<8>(args, static_cast<cudaStream_t>(stream));
}

}  // namespace kvaq::cuda
