#pragma once

// PRIVATE header of kvaq/cuda: what a warp knows of its row tile, and a step of online softmax. A thread has rows n and n + 8 of the tile, and of every
// 16 tokens the quad 4 j .. 4 j + 3 (tile_fragments.cuh).

#include "kvaq/cuda/tile_fragments.cuh"

namespace kvaq::cuda {

inline constexpr float kMinusInf = -INFINITY;
inline constexpr int32_t kLongAgo = INT32_MIN / 2;  ///< differences of positions with it do not overflow

/// First position that a query sees.
__device__ __forceinline__ int32_t first_seen_by(const AttendArgs& a, int32_t position) {
    return a.sliding_window <= 0 ? kLongAgo
           : a.chunked_window    ? position / a.sliding_window * a.sliding_window
                                 : position - a.sliding_window + 1;
}
__device__ __forceinline__ int32_t oldest_of(const AttendArgs& a, const RowTile& rows) {
    return rows.first_pos + rows.first_row / a.layer.group;
}
__device__ __forceinline__ int32_t newest_of(const AttendArgs& a, const RowTile& rows) {
    return rows.first_pos + (rows.first_row + rows.n_rows - 1) / a.layer.group;
}

/// Slots of a visit that any of some rows sees.
struct Seen {
    int32_t begin, end;
    [[nodiscard]] __device__ __forceinline__ bool something() const { return begin < end; }
};

/// Those of rows at positions [oldest, newest], which see nothing before oldest_seen; first_pos: of their block.
__device__ __forceinline__ Seen seen_of(const Visit& visit, int32_t first_pos, int32_t oldest, int32_t newest,
                                        int32_t oldest_seen) {
    if (first_pos + visit.token_begin > newest || first_pos + visit.token_end <= oldest) return {0, 0};
    return {max(static_cast<int32_t>(visit.begin), oldest_seen - visit.first_pos),
            min(static_cast<int32_t>(visit.end), newest - visit.first_pos + 1)};
}

/// A warp's row tile. Rows past the last are computed as the last one and not kept.
struct RowView {
    int32_t token[2], position[2], first_seen[2];
    float slope[2];
    int32_t first_pos, oldest, newest, oldest_seen, newest_seen;

    __device__ RowView(const AttendArgs& a, const RowTile& rows, int head, const Lane& lane)
        : first_pos(rows.first_pos), oldest(oldest_of(a, rows)), newest(newest_of(a, rows)) {
        oldest_seen = first_seen_by(a, oldest);
        newest_seen = first_seen_by(a, newest);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int32_t row = rows.first_row + min(static_cast<int32_t>(lane.n) + 8 * i, rows.n_rows - 1);
            token[i] = row / a.layer.group;
            position[i] = rows.first_pos + token[i];
            slope[i] = a.slopes == nullptr ? 0.0F : a.slopes[head * a.layer.group + row % a.layer.group];
            first_seen[i] = first_seen_by(a, position[i]);
        }
    }
    /// Softcap and ALiBi of a score with the token at a position.
    [[nodiscard]] __device__ __forceinline__ float bent(const AttendArgs& a, float x, int row, int32_t at) const {
        if (a.softcap > 0.0F) x = a.softcap * tanhf(x);
        if (a.slopes != nullptr) x += slope[row] * static_cast<float>(at - position[row]);
        return x;
    }
    [[nodiscard]] __device__ __forceinline__ bool sees(const Visit& visit, int row, int32_t slot) const {
        const int32_t at = visit.first_pos + slot;
        return slot >= visit.begin && slot < visit.end && at <= position[row] && at >= first_seen[row] &&
               token[row] >= visit.token_begin && token[row] < visit.token_end;
    }
    /// Every row sees all of slots [first, first + n).
    [[nodiscard]] __device__ __forceinline__ bool sees_all(const Visit& visit, int32_t first, int32_t n) const {
        return first >= visit.begin && first + n <= visit.end && visit.first_pos + first + n - 1 <= oldest &&
               visit.first_pos + first >= newest_seen && first_pos + visit.token_begin <= oldest &&
               first_pos + visit.token_end > newest;
    }
};

/// most: the largest new scores in this thread. top and total are brought to the new largest; factor: by how much sums must be.
__device__ __forceinline__ void new_top(float (&most)[2], float (&top)[2], float (&total)[2], float (&factor)[2]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        most[row] = fmaxf(most[row], __shfl_xor_sync(0xFFFFFFFFU, most[row], 1));
        most[row] = fmaxf(most[row], __shfl_xor_sync(0xFFFFFFFFU, most[row], 2));
        const float now = fmaxf(top[row], most[row]);
        factor[row] = now == top[row] ? 1.0F : top[row] == kMinusInf ? 0.0F : __expf(top[row] - now);
        top[row] = now;
        total[row] *= factor[row];
    }
}

/// Weights of 16 tokens, times their gains, as the first operand of the sum over tokens; added to total without gains.
__device__ __forceinline__ uint4 weights_of(const float (&s)[2][4], const float (&top)[2], float (&total)[2],
                                            const float4& gain) {
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
    const auto halves = [](float a, float b) { return bits_of(__floats2half2_rn(a, b)); };
    return make_uint4(halves(w[0][0] * gain.x, w[0][1] * gain.z), halves(w[0][2] * gain.x, w[0][3] * gain.z),
                      halves(w[1][0] * gain.y, w[1][1] * gain.w), halves(w[1][2] * gain.y, w[1][3] * gain.w));
}

}  // namespace kvaq::cuda
