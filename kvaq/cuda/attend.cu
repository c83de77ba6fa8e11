// Attention of one run of visits by one row tile: a block of four warps, each taking 16 of every 64 tokens, so that all of a tile's bytes are asked for
// at once; online softmax, sums of products by the matrix instruction; the warps' states joined in their order.
#include <cuda_runtime.h>

#include "kvaq/cuda/attend_rows.cuh"
#include "kvaq/cuda/kernels.h"
#include "kvaq/cuda/tile_operands.cuh"

namespace kvaq::cuda {
namespace {

constexpr uint32_t kWarps = 4;
constexpr uint32_t kThreads = 32 * kWarps;
constexpr uint32_t kBlockTokens = 16;  // of a warp's step

/// Keys of an f16 page [channel][slot], times the queries' fragments. even, odd: scores of the block's tokens 2 n, 2 n + 1.
__device__ __forceinline__ void score_float16(float (&even)[4], float (&odd)[4], const uint16_t* keys, uint32_t stride,
                                              uint32_t dim, const uint4* fragments, uint32_t first_token,
                                              const Lane& lane) {
    const uint32_t n_groups = (dim + 15) / 16;
#pragma unroll 4
    for (uint32_t g = 0; g < n_groups; ++g) {
        const uint4 high = __ldg(fragments + (2 * g) * 32 + lane.all);
        const uint4 low = __ldg(fragments + (2 * g + 1) * 32 + lane.all);
        score(even, odd, high, low, float16_keys(keys, stride, dim, g, first_token, lane));
    }
}

__device__ __forceinline__ void score_affine(float (&even)[4], float (&odd)[4], const TileCodec& codec,
                                             const uint8_t* tile, uint32_t tile_tokens, uint32_t dim,
                                             const uint4* fragments, uint32_t first_token, const Lane& lane) {
    const AffineReader reader(codec, tile);
    const uint32_t n_groups = (dim + 15) / 16;
    if (codec.per_channel) {
#pragma unroll 2
        for (uint32_t g = 0; g < n_groups; ++g) {
            const uint4 high = __ldg(fragments + (2 * g) * 32 + lane.all);
            const uint4 low = __ldg(fragments + (2 * g + 1) * 32 + lane.all);
            score(even, odd, high, low, reader.keys_by_channel(tile_tokens, dim, g, first_token, lane));
        }
        return;
    }
#pragma unroll 4
    for (uint32_t g = 0; g < n_groups; ++g) {
        const uint4 high = __ldg(fragments + (2 * g) * 32 + lane.all);
        const uint4 low = __ldg(fragments + (2 * g + 1) * 32 + lane.all);
        score(even, odd, high, low, reader.keys_by_token(tile_tokens, dim, g, first_token, lane));
    }
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
#pragma unroll 2
        for (uint32_t g = 0; g < n_groups; ++g, fragments += 64) {
            const uint4 high = __ldg(fragments + lane.all);
            const uint4 low = __ldg(fragments + 32 + lane.all);
            score(even, odd, high, low,
                  transform_keys(codes, band, bits, tile_tokens, g, books, outputs, first_token, lane));
        }
    }
}

/// o += p v over 16 tokens of an f16 page [slot][channel]; cells of 16 channels from first_cell.
template <int kCells>
__device__ __forceinline__ void sum_float16(float (&o)[2 * kCells][4], const uint4& p, const uint16_t* values,
                                            uint32_t dim, uint32_t first_cell, uint32_t first_token, const Lane& lane) {
#pragma unroll
    for (uint32_t c = 0; c < kCells; ++c)
        weigh(o[2 * c], o[2 * c + 1], p, float16_values(values, dim, first_cell + c, first_token, lane));
}

template <int kCells>
__device__ __forceinline__ void sum_affine(float (&o)[2 * kCells][4], const uint4& p, const TileCodec& codec,
                                           const uint8_t* tile, uint32_t dim, uint32_t first_cell, uint32_t first_token,
                                           const Lane& lane) {
    const AffineReader reader(codec, tile);
#pragma unroll
    for (uint32_t c = 0; c < kCells; ++c)
        weigh(o[2 * c], o[2 * c + 1], p, reader.values(dim, first_cell + c, first_token, lane));
}

template <int kCells>
__device__ __forceinline__ void sum_transform(float (&o)[2 * kCells][4], const uint4& p, const TileCodec& codec,
                                              const uint8_t* tile, uint32_t first_cell, const uint16_t* books,
                                              const uint16_t* outputs, uint32_t first_token, const Lane& lane) {
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
            weigh(o[2 * c], o[2 * c + 1], p,
                  transform_values(codes, band, bits, n_cells, cell, books, outputs, first_token, lane));
        }
    }
}

/// Asks for [data, data + bytes) to be in the second-level cache; the block's threads share the lines.
__device__ __forceinline__ void prefetch(const void* data, uint32_t bytes) {
    const auto* from = static_cast<const char*>(data);
    for (uint32_t at = threadIdx.x * 128; at < bytes; at += kThreads * 128)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at));
}

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
    if (rows.in_block) return;  // attend_blocks.cu
    load_books(key_codec, a.trellis, books[0], outputs);
    load_books(value_codec, a.trellis, books[1], outputs);
    const Lane lane{threadIdx.x % 32 / 4, threadIdx.x % 4, threadIdx.x % 32};
    const uint32_t warp = threadIdx.x / 32;
    const auto first_cell = blockIdx.z * kCells;
    const auto dim_k = static_cast<uint32_t>(a.layer.dim_k);
    const auto dim_v = static_cast<uint32_t>(a.layer.dim_v);
    const auto tile_tokens = static_cast<uint32_t>(a.layer.tile_tokens);

    const RowView mine(a, rows, head, lane);
    __syncthreads();  // books

    float o[2 * kCells][4] = {};
    float top[2] = {kMinusInf, kMinusInf}, total[2] = {0.0F, 0.0F};
    for (int32_t i = 0; i < run.n_visits; ++i) {
        const Visit visit = a.visits[run.first_visit + i];
        const Seen seen = seen_of(visit, mine.first_pos, mine.oldest, mine.newest, mine.oldest_seen);
        if (!seen.something()) continue;
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
            if (static_cast<int32_t>(first + kBlockTokens) <= seen.begin || static_cast<int32_t>(first) >= seen.end)
                continue;
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
                    const float g = place == 0 ? gain.x : place == 1 ? gain.y : place == 2 ? gain.z : gain.w;
                    float x = mine.bent(a, s[half][k] * (g * info[row].x) + info[row].y, row, visit.first_pos + slot);
                    x = mine.sees(visit, row, slot) ? x : kMinusInf;
                    s[half][k] = x;
                    most[row] = fmaxf(most[row], x);
                }
            }
            float factor[2];
            new_top(most, top, total, factor);
            const bool gained = packed && value_codec.store == Store::kTransform;
            gain = gained ? gains_of(value_codec, tiles.values, first / 4 + lane.j) : make_float4(1, 1, 1, 1);
            const uint4 p = weights_of(s, top, total, gain);
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

int attend_tiles(const AttendArgs& args, void* stream) noexcept {
    if (args.n_runs == 0 || args.all_in_blocks) return 0;
    if (args.layer.dim_v <= 64) return launch<4>(args, static_cast<cudaStream_t>(stream));
    return launch<8>(args, static_cast<cudaStream_t>(stream));
}

}  // namespace kvaq::cuda
