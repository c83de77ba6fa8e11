// Attention of many query rows (prefill): a block of eight warps, each with a row tile of its own, that share what a run's visits have. The keys and values of
// up to 64 tokens are made operands once, in shared memory, an eighth by each warp; then each multiplies its rows by all of them. What a warp computes
// does not depend on the others.
#include <cuda_runtime.h>

#include "kvaq/cuda/attend_rows.cuh"
#include "kvaq/cuda/kernels.h"
#include "kvaq/cuda/tile_operands.cuh"

namespace kvaq::cuda {
namespace {

constexpr uint32_t kWarps = kBlockTiles;
constexpr uint32_t kThreads = 32 * kWarps;

/// Keys of 16 tokens from first_token: group g of the fragments' order (the codec's bands, or 16 channels each).
__device__ __forceinline__ Operands keys_of(const TileCodec& codec, bool packed, const Tiles& tiles,
                                            uint32_t tile_tokens, uint32_t dim, uint32_t g, const uint16_t* books,
                                            const uint16_t* outputs, uint32_t first_token, const Lane& lane) {
    if (!packed || codec.store == Store::kFloat16)
        return float16_keys(reinterpret_cast<const uint16_t*>(tiles.keys), tiles.stride, dim, g, first_token, lane);
    if (codec.store == Store::kAffine)
        return AffineReader(codec, tiles.keys).keys(tile_tokens, dim, g, first_token, lane);
    int b = 0;
    for (; g >= (codec.bands[b].n_channels + 15U) / 16; ++b) g -= (codec.bands[b].n_channels + 15U) / 16;
    const TileBand& band = codec.bands[b];
    return transform_keys(CodeReader(tiles.keys, band), band, band.bits, tile_tokens, g, books, outputs, first_token,
                          lane);
}

/// Groups of a head's keys.
__device__ __forceinline__ uint32_t n_key_groups(const TileCodec& codec, bool packed, uint32_t dim) {
    if (!packed || codec.store != Store::kTransform) return (dim + 15) / 16;
    uint32_t n = 0;
    for (int b = 0; b < codec.n_bands && codec.bands[b].bits != 0; ++b) n += (codec.bands[b].n_channels + 15U) / 16;
    return n;
}

/// Values of 16 tokens from first_token, channels [16 cell, 16 cell + 16): zeros where the codec keeps none.
__device__ __forceinline__ Operands values_of(const TileCodec& codec, bool packed, const Tiles& tiles, uint32_t dim,
                                              uint32_t cell, const uint16_t* books, const uint16_t* outputs,
                                              uint32_t first_token, const Lane& lane) {
    if (!packed || codec.store == Store::kFloat16)
        return float16_values(reinterpret_cast<const uint16_t*>(tiles.values), dim, cell, first_token, lane);
    if (codec.store == Store::kAffine) return AffineReader(codec, tiles.values).values(dim, cell, first_token, lane);
    for (int b = 0; b < codec.n_bands && codec.bands[b].bits != 0; ++b) {
        const TileBand& band = codec.bands[b];
        const uint32_t in_band = cell - band.first_channel / 16U;  // wraps where the band begins later
        const uint32_t n_cells = (band.n_channels + 15U) / 16;
        if (in_band >= n_cells) continue;
        return transform_values(CodeReader(tiles.values, band), band, band.bits, n_cells, in_band, books, outputs,
                                first_token, lane);
    }
    return {0, 0, 0, 0};
}

__device__ __forceinline__ Operands operands_of(const uint4& x) { return {x.x, x.y, x.z, x.w}; }

/// kCells: cells of 16 value channels that a block sums up; heads with more take more blocks. kSteps: 16-token steps that are in shared memory together.
template <int kCells, int kSteps>
__global__ void __launch_bounds__(kThreads, kCells <= 4 ? 2 : 1) attend_blocks_kernel(const AttendArgs a) {
    extern __shared__ uint4 shared[];  // keys [kSteps][n_groups][32], values [kSteps][kCells][32]
    __shared__ uint16_t books[2][kBookSize];
    __shared__ uint16_t outputs[6 * 256];
    __shared__ __align__(16) float gains[2][16 * kSteps];
    const int head = static_cast<int>(blockIdx.y);
    const TileCodec& key_codec = a.layer.keys[head];
    const TileCodec& value_codec = a.layer.values[head];
    const RowBlock block = a.blocks[blockIdx.x];
    const Lane lane{threadIdx.x % 32 / 4, threadIdx.x % 4, threadIdx.x % 32};
    const uint32_t warp = threadIdx.x / 32;
    const bool idle = warp >= static_cast<uint32_t>(block.n_row_tiles);  // it makes operands only
    const int32_t row_tile = block.first_row_tile + (idle ? 0 : static_cast<int32_t>(warp));
    const RowTile rows = a.row_tiles[row_tile];
    const int32_t run_index = rows.first_run + block.run - a.first_run;
    const Run run = a.runs[run_index];
    load_books(key_codec, a.trellis, books[0], outputs);
    load_books(value_codec, a.trellis, books[1], outputs);
    const auto first_cell = blockIdx.z * kCells;
    const auto dim_k = static_cast<uint32_t>(a.layer.dim_k);
    const auto dim_v = static_cast<uint32_t>(a.layer.dim_v);
    const auto tile_tokens = static_cast<uint32_t>(a.layer.tile_tokens);
    const RowView mine(a, rows, head, lane);
    // What any of the block's rows sees.
    const RowTile first_rows = a.row_tiles[block.first_row_tile];
    const RowTile last_rows = a.row_tiles[block.first_row_tile + block.n_row_tiles - 1];
    const int32_t block_newest = newest_of(a, last_rows);
    const int32_t block_oldest = oldest_of(a, first_rows);
    const int32_t block_seen = first_seen_by(a, block_oldest);
    uint4* keys = shared;
    uint4* values = shared + static_cast<size_t>(kSteps) * a.n_groups * 32;

    float o[2 * kCells][4] = {};
    float top[2] = {kMinusInf, kMinusInf}, total[2] = {0.0F, 0.0F};
    for (int32_t i = 0; i < run.n_visits; ++i) {
        const Visit visit = a.visits[run.first_visit + i];
        const Seen any = seen_of(visit, mine.first_pos, block_oldest, block_newest, block_seen);
        if (!any.something()) continue;
        const Seen own = seen_of(visit, mine.first_pos, mine.oldest, mine.newest, mine.oldest_seen);
        const bool packed = visit.source == Source::kPacked;
        const bool key_gains = packed && key_codec.store == Store::kTransform;
        const bool value_gains = packed && value_codec.store == Store::kTransform;
        const Tiles tiles(a.layer, visit, head, key_codec, value_codec);
        const uint32_t n_groups = n_key_groups(key_codec, packed, dim_k);
        const size_t query =
            ((static_cast<size_t>(visit.turn) * a.n_row_tiles + (row_tile - a.first_row_tile)) * a.layer.n_kv_heads +
             head) *
                2 +
            (packed ? 1 : 0);
        const uint4* fragments = a.fragments + query * a.n_groups * 64;
        const float2 info[2] = {__ldg(a.row_info + query * kTileRows + lane.n),
                                __ldg(a.row_info + query * kTileRows + lane.n + 8)};
        for (uint32_t first = 0; first < tile_tokens; first += 16 * kSteps) {
            const auto is_seen = [&](const Seen& seen, uint32_t step) {
                const auto from = static_cast<int32_t>(first + 16 * step);
                return from + 16 > seen.begin && from < seen.end;
            };
            if (static_cast<int32_t>(first + 16 * kSteps) <= any.begin || static_cast<int32_t>(first) >= any.end)
                continue;
            __syncthreads();  // all have read what was there before; the first time: books
            for (uint32_t item = warp; item < kSteps * n_groups; item += kWarps) {
                const uint32_t step = item / n_groups;
                const uint32_t g = item % n_groups;
                if (!is_seen(any, step)) continue;
                const Operands x = keys_of(key_codec, packed, tiles, tile_tokens, dim_k, g, books[0], outputs,
                                           first + 16 * step, lane);
                keys[(step * a.n_groups + g) * 32 + lane.all] = make_uint4(x.even0, x.even1, x.odd0, x.odd1);
            }
            for (uint32_t item = warp; item < kSteps * kCells; item += kWarps) {
                const uint32_t step = item / kCells;
                const uint32_t c = item % kCells;
                if (!is_seen(any, step)) continue;
                const Operands x = values_of(value_codec, packed, tiles, dim_v, first_cell + c, books[1], outputs,
                                             first + 16 * step, lane);
                values[(step * kCells + c) * 32 + lane.all] = make_uint4(x.even0, x.even1, x.odd0, x.odd1);
            }
            for (uint32_t quad = threadIdx.x; quad < 8 * kSteps; quad += kThreads) {
                const bool of_values = quad >= 4 * kSteps;
                const uint32_t at = quad % (4 * kSteps);
                if (!(of_values ? value_gains : key_gains) || !is_seen(any, at / 4)) continue;
                *reinterpret_cast<float4*>(&gains[of_values ? 1 : 0][4 * at]) =
                    gains_of(of_values ? value_codec : key_codec, of_values ? tiles.values : tiles.keys,
                             first / 4 + at);
            }
            __syncthreads();
            if (idle || static_cast<int32_t>(first + 16 * kSteps) <= own.begin ||
                static_cast<int32_t>(first) >= own.end || !own.something())
                continue;
            float s[kSteps][2][4] = {};  // tokens 2 n, 2 n + 1 of a step
            for (uint32_t g = 0; g < n_groups; ++g) {
                const uint4 high = __ldg(fragments + (2 * g) * 32 + lane.all);
                const uint4 low = __ldg(fragments + (2 * g + 1) * 32 + lane.all);
#pragma unroll
                for (uint32_t step = 0; step < kSteps; ++step) {
                    if (!is_seen(own, step)) continue;
                    score(s[step][0], s[step][1], high, low,
                          operands_of(keys[(step * a.n_groups + g) * 32 + lane.all]));
                }
            }
            // Every row sees every token: nothing to mask.
            const bool whole = mine.sees_all(visit, static_cast<int32_t>(first), 16 * kSteps);
            float most[2] = {kMinusInf, kMinusInf};
#pragma unroll
            for (uint32_t step = 0; step < kSteps; ++step) {
                float4 gain = make_float4(1, 1, 1, 1);
                if (key_gains) gain = *reinterpret_cast<const float4*>(&gains[0][16 * step + 4 * lane.j]);
#pragma unroll
                for (int half = 0; half < 2; ++half) {  // even lanes of the cell, odd ones
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        const int row = k / 2;
                        const int place = (k % 2) * 2 + half;  // of the token in its quad
                        const int32_t slot = static_cast<int32_t>(first + 16 * step + 4 * lane.j) + place;
                        const float g = place == 0 ? gain.x : place == 1 ? gain.y : place == 2 ? gain.z : gain.w;
                        float x = mine.bent(a, s[step][half][k] * (g * info[row].x) + info[row].y, row,
                                            visit.first_pos + slot);
                        if (!whole && !mine.sees(visit, row, slot)) x = kMinusInf;
                        s[step][half][k] = x;
                        most[row] = fmaxf(most[row], x);
                    }
                }
            }
            float factor[2];
            new_top(most, top, total, factor);
            if (__any_sync(0xFFFFFFFFU, factor[0] != 1.0F || factor[1] != 1.0F)) {
#pragma unroll
                for (int c = 0; c < 2 * kCells; ++c) {
#pragma unroll
                    for (int k = 0; k < 4; ++k) o[c][k] *= factor[k / 2];
                }
            }
#pragma unroll
            for (uint32_t step = 0; step < kSteps; ++step) {
                if (!is_seen(own, step)) continue;
                float4 gain = make_float4(1, 1, 1, 1);
                if (value_gains) gain = *reinterpret_cast<const float4*>(&gains[1][16 * step + 4 * lane.j]);
                const uint4 p = weights_of(s[step], top, total, gain);
#pragma unroll
                for (uint32_t c = 0; c < kCells; ++c)
                    weigh(o[2 * c], o[2 * c + 1], p, operands_of(values[(step * kCells + c) * 32 + lane.all]));
            }
        }
    }
    if (idle) return;
    const uint32_t padded = (dim_v + 15) / 16 * 16;
    const size_t first_state = (static_cast<size_t>(head) * a.n_runs + run_index) * kTileRows;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        total[row] += __shfl_xor_sync(0xFFFFFFFFU, total[row], 1);
        total[row] += __shfl_xor_sync(0xFFFFFFFFU, total[row], 2);
        const uint32_t at = lane.n + 8 * row;
        if (static_cast<int32_t>(at) >= rows.n_rows) continue;
        if (lane.j == 0 && blockIdx.z == 0) a.norms[first_state + at] = make_float2(top[row], total[row]);
#pragma unroll
        for (uint32_t c = 0; c < kCells; ++c) {
            const uint32_t channel = 16 * (first_cell + c) + 4 * lane.j;
            if (channel >= padded) continue;
            *reinterpret_cast<float4*>(a.sums + (first_state + at) * padded + channel) = make_float4(
                o[2 * c][2 * row], o[2 * c + 1][2 * row], o[2 * c][2 * row + 1], o[2 * c + 1][2 * row + 1]);
        }
    }
}

template <int kCells, int kSteps>
int launch(const AttendArgs& args, cudaStream_t stream) noexcept {
    const int n_cells = (args.layer.dim_v + 15) / 16;
    const size_t shared = static_cast<size_t>(kSteps) * static_cast<size_t>(args.n_groups + kCells) * 32 * sizeof(uint4);
    if (shared > 32 * 1024) {  // the tables take 4 KiB more; 48 KiB are allowed without asking
        const cudaError_t error =
            cudaFuncSetAttribute(attend_blocks_kernel<kCells, kSteps>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared));
        if (error != cudaSuccess) return error;
    }
    const dim3 grid(static_cast<unsigned>(args.n_blocks), static_cast<unsigned>(args.layer.n_kv_heads),
                    static_cast<unsigned>((n_cells + kCells - 1) / kCells));
    attend_blocks_kernel<kCells, kSteps><<<grid, kThreads, shared, stream>>>(args);
    return cudaGetLastError();
}

}  // namespace

int attend_blocks(const AttendArgs& args, void* stream) noexcept {
    if (args.n_blocks == 0) return 0;
    auto* on = static_cast<cudaStream_t>(stream);
    if (args.n_groups > 10) return args.layer.dim_v <= 64 ? launch<4, 2>(args, on) : launch<8, 2>(args, on);
    return args.layer.dim_v <= 64 ? launch<4, 4>(args, on) : launch<8, 4>(args, on);
}

}  // namespace kvaq::cuda
