// What comes before and after attention: new K and V rows into f16 pages, queries as operands, runs merged into rows.
#include <cuda_runtime.h>

#include "kvaq/cuda/attend_rows.cuh"
#include "kvaq/cuda/kernels.h"
#include "kvaq/cuda/tile_fragments.cuh"

namespace kvaq::cuda {
namespace {

constexpr int kThreads = 128;

__device__ __forceinline__ size_t key_place(const LayerView& layer, int head, int channel, int slot) {
    return (static_cast<size_t>(head) * layer.dim_k + channel) * layer.tile_tokens + slot;
}
__device__ __forceinline__ size_t value_place(const LayerView& layer, int head, int slot) {
    return static_cast<size_t>(layer.tile_tokens) *
               (static_cast<size_t>(layer.n_kv_heads) * layer.dim_k + static_cast<size_t>(head) * layer.dim_v) +
           static_cast<size_t>(slot) * layer.dim_v;
}

/// A token's K and V; all threads of a block.
__device__ void append_row(const AppendArgs& a, const RowWrite& write) {
    const LayerView& layer = a.layer;
    uint16_t* page = (write.scratch ? layer.scratch : layer.open) + static_cast<size_t>(write.item) * layer.open_size;
    const auto token = static_cast<size_t>(write.token);
    for (int i = static_cast<int>(threadIdx.x); i < layer.n_kv_heads * layer.dim_k; i += kThreads) {
        const int head = i / layer.dim_k;
        const int channel = i % layer.dim_k;
        const uint16_t x = a.k.data[token * a.k.token_stride + head * a.k.head_stride + channel];
        page[key_place(layer, head, channel, write.slot)] = x;
        if (a.host_k != nullptr) a.host_k[token * layer.n_kv_heads * layer.dim_k + i] = x;
    }
    for (int i = static_cast<int>(threadIdx.x); i < layer.n_kv_heads * layer.dim_v; i += kThreads) {
        const int head = i / layer.dim_v;
        const int channel = i % layer.dim_v;
        const uint16_t x = a.v.data[token * a.v.token_stride + head * a.v.head_stride + channel];
        page[value_place(layer, head, write.slot) + channel] = x;
        if (a.host_v != nullptr) a.host_v[token * layer.n_kv_heads * layer.dim_v + i] = x;
    }
    if (!write.clear_rest) return;
    const int n_rest = (layer.tile_tokens - 1 - write.slot) * layer.dim_v;
    for (int head = 0; head < layer.n_kv_heads; ++head) {
        uint16_t* rest = page + value_place(layer, head, write.slot + 1);
        for (int i = static_cast<int>(threadIdx.x); i < n_rest; i += kThreads) rest[i] = 0;
    }
}

/// H x for each run of 2^k channels, 2^k the largest power of two that divides n (kvaq/quant/hadamard.h). Rows in shared memory; all threads call it.
__device__ void hadamard_rows(float* x, int n_rows, int n) {
    const int block = n & -n;
    for (int half = 1; half < block; half *= 2) {
        for (int i = static_cast<int>(threadIdx.x); i < n_rows * (n / 2); i += static_cast<int>(blockDim.x)) {
            const int row = i / (n / 2);
            const int pair = i % (n / 2);
            float* a = x + row * n + pair / half * 2 * half + pair % half;
            const float low = a[0];
            const float high = a[half];
            a[0] = low + high;
            a[half] = low - high;
        }
        __syncthreads();
    }
    const float norm = rsqrtf(static_cast<float>(block));
    for (int i = static_cast<int>(threadIdx.x); i < n_rows * n; i += static_cast<int>(blockDim.x)) x[i] *= norm;
    __syncthreads();
}

/// Rows as first operands, in two binary16 numbers each; info[row] = the power of two taken out, and what is added to every score.
__device__ void store_fragments(const float* x, int n_rows, int dim, const TileCodec& codec, bool packed,
                                const float* sums, uint4* fragments, float2* info, float* factors) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int row = warp; row < kTileRows; row += kThreads / 32) {
        float largest = 0;
        for (int c = lane; c < dim && row < n_rows; c += 32) largest = fmaxf(largest, fabsf(x[row * dim + c]));
        for (int i = 16; i > 0; i /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFU, largest, i));
        int exponent = 0;
        if (largest > 0 && largest < INFINITY) frexpf(largest, &exponent);
        exponent = min(max(exponent, -100), 100);
        if (lane == 0) {
            factors[row] = exp2f(static_cast<float>(-exponent));
            info[row] = make_float2(exp2f(static_cast<float>(exponent)), packed && row < n_rows ? sums[row] : 0.0F);
        }
    }
    __syncthreads();
    const bool banded = packed && codec.store == Store::kTransform;
    const int n_bands = banded ? codec.n_bands : 1;
    auto* out = reinterpret_cast<uint32_t*>(fragments);
    for (int b = 0; b < n_bands; ++b) {
        const int first = banded ? codec.bands[b].first_channel : 0;
        const int n = banded ? codec.bands[b].n_channels : dim;
        if (banded && codec.bands[b].bits == 0) break;
        for (int g = 0; g < (n + 15) / 16; ++g, out += 256) {
            for (int i = static_cast<int>(threadIdx.x); i < 128; i += kThreads) {
                const int at_lane = i / 4;
                const int part = i % 4;
                const int row = at_lane / 4 + (part & 1) * 8;
                const int channel = 16 * g + 4 * (at_lane % 4) + part / 2;
                float pair[2] = {0, 0};
                for (int k = 0; k < 2; ++k) {
                    const int c = channel + 2 * k;
                    if (c < n && row < n_rows) pair[k] = x[row * dim + first + c] * factors[row];
                }
                const __half2 high = __floats2half2_rn(pair[0], pair[1]);
                const __half2 low = __floats2half2_rn(pair[0] - __low2float(high), pair[1] - __high2float(high));
                out[i] = bits_of(high);
                out[128 + i] = bits_of(low);
            }
        }
    }
    __syncthreads();
}

/// Queries of a row tile and KV head at a turn; all threads of a block. shared: rows [kTileRows][dim], the same in the codec's basis, sums and factors
/// of the rows.
__device__ void prepare_rows(const PrepareArgs& a, int row_tile, int head, int turn, float* shared) {
    const LayerView& layer = a.layer;
    const RowTile tile = a.row_tiles[row_tile];
    const int dim = layer.dim_k;
    const int n_rows = tile.n_rows;
    float* plain = shared;
    float* packed = plain + kTileRows * dim;
    float* sums = packed + kTileRows * dim;
    float* factors = sums + kTileRows;
    for (int i = static_cast<int>(threadIdx.x); i < n_rows * dim; i += kThreads) {
        const int row = tile.first_row + i / dim;
        const auto token = static_cast<size_t>(tile.first_token + row / layer.group);
        const auto query_head = static_cast<size_t>(head * layer.group + row % layer.group);
        plain[i] = a.q.data[token * a.q.token_stride + query_head * a.q.head_stride + i % dim];
    }
    __syncthreads();
    if (a.cosines != nullptr) {
        for (int i = static_cast<int>(threadIdx.x); i < n_rows * a.n_pairs; i += kThreads) {
            const int pair = i % a.n_pairs;
            const double cosine = a.cosines[turn * a.n_pairs + pair];
            const double sine = a.sines[turn * a.n_pairs + pair];
            float* row = plain + i / a.n_pairs * dim;
            const int first = a.first_channel + (a.interleaved ? 2 * pair : pair);
            const int second = a.interleaved ? first + 1 : first + a.n_pairs;
            const auto x = static_cast<double>(row[first]);
            const auto y = static_cast<double>(row[second]);
            row[first] = static_cast<float>(x * cosine - y * sine);
            row[second] = static_cast<float>(x * sine + y * cosine);
        }
        __syncthreads();
    }
    for (int i = static_cast<int>(threadIdx.x); i < n_rows * dim; i += kThreads) plain[i] *= a.scale;
    __syncthreads();
    const TileCodec& codec = layer.keys[head];
    if (codec.basis == BasisKind::kMatrix) {  // q^T x^ = (U q)^T z^
        for (int i = static_cast<int>(threadIdx.x); i < n_rows * (dim / 4); i += kThreads) {
            const int row = i / (dim / 4);
            const int first = i % (dim / 4) * 4;
            float z[4] = {};
#pragma unroll 16
            for (int j = 0; j < dim; ++j) {
                const char4 weight = __ldg(reinterpret_cast<const char4*>(codec.matrix + j * dim + first));
                const float x = plain[row * dim + j];
                z[0] += x * static_cast<float>(weight.x);
                z[1] += x * static_cast<float>(weight.y);
                z[2] += x * static_cast<float>(weight.z);
                z[3] += x * static_cast<float>(weight.w);
            }
            for (int k = 0; k < 4; ++k) packed[row * dim + first + k] = z[k] * codec.row_scale[first + k];
        }
        __syncthreads();
    } else {
        for (int i = static_cast<int>(threadIdx.x); i < n_rows * dim; i += kThreads) packed[i] = plain[i];
        __syncthreads();
        if (codec.basis == BasisKind::kHadamard) hadamard_rows(packed, n_rows, dim);
    }
    if (threadIdx.x < kTileRows) sums[threadIdx.x] = 0;
    __syncthreads();
    if (codec.store == Store::kTransform) {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        for (int row = static_cast<int>(threadIdx.x) / 32; row < n_rows; row += kThreads / 32) {
            float sum = 0;
            for (int c = lane; c < dim; c += 32) {
                sum += packed[row * dim + c] * codec.channel_offset[c];
                packed[row * dim + c] *= codec.channel_scale[c];
            }
            for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(0xFFFFFFFFU, sum, i);
            if (lane == 0) sums[row] = sum;
        }
        __syncthreads();
    }
    const size_t query = ((static_cast<size_t>(turn) * a.n_row_tiles + row_tile) * layer.n_kv_heads + head) * 2;
    for (int p = 0; p < 2; ++p) {
        store_fragments(p == 0 ? plain : packed, n_rows, dim, codec, p == 1, sums,
                        a.fragments + (query + p) * a.n_groups * 64, a.row_info + (query + p) * kTileRows, factors);
    }
}

/// A layer's call begins: a block for every token that is written, then one for every row tile, KV head and turn.
__global__ void __launch_bounds__(kThreads) begin_kernel(const AppendArgs append, const PrepareArgs prepare) {
    extern __shared__ float shared[];
    const int block = static_cast<int>(blockIdx.x);
    if (block < append.n_writes) {
        append_row(append, append.writes[block]);
        return;
    }
    const int rest = block - append.n_writes;
    const int n_tiles = prepare.n_row_tiles;
    prepare_rows(prepare, rest % n_tiles, rest / n_tiles % prepare.layer.n_kv_heads,
                 rest / n_tiles / prepare.layer.n_kv_heads, shared);
}

constexpr int kMergeThreads = 256;

/// Sum over the block's threads, the same in all of them; `room` [kMergeThreads / 32].
__device__ float sum_of_all(float x, float* room) {
    for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(0xFFFFFFFFU, x, i);
    __syncthreads();
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < kMergeThreads / 32; ++i) sum += room[i];
    return sum;
}

/// One row of the output a block. Runs are merged by groups of threads, each a stretch of them in order; the groups in order too.
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(const MergeArgs a) {
    extern __shared__ float shared[];  // weights [2 kMaxRuns], sums packed and plain [n_groups][padded] each
    __shared__ float room[kMergeThreads / 32];
    __shared__ __align__(16) float parts[4 * kMergeThreads];
    const LayerView& layer = a.layer;
    const RowTile tile = a.row_tiles[blockIdx.x / kTileRows];
    const int in_tile = static_cast<int>(blockIdx.x) % kTileRows;
    if (in_tile >= tile.n_rows) return;
    const int head = static_cast<int>(blockIdx.y);
    const int dim = layer.dim_v;
    const int padded = (dim + 15) / 16 * 16;
    const int me = static_cast<int>(threadIdx.x);
    const int row = tile.first_row + in_tile;
    const int query_head = head * layer.group + row % layer.group;
    const size_t first_state = (static_cast<size_t>(head) * a.n_runs + (tile.first_run - a.first_run)) * kTileRows + in_tile;
    const float2* norms = a.norms + first_state;
    float* weights = shared;
    float* packed = weights + 2 * kMaxRuns;

    // At most 2 kMaxRuns = kMergeThreads runs: one a thread.
    static_assert(2 * kMaxRuns <= kMergeThreads, "");
    const float2 norm = me < tile.n_runs ? norms[static_cast<size_t>(me) * kTileRows] : make_float2(kMinusInf, 0);
    const float sink = a.sink_logits != nullptr ? a.sink_logits[query_head] : kMinusInf;
    float top = fmaxf(norm.x, sink);
    for (int i = 16; i > 0; i /= 2) top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFU, top, i));
    if (me % 32 == 0) room[me / 32] = top;
    __syncthreads();
    for (int i = 0; i < kMergeThreads / 32; ++i) top = fmaxf(top, room[i]);
    const float weight = norm.x == kMinusInf ? 0.0F : __expf(norm.x - top);
    weights[me] = weight;
    const float packed_total = sum_of_all(me < tile.n_packed_runs ? weight * norm.y : 0.0F, room);
    const float plain_total = sum_of_all(me >= tile.n_packed_runs ? weight * norm.y : 0.0F, room);
    const float total = packed_total + plain_total + (sink == kMinusInf ? 0.0F : __expf(sink - top));

    const int n_groups = max(1, kMergeThreads / padded);
    float* plain = packed + n_groups * padded;
    const int group = n_groups > 1 ? me / padded : 0;
    const int stretch = (tile.n_runs + n_groups - 1) / n_groups;
    const int step = n_groups > 1 ? padded : kMergeThreads;
    for (int c = n_groups > 1 ? me % padded : me; c < padded && group < n_groups; c += step) {
        const float* sums = a.sums + first_state * padded + c;
        const int begin = group * stretch;
        const int end = min(tile.n_runs, begin + stretch);
        const int middle = min(max(tile.n_packed_runs, begin), max(begin, end));
        float sum_packed = 0;
        float sum_plain = 0;
#pragma unroll 8
        for (int run = begin; run < middle; ++run)
            sum_packed += weights[run] * sums[static_cast<size_t>(run) * kTileRows * padded];
#pragma unroll 4
        for (int run = middle; run < end; ++run)
            sum_plain += weights[run] * sums[static_cast<size_t>(run) * kTileRows * padded];
        packed[group * padded + c] = sum_packed;
        plain[group * padded + c] = sum_plain;
    }
    __syncthreads();
    const TileCodec& codec = layer.values[head];
    for (int c = me; c < padded; c += kMergeThreads) {
        float sum_packed = 0;
        float sum_plain = 0;
        for (int g = 0; g < n_groups; ++g) {
            sum_packed += packed[g * padded + c];
            sum_plain += plain[g * padded + c];
        }
        if (codec.store == Store::kTransform && c < dim) {
            sum_packed = sum_packed * codec.channel_scale[c] + packed_total * codec.channel_offset[c];
            if (codec.basis == BasisKind::kMatrix) sum_packed *= codec.row_scale[c];
        }
        packed[c] = c < dim ? sum_packed : 0.0F;
        plain[c] = sum_plain;
    }
    __syncthreads();
    if (tile.n_packed_runs > 0 && codec.basis == BasisKind::kHadamard) hadamard_rows(packed, 1, dim);
    if (tile.n_packed_runs > 0 &&
        codec.basis == BasisKind::kMatrix) {  // stretches of the sum by groups of threads, four channels a thread
        const int quads = dim / 4;
        const int n_parts = kMergeThreads / quads;
        const int part = me / quads;
        const int length = (dim + n_parts - 1) / n_parts;
        if (part < n_parts) {
            const int first = me % quads * 4;
            float4 x = make_float4(0, 0, 0, 0);
#pragma unroll 4
            for (int i = part * length; i < min(dim, (part + 1) * length); ++i) {
                const char4 w = __ldg(reinterpret_cast<const char4*>(codec.matrix + i * dim + first));
                x.x += packed[i] * static_cast<float>(w.x);
                x.y += packed[i] * static_cast<float>(w.y);
                x.z += packed[i] * static_cast<float>(w.z);
                x.w += packed[i] * static_cast<float>(w.w);
            }
            *reinterpret_cast<float4*>(parts + part * dim + first) = x;
        }
        __syncthreads();
        for (int c = me; c < dim; c += kMergeThreads) {
            float x = 0;
            for (int p = 0; p < n_parts; ++p) x += parts[p * dim + c];
            packed[c] = x;
        }
        __syncthreads();
    }
    const float factor = total > 0.0F ? 1.0F / total : 0.0F;  // a fully masked row gives zeros
    float* out = a.out.data + static_cast<size_t>(tile.first_token + row / layer.group) * a.out.token_stride +
                 static_cast<size_t>(query_head) * a.out.head_stride;
    for (int c = me; c < dim; c += kMergeThreads) out[c] = (plain[c] + packed[c]) * factor;
}

__global__ void scatter_kernel(const ScatterArgs a) {
    const size_t n = a.bytes / sizeof(uint4);
    auto* to = reinterpret_cast<uint4*>(a.target + static_cast<size_t>(a.ids[blockIdx.x]) * a.stride);
    const uint4* from = a.from + static_cast<size_t>(blockIdx.x) * n;
    for (size_t i = static_cast<size_t>(blockIdx.y) * blockDim.x + threadIdx.x; i < n;
         i += static_cast<size_t>(gridDim.y) * blockDim.x)
        to[i] = from[i];
}

}  // namespace

int begin_layer(const AppendArgs& append, const PrepareArgs& prepare, void* stream) noexcept {
    const size_t shared =
        (2 * static_cast<size_t>(kTileRows) * static_cast<size_t>(prepare.layer.dim_k) + 2 * kTileRows) * sizeof(float);
    if (shared > 48 * 1024) {
        const cudaError_t error =
            cudaFuncSetAttribute(begin_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
        if (error != cudaSuccess) return error;
    }
    const int n_blocks = append.n_writes + prepare.n_row_tiles * prepare.layer.n_kv_heads * prepare.n_turns;
    begin_kernel<<<static_cast<unsigned>(n_blocks), kThreads, shared, static_cast<cudaStream_t>(stream)>>>(append,
                                                                                                           prepare);
    return cudaGetLastError();
}

int merge_runs(const MergeArgs& args, void* stream) noexcept {
    const int padded = (args.layer.dim_v + 15) / 16 * 16;
    const int n_groups = kMergeThreads / padded > 1 ? kMergeThreads / padded : 1;
    const size_t shared =
        (2 * kMaxRuns + 2 * static_cast<size_t>(n_groups) * static_cast<size_t>(padded)) * sizeof(float);
    const dim3 grid(static_cast<unsigned>(args.n_row_tiles * kTileRows), static_cast<unsigned>(args.layer.n_kv_heads));
    merge_kernel<<<grid, kMergeThreads, shared, static_cast<cudaStream_t>(stream)>>>(args);
    return cudaGetLastError();
}

int scatter_items(const ScatterArgs& args, void* stream) noexcept {
    if (args.n == 0) return 0;
    const dim3 grid(static_cast<unsigned>(args.n), args.bytes > 16384 ? 4U : 1U);
    scatter_kernel<<<grid, 256, 0, static_cast<cudaStream_t>(stream)>>>(args);
    return cudaGetLastError();
}

}  // namespace kvaq::cuda
