// Attention of one run of visits by one row tile: one warp, online softmax, sums of products by the matrix instruction.
#include <cuda_runtime.h>

#include "kvaq/cuda/kernels.h"
#include "kvaq/cuda/tile_fragments.cuh"

namespace kvaq::cuda {
namespace {

constexpr int kWarps = 4;
constexpr float kMinusInf = -INFINITY;
constexpr int32_t kLongAgo = INT32_MIN / 2;  // differences of positions with it do not overflow
constexpr int kStepTokens = 64;  // tokens that a warp scores at once: the score registers
constexpr int kBlocks = kStepTokens / 16;

/// The part of a visit that one step covers.
struct Step {
    uint32_t first_token;          // of the step, in the tile: 0 or 64
    uint32_t first_block, end_block;  // blocks of 16 tokens that hold visible ones
};

/// Keys of an f16 page [channel][slot], times the queries' fragments.
__device__ __forceinline__ void score_float16(float (&s)[2 * kBlocks][4], const uint16_t* keys, uint32_t stride,
                                              uint32_t dim, const uint4* fragments, const Step& step, const Lane& lane) {
    const uint32_t n_groups = (dim + 15) / 16;
    for (uint32_t g = 0; g < n_groups; ++g) {
        const uint4 high = __ldg(fragments + (2 * g) * 32 + lane.all);
        const uint4 low = __ldg(fragments + (2 * g + 1) * 32 + lane.all);
        const uint32_t channel = 16 * g + 4 * lane.j;
        const uint16_t* column = keys + channel * stride + step.first_token + 2 * lane.n;
#pragma unroll
        for (uint32_t b = 0; b < kBlocks; ++b) {
            if (b < step.first_block || b >= step.end_block) continue;
            uint32_t w[4] = {0, 0, 0, 0};
            if (channel < dim) {  // a multiple of 8, so of 4
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i)
                    w[i] = __ldg(reinterpret_cast<const uint32_t*>(column + i * stride + 16 * b));
            }
            const uint32_t even0 = lows(w[0], w[2]), even1 = lows(w[1], w[3]);
            const uint32_t odd0 = highs(w[0], w[2]), odd1 = highs(w[1], w[3]);
            multiply(s[2 * b], high, even0, even1);
            multiply(s[2 * b], low, even0, even1);
            multiply(s[2 * b + 1], high, odd0, odd1);
            multiply(s[2 * b + 1], low, odd0, odd1);
        }
    }
}

__device__ __forceinline__ void score(float (&even)[4], float (&odd)[4], const uint4& high, const uint4& low,
                                      const Operands& x) {
    multiply(even, high, x.even0, x.even1);
    multiply(even, low, x.even0, x.even1);
    multiply(odd, high, x.odd0, x.odd1);
    multiply(odd, low, x.odd0, x.odd1);
}

__device__ __forceinline__ void score_affine(float (&s)[2 * kBlocks][4], const TileCodec& codec, const uint8_t* tile,
                                             uint32_t tile_tokens, uint32_t dim, const uint4* fragments, const Step& step,
                                             const Lane& lane) {
    const CodeReader codes(tile, codec.bands[0]);
    const ScaleReader scales(codec, tile);
    const uint32_t n_groups = (dim + 15) / 16;
    uint32_t scale[kBlocks] = {}, offset[kBlocks] = {};
    uint32_t column = ~0U;
    for (uint32_t g = 0; g < n_groups; ++g) {
        const uint4 high = __ldg(fragments + (2 * g) * 32 + lane.all);
        const uint4 low = __ldg(fragments + (2 * g + 1) * 32 + lane.all);
        const uint32_t quad = 4 * g + lane.j;
        const bool valid = 4 * quad < dim;
        if (!codec.per_channel && valid && (4 * quad) >> codec.channel_shift != column) {
            column = (4 * quad) >> codec.channel_shift;
#pragma unroll
            for (uint32_t b = 0; b < kBlocks; ++b) {
                const uint32_t token = step.first_token + 16 * b + 2 * lane.n;
                scales.read(token, 4 * quad, token + 1, 4 * quad, scale[b], offset[b]);
            }
        }
#pragma unroll
        for (uint32_t b = 0; b < kBlocks; ++b) {
            if (b < step.first_block || b >= step.end_block) continue;
            Operands x = {0, 0, 0, 0};
            if (valid) {
                x = numbers_of(codes.read(quad * (tile_tokens / 16) + step.first_token / 16 + b, lane.n), 0.0F);
                if (codec.per_channel) {
                    const uint32_t token = step.first_token + 16 * b + 2 * lane.n;
                    uint32_t scale0, offset0, scale1, offset1;
                    scales.read(token, 4 * quad, token, 4 * quad + 2, scale0, offset0);
                    scales.read(token, 4 * quad + 1, token, 4 * quad + 3, scale1, offset1);
                    x.even0 = scaled(x.even0, scale0, offset0);
                    x.even1 = scaled(x.even1, scale1, offset1);
                    x.odd0 = scaled(x.odd0, scale0, offset0);
                    x.odd1 = scaled(x.odd1, scale1, offset1);
                } else {
                    x.even0 = scaled(x.even0, low_twice(scale[b]), low_twice(offset[b]));
                    x.even1 = scaled(x.even1, low_twice(scale[b]), low_twice(offset[b]));
                    x.odd0 = scaled(x.odd0, high_twice(scale[b]), high_twice(offset[b]));
                    x.odd1 = scaled(x.odd1, high_twice(scale[b]), high_twice(offset[b]));
                }
            }
            score(s[2 * b], s[2 * b + 1], high, low, x);
        }
    }
}

/// Levels only: gains, and the channels' scales and offsets, are in the queries and the caller.
__device__ __forceinline__ void score_transform(float (&s)[2 * kBlocks][4], const TileCodec& codec, const uint8_t* tile,
                                                uint32_t tile_tokens, const uint4* fragments, const uint16_t* books,
                                                const uint16_t* outputs, const Step& step, const Lane& lane) {
    for (int b = 0; b < codec.n_bands; ++b) {
        const TileBand& band = codec.bands[b];
        const uint32_t bits = band.bits;
        if (bits == 0) break;  // bits never rise
        const CodeReader codes(tile, band);
        const uint32_t n_groups = (band.n_channels + 15U) / 16;
        for (uint32_t g = 0; g < n_groups; ++g, fragments += 64) {
            const uint4 high = __ldg(fragments + lane.all);
            const uint4 low = __ldg(fragments + 32 + lane.all);
            const uint32_t quad = 4 * g + lane.j;
            const bool valid = 4 * quad < band.n_channels;
#pragma unroll
            for (uint32_t block = 0; block < kBlocks; ++block) {
                if (block < step.first_block || block >= step.end_block) continue;
                uint2 code = make_uint2(0, 0);
                if (valid) code = codes.read(quad * (tile_tokens / 16) + step.first_token / 16 + block, lane.n);
                Operands x;
                if (band.trellis) {
                    x = trellis_levels_of(code, bits, outputs + (bits - 1) * 256, lane);
                } else if (bits == 8) {
                    x = numbers_of(code, 128.0F);
                } else {
                    x = levels_of(code, books + (1U << bits) - 2);
                }
                if (!valid) x = {0, 0, 0, 0};
                score(s[2 * block], s[2 * block + 1], high, low, x);
            }
        }
    }
}

/// o += p v over an f16 page [slot][channel]; cells of 16 channels from first_cell.
template <int kCells>
__device__ __forceinline__ void sum_float16(float (&o)[2 * kCells][4], const uint4 (&p)[kBlocks], const uint16_t* values,
                                            uint32_t dim, uint32_t first_cell, const Step& step, const Lane& lane) {
#pragma unroll
    for (uint32_t c = 0; c < kCells; ++c) {
        const uint32_t channel = 16 * (first_cell + c) + 2 * lane.n;
        if (16 * (first_cell + c) >= dim) break;
#pragma unroll
        for (uint32_t b = 0; b < kBlocks; ++b) {
            if (b < step.first_block || b >= step.end_block) continue;
            const uint16_t* row = values + (step.first_token + 16 * b + 4 * lane.j) * dim + channel;
            uint32_t w[4] = {0, 0, 0, 0};
            if (channel < dim) {
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) w[i] = __ldg(reinterpret_cast<const uint32_t*>(row + i * dim));
            }
            multiply(o[2 * c], p[b], lows(w[0], w[2]), lows(w[1], w[3]));
            multiply(o[2 * c + 1], p[b], highs(w[0], w[2]), highs(w[1], w[3]));
        }
    }
}

template <int kCells>
__device__ __forceinline__ void sum_affine(float (&o)[2 * kCells][4], const uint4 (&p)[kBlocks], const TileCodec& codec,
                                           const uint8_t* tile, uint32_t dim, uint32_t first_cell, const Step& step,
                                           const Lane& lane) {
    const CodeReader codes(tile, codec.bands[0]);
    const ScaleReader scales(codec, tile);
    const uint32_t n_cells = (dim + 15) / 16;
    uint32_t scale[kBlocks][2] = {}, offset[kBlocks][2] = {};
    uint32_t column = ~0U;
#pragma unroll
    for (uint32_t c = 0; c < kCells; ++c) {
        const uint32_t cell = first_cell + c;
        if (cell >= n_cells) break;
        const uint32_t channel = 16 * cell + 2 * lane.n;
        const bool valid = channel < dim;  // else padding: its parameters are not there
        if (!codec.per_channel && valid && channel >> codec.channel_shift != column) {
            column = channel >> codec.channel_shift;
#pragma unroll
            for (uint32_t b = 0; b < kBlocks; ++b) {
                const uint32_t token = step.first_token + 16 * b + 4 * lane.j;
                scales.read(token, channel, token + 2, channel, scale[b][0], offset[b][0]);
                scales.read(token + 1, channel, token + 3, channel, scale[b][1], offset[b][1]);
            }
        }
#pragma unroll
        for (uint32_t b = 0; b < kBlocks; ++b) {
            if (b < step.first_block || b >= step.end_block) continue;
            const uint32_t quad = step.first_token / 4 + 4 * b + lane.j;
            Operands x = numbers_of(codes.read(quad * n_cells + cell, lane.n), 0.0F);
            if (codec.per_channel) {
                uint32_t pair = 0, shift = 0;
                if (valid) scales.read(4 * quad, channel, 4 * quad, channel + 1, pair, shift);
                x.even0 = scaled(x.even0, low_twice(pair), low_twice(shift));
                x.even1 = scaled(x.even1, low_twice(pair), low_twice(shift));
                x.odd0 = scaled(x.odd0, high_twice(pair), high_twice(shift));
                x.odd1 = scaled(x.odd1, high_twice(pair), high_twice(shift));
            } else {
                x.even0 = scaled(x.even0, scale[b][0], offset[b][0]);
                x.even1 = scaled(x.even1, scale[b][1], offset[b][1]);
                x.odd0 = scaled(x.odd0, scale[b][0], offset[b][0]);
                x.odd1 = scaled(x.odd1, scale[b][1], offset[b][1]);
            }
            multiply(o[2 * c], p[b], x.even0, x.even1);
            multiply(o[2 * c + 1], p[b], x.odd0, x.odd1);
        }
    }
}

template <int kCells>
__device__ __forceinline__ void sum_transform(float (&o)[2 * kCells][4], const uint4 (&p)[kBlocks],
                                              const TileCodec& codec, const uint8_t* tile, uint32_t first_cell,
                                              const uint16_t* books, const uint16_t* outputs, const Step& step,
                                              const Lane& lane) {
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
#pragma unroll
            for (uint32_t b = 0; b < kBlocks; ++b) {
                if (b < step.first_block || b >= step.end_block) continue;
                const uint32_t quad = step.first_token / 4 + 4 * b + lane.j;
                const uint2 code = codes.read(quad * n_cells + cell, lane.n);
                Operands x;
                if (band.trellis) {
                    x = trellis_levels_of(code, bits, outputs + (bits - 1) * 256, lane);
                } else if (bits == 8) {
                    x = numbers_of(code, 128.0F);
                } else {
                    x = levels_of(code, books + (1U << bits) - 2);
                }
                multiply(o[2 * c], p[b], x.even0, x.even1);
                multiply(o[2 * c + 1], p[b], x.odd0, x.odd1);
            }
        }
    }
}

/// Gains of tokens 4 quad .. 4 quad + 3.
__device__ __forceinline__ float4 gains_of(const TileCodec& codec, const uint8_t* tile, uint32_t quad) {
    const uint32_t code = __ldg(reinterpret_cast<const uint32_t*>(tile + codec.gains + 4 * quad));
    const auto gain = [code](int i) { return exp2f((static_cast<float>((code >> (8 * i)) & 0xFFU) - 128.0F) * 0.0625F); };
    return make_float4(gain(0), gain(1), gain(2), gain(3));
}

__device__ __forceinline__ uint32_t halves(float a, float b) { return bits_of(__floats2half2_rn(a, b)); }

/// kCells: cells of 16 value channels that a warp sums up; heads with more take more warps.
template <int kCells>
__global__ void __launch_bounds__(32 * kWarps) attend_kernel(const AttendArgs a) {
    __shared__ uint16_t books[2][kBookSize];
    __shared__ uint16_t outputs[6 * 256];
    const int head = static_cast<int>(blockIdx.y);
    const TileCodec& key_codec = a.layer.keys[head];
    const TileCodec& value_codec = a.layer.values[head];
    load_books(key_codec, a.trellis, books[0], outputs);
    load_books(value_codec, a.trellis, books[1], outputs);
    __syncthreads();
    const int run_index = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
    if (run_index >= a.n_runs) return;
    const Lane lane{threadIdx.x % 32 / 4, threadIdx.x % 4, threadIdx.x % 32};
    const auto first_cell = blockIdx.z * kCells;
    const Run run = a.runs[run_index];
    const RowTile rows = a.row_tiles[run.row_tile];
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

    float o[2 * kCells][4] = {};
    float top[2] = {kMinusInf, kMinusInf}, total[2] = {0.0F, 0.0F};
    for (int32_t i = 0; i < run.n_visits; ++i) {
        const Visit visit = a.visits[run.first_visit + i];
        const int32_t begin = max(static_cast<int32_t>(visit.begin), oldest_seen - visit.first_pos);
        const int32_t end = min(static_cast<int32_t>(visit.end), newest - visit.first_pos + 1);
        if (begin >= end || rows.first_pos + visit.token_begin > newest || rows.first_pos + visit.token_end <= oldest)
            continue;
        const bool packed = visit.source == Source::kPacked;
        const bool sink = visit.source == Source::kSink;
        const size_t query = ((static_cast<size_t>(visit.turn) * a.n_row_tiles + run.row_tile) * a.layer.n_kv_heads + head) * 2 +
                             (packed ? 1 : 0);
        const uint4* fragments = a.fragments + query * a.n_groups * 64;
        const float2 info[2] = {a.row_info[query * kTileRows + lane.n], a.row_info[query * kTileRows + lane.n + 8]};
        const uint8_t* key_tile = nullptr;
        const uint8_t* value_tile = nullptr;
        const uint16_t* keys = nullptr;
        const uint16_t* values = nullptr;
        const uint32_t stride = sink ? static_cast<uint32_t>(a.layer.sink_slots) : tile_tokens;
        if (packed) {
            const uint8_t* page = a.layer.packed + static_cast<size_t>(visit.item) * a.layer.packed_bytes;
            key_tile = page + key_codec.place;
            value_tile = page + value_codec.place;
            keys = reinterpret_cast<const uint16_t*>(key_tile);  // where the codec is float16
            values = reinterpret_cast<const uint16_t*>(value_tile);
        } else {
            const uint16_t* page = sink ? a.layer.sinks + static_cast<size_t>(visit.item) * a.layer.sink_size
                                        : (visit.source == Source::kOpen ? a.layer.open : a.layer.scratch) +
                                              static_cast<size_t>(visit.item) * a.layer.open_size;
            keys = page + static_cast<size_t>(head) * stride * dim_k;
            values = page + stride * (static_cast<size_t>(a.layer.n_kv_heads) * dim_k + static_cast<size_t>(head) * dim_v);
        }
        for (int32_t first = 0; first < static_cast<int32_t>(tile_tokens); first += kStepTokens) {
            const int32_t from = max(begin - first, 0);
            const int32_t to = min(end - first, kStepTokens);
            if (from >= to) continue;
            const Step step{static_cast<uint32_t>(first), static_cast<uint32_t>(from) / 16,
                            (static_cast<uint32_t>(to) + 15) / 16};
            float s[2 * kBlocks][4] = {};
            const bool transform = packed && key_codec.store == Store::kTransform;
            if (transform) {
                score_transform(s, key_codec, key_tile, tile_tokens, fragments, books[0], outputs, step, lane);
            } else if (packed && key_codec.store == Store::kAffine) {
                score_affine(s, key_codec, key_tile, tile_tokens, dim_k, fragments, step, lane);
            } else {
                score_float16(s, keys, stride, dim_k, fragments, step, lane);
            }
            // Scores bent and masked; the largest of each row.
            float most[2] = {kMinusInf, kMinusInf};
#pragma unroll
            for (uint32_t b = 0; b < kBlocks; ++b) {
                if (b < step.first_block || b >= step.end_block) {
#pragma unroll
                    for (int k = 0; k < 4; ++k) s[2 * b][k] = s[2 * b + 1][k] = kMinusInf;
                    continue;
                }
                float4 gain = make_float4(1, 1, 1, 1);
                if (transform) gain = gains_of(key_codec, key_tile, step.first_token / 4 + 4 * b + lane.j);
#pragma unroll
                for (int half = 0; half < 2; ++half) {  // even lanes of the cell, odd ones
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        const int row = k / 2;
                        const int place = (k % 2) * 2 + half;  // of the token in its quad
                        const int32_t slot = first + static_cast<int32_t>(16 * b + 4 * lane.j) + place;
                        const int32_t at = visit.first_pos + slot;
                        const float g = place == 0 ? gain.x : place == 1 ? gain.y : place == 2 ? gain.z : gain.w;
                        float x = s[2 * b + half][k] * (g * info[row].x) + info[row].y;
                        if (a.softcap > 0.0F) x = a.softcap * tanhf(x);
                        if (a.slopes != nullptr) x += slope[row] * static_cast<float>(at - position[row]);
                        const bool seen = slot >= visit.begin && slot < visit.end && at <= position[row] &&
                                          at >= first_seen[row] && token[row] >= visit.token_begin &&
                                          token[row] < visit.token_end;
                        x = seen ? x : kMinusInf;
                        s[2 * b + half][k] = x;
                        most[row] = fmaxf(most[row], x);
                    }
                }
            }
            float factor[2];
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                most[row] = fmaxf(most[row], __shfl_xor_sync(0xFFFFFFFFU, most[row], 1));
                most[row] = fmaxf(most[row], __shfl_xor_sync(0xFFFFFFFFU, most[row], 2));
                const float now = fmaxf(top[row], most[row]);
                factor[row] = top[row] == kMinusInf ? 0.0F : __expf(top[row] - now);
                top[row] = now;
                total[row] *= factor[row];
            }
            // Weights as the first operand of the sum over tokens.
            uint4 p[kBlocks];
            const bool gained = packed && value_codec.store == Store::kTransform;
#pragma unroll
            for (uint32_t b = 0; b < kBlocks; ++b) {
                p[b] = make_uint4(0, 0, 0, 0);
                if (b < step.first_block || b >= step.end_block) continue;
                float4 gain = make_float4(1, 1, 1, 1);
                if (gained) gain = gains_of(value_codec, value_tile, step.first_token / 4 + 4 * b + lane.j);
                float w[2][4];
#pragma unroll
                for (int half = 0; half < 2; ++half) {
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        const float x = s[2 * b + half][k];
                        w[half][k] = x == kMinusInf ? 0.0F : __expf(x - top[k / 2]);
                        total[k / 2] += w[half][k];
                    }
                }
                p[b] = make_uint4(halves(w[0][0] * gain.x, w[0][1] * gain.z), halves(w[0][2] * gain.x, w[0][3] * gain.z),
                                  halves(w[1][0] * gain.y, w[1][1] * gain.w), halves(w[1][2] * gain.y, w[1][3] * gain.w));
            }
#pragma unroll
            for (int c = 0; c < 2 * kCells; ++c) {
#pragma unroll
                for (int k = 0; k < 4; ++k) o[c][k] *= factor[k / 2];
            }
            if (gained) {
                sum_transform<kCells>(o, p, value_codec, value_tile, first_cell, books[1], outputs, step, lane);
            } else if (packed && value_codec.store == Store::kAffine) {
                sum_affine<kCells>(o, p, value_codec, value_tile, dim_v, first_cell, step, lane);
            } else {
                sum_float16<kCells>(o, p, values, dim_v, first_cell, step, lane);
            }
        }
    }

    const uint32_t padded = (dim_v + 15) / 16 * 16;
    const size_t first_state = (static_cast<size_t>(head) * a.n_runs + run_index) * kTileRows;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        total[row] += __shfl_xor_sync(0xFFFFFFFFU, total[row], 1);
        total[row] += __shfl_xor_sync(0xFFFFFFFFU, total[row], 2);
        const uint32_t at = lane.n + 8 * row;
        if (at >= static_cast<uint32_t>(rows.n_rows)) continue;
        if (lane.j == 0 && blockIdx.z == 0) a.norms[first_state + at] = make_float2(top[row], total[row]);
#pragma unroll
        for (uint32_t c = 0; c < kCells; ++c) {
            const uint32_t channel = 16 * (first_cell + c) + 4 * lane.j;
            if (channel >= padded) break;
            *reinterpret_cast<float4*>(a.sums + (first_state + at) * padded + channel) =
                make_float4(o[2 * c][2 * row], o[2 * c + 1][2 * row], o[2 * c][2 * row + 1], o[2 * c + 1][2 * row + 1]);
        }
    }
}

template <int kCells>
int launch(const AttendArgs& args, cudaStream_t stream) noexcept {
    const int n_cells = (args.layer.dim_v + 15) / 16;
    const dim3 grid(static_cast<unsigned>((args.n_runs + kWarps - 1) / kWarps),
                    static_cast<unsigned>(args.layer.n_kv_heads), static_cast<unsigned>((n_cells + kCells - 1) / kCells));
    attend_kernel<kCells><<<grid, 32 * kWarps, 0, stream>>>(args);
    return cudaGetLastError();
}

}  // namespace

int attend_runs(const AttendArgs& args, void* stream) noexcept {
    if (args.n_runs == 0) return 0;
    if (args.layer.dim_v <= 64) return launch<4>(args, static_cast<cudaStream_t>(stream));
    return launch<8>(args, static_cast<cudaStream_t>(stream));
}

}  // namespace kvaq::cuda
