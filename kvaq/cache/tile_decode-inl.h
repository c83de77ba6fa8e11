// Included once per SIMD target, inside that target's own namespace, with KVAQ_LANES = 32-bit lanes of a register.
// GCC/Clang vector extensions only. code * scale + offset is rounded twice, on purpose, so that every target gives the
// same bits (these files are compiled with -ffp-contract=off).

typedef float VecF __attribute__((vector_size(KVAQ_LANES * 4), aligned(4), may_alias));
typedef int32_t VecI __attribute__((vector_size(KVAQ_LANES * 4), aligned(4), may_alias));
typedef float16 VecH __attribute__((vector_size(KVAQ_LANES * 2), aligned(2), may_alias));

#include "kvaq/base/shuffle-inl.h"
#include "kvaq/base/widen-inl.h"
#include "kvaq/cache/tile_codes-inl.h"

static inline VecF load_f(const float* from) { return *reinterpret_cast<const VecF*>(from); }

// Hands every cell's codes to visit(quad, lane of the first, low, high), a register of 32-bit words at a time: bytes of `low` begin with the low bits, those of
// `high` end with the high ones; the rest of them is anything. By value: what visit writes cannot be the planes then.
template <unsigned kLow, unsigned kHigh, typename Visit>
static inline void walk_planes(const CodePlanes planes, Visit visit) {
    constexpr size_t kLowCells = 8 / kLow;  // of a block
    constexpr size_t kHighCells = kHigh > 0 ? 8 / kHigh : 1;
    constexpr size_t kSpan = kLowCells > kHighCells ? kLowCells : kHighCells;
    size_t quad = 0;
    size_t lanes = 0;
    // The c-th cell from where blocks of both planes begin.
    const auto take = [&](const uint8_t* low, const uint8_t* high, size_t c) {
        for (size_t part = 0; part < 16; part += KVAQ_LANES) {
            VecU top = {};
            if constexpr (kHigh > 0) {
                top = load_u(high + c / kHighCells * 64 + part * 4)
                      << static_cast<uint32_t>(8 - kHigh - c % kHighCells * kHigh);
            }
            visit(quad, lanes * 16 + part,
                  load_u(low + c / kLowCells * 64 + part * 4) >> static_cast<uint32_t>(c % kLowCells * kLow), top);
        }
        if (++lanes < planes.n_lanes16) return;
        lanes = 0;
        ++quad;
    };
    const size_t n_cells = planes.n_quads * planes.n_lanes16;
    const uint8_t* low = planes.low;
    const uint8_t* high = planes.high;
    size_t cell = 0;
    for (; cell + kSpan <= n_cells; cell += kSpan) {
#pragma GCC unroll 8
        for (size_t c = 0; c < kSpan; ++c) take(low, high, c);  // shifts are constants
        low += kSpan / kLowCells * 64;
        if constexpr (kHigh > 0) high += kSpan / kHighCells * 64;
    }
    for (size_t c = 0; cell + c < n_cells; ++c) take(low, high, c);
}

// visit(quad, lane of the first, codes).
template <unsigned kLow, unsigned kHigh, typename Visit>
static inline void walk_cells(const CodePlanes planes, Visit visit) {
    walk_planes<kLow, kHigh>(planes, [&](size_t quad, size_t lane, VecU low, VecU high) {
        visit(quad, lane, join_planes<kLow, kHigh>(low, high));
    });
}

static inline VecU byte_of(VecU words, size_t i) { return (words >> static_cast<uint32_t>(8 * i)) & 0xFFU; }

static void affine(const DecodeJob& job, float* out) {
    with_bits(job.planes, [&]<unsigned kLow, unsigned kHigh>() {
        walk_cells<kLow, kHigh>(job.planes, [&](size_t quad, size_t lane, VecU codes) {
            for (size_t i = 0; i < 4; ++i) {
                const VecU code = byte_of(codes, i);
                const VecF x = __builtin_convertvector(reinterpret_cast<const VecI&>(code), VecF);
                const size_t j = quad * 4 + i;
                VecF value;
                if (job.by_lane) {
                    const size_t at = j / job.quad_group * job.scale_stride + lane;
                    value = x * load_f(job.scale + at) + load_f(job.offset + at);
                } else {
                    const size_t at = lane / job.lane_group * job.scale_stride + j;
                    value = x * job.scale[at] + job.offset[at];
                }
                *reinterpret_cast<VecF*>(out + j * job.ld_out + lane) = value;
            }
        });
    });
}

// table[code], codes below 2^kBits.
template <unsigned kBits>
static inline VecF look_up(const float* table, VecU code) {
    if constexpr (kBits == 8) {
        return __builtin_convertvector(reinterpret_cast<VecI&>(code) - 128, VecF);
    } else if constexpr ((size_t{1} << kBits) <= KVAQ_LANES) {
        return shuffle(load_f(table), code);
    } else if constexpr ((size_t{1} << kBits) <= 2 * KVAQ_LANES && KVAQ_LANES >= 8) {
        return shuffle(load_f(table), load_f(table + KVAQ_LANES), code);
    } else {
        VecF level;
        for (size_t i = 0; i < KVAQ_LANES; ++i) level[i] = table[code[i]];
        return level;
    }
}

static void codebook(const CodebookJob& job, float* out) {
    with_bits(job.planes, [&]<unsigned kLow, unsigned kHigh>() {
        walk_cells<kLow, kHigh>(job.planes, [&](size_t quad, size_t lane, VecU codes) {
            for (size_t i = 0; i < 4; ++i) {
                const size_t j = quad * 4 + i;
                const VecF scale = job.quad_scale[j] * load_f(job.lane_scale + lane);
                const VecF offset = job.quad_offset[j] + load_f(job.lane_offset + lane);
                *reinterpret_cast<VecF*>(out + j * job.ld_out + lane) =
                    look_up<kLow + kHigh>(job.table, byte_of(codes, i)) * scale + offset;
            }
        });
    });
}

static void levels(const CodePlanes& planes, const uint8_t* table, uint8_t* cells, size_t cell_stride) {
    with_bits(planes, [&]<unsigned kLow, unsigned kHigh>() {
        walk_cells<kLow, kHigh>(planes, [&](size_t quad, size_t lane, VecU codes) {
            if constexpr (kLow < 8) {
                if (table != nullptr) codes = look_up_bytes<kLow + kHigh>(table, codes);
            }
            *reinterpret_cast<VecU*>(cells + quad * cell_stride + lane * 4) = codes;
        });
    });
}

#if !defined(__AVX512VBMI__) && (defined(__AVX512BW__) || defined(__AVX2__))
#define KVAQ_TRELLIS_BLOCK 16

// Windows of a register's part of a cell; the cell's 64 codes lie there twice in a row, as window_codes gives them, `code` points into the second.
template <unsigned kLow, unsigned kHigh>
static inline VecU trellis_windows(const uint8_t* code) {
    VecU windows = load_u(code);
    for (uint32_t j = 1; j <= 8 - kLow - kHigh; ++j) windows |= (load_u(code - j) & 0x01010101U) << (kLow + j - 1);
    return windows;
}

// table[window], 256 entries: all 16 rows of 16 by byte shuffle, then four choices by the upper bits.
static inline VecU look_up_256(const uint8_t* table, VecU windows) {
    VecU row[16];
    for (uint32_t r = 0; r < 16; ++r) {
        const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + r * 16));
#if defined(__AVX512BW__)
        row[r] =
            (VecU)_mm512_shuffle_epi8(_mm512_maskz_broadcast_i32x4(0xFFFF, entries), (__m512i)(windows & 0x0F0F0F0FU));
#else
        row[r] = (VecU)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), (__m256i)(windows & 0x0F0F0F0FU));
#endif
    }
    for (uint32_t bit = 4; bit < 8; ++bit) {
        const VecU top = windows << (7 - bit);  // the bit at the top of its byte
        for (uint32_t r = 0; r < 128U >> bit; ++r) {
#if defined(__AVX512BW__)
            row[r] = (VecU)_mm512_mask_blend_epi8(_mm512_movepi8_mask((__m512i)top), (__m512i)row[2 * r],
                                                  (__m512i)row[2 * r + 1]);
#else
            row[r] = (VecU)_mm256_blendv_epi8((__m256i)row[2 * r], (__m256i)row[2 * r + 1], (__m256i)top);
#endif
        }
    }
    return row[0];
}
#endif

static void trellis(const CodePlanes& planes, const uint8_t* table, uint8_t* cells, size_t cell_stride) {
    with_bits(planes, [&]<unsigned kLow, unsigned kHigh>() {
        constexpr unsigned kBits = kLow + kHigh;
        if constexpr (kBits < 8) {
#if defined(KVAQ_TRELLIS_BLOCK)
            // Codes of some cells first, so that loads of neighbours need not wait for what was just stored.
            alignas(64) uint8_t codes_twice[KVAQ_TRELLIS_BLOCK][128];
            uint8_t* to[KVAQ_TRELLIS_BLOCK];
            size_t n = 0;
            const auto flush = [&] {
                for (size_t c = 0; c < n; ++c) {
                    for (size_t i = 0; i < 64; i += KVAQ_LANES * 4) {
                        *reinterpret_cast<VecU*>(to[c] + i) =
                            look_up_256(table, trellis_windows<kLow, kHigh>(&codes_twice[c][64 + i]));
                    }
                }
                n = 0;
            };
            walk_planes<kLow, kHigh>(planes, [&](size_t quad, size_t lane, VecU low, VecU high) {
                const VecU codes = window_codes<kLow, kHigh>(low, high);
                *reinterpret_cast<VecU*>(&codes_twice[n][lane % 16 * 4]) = codes;
                *reinterpret_cast<VecU*>(&codes_twice[n][64 + lane % 16 * 4]) = codes;
                if (lane % 16 + KVAQ_LANES < 16) return;
                to[n++] = cells + quad * cell_stride + lane / 16 * 64;
                if (n == KVAQ_TRELLIS_BLOCK) flush();
            });
            flush();
#elif defined(__AVX512VBMI__)
            const TrellisTable parts = load_trellis(table);
            walk_planes<kLow, kHigh>(planes, [&](size_t quad, size_t lane, VecU low, VecU high) {
                *reinterpret_cast<VecU*>(cells + quad * cell_stride + lane * 4) =
                    trellis_cell<kLow, kHigh>(parts, low, high);
            });
#else
            constexpr unsigned kHistory = (0xFFU >> kHigh) & ~((1U << kLow) - 1U);
            walk_planes<kLow, kHigh>(planes, [&](size_t quad, size_t lane, VecU low, VecU high) {
                const VecU codes = window_codes<kLow, kHigh>(low, high);
                uint8_t* cell = cells + quad * cell_stride + lane / 16 * 64;
                *reinterpret_cast<VecU*>(cell + lane % 16 * 4) = codes;
                if (lane % 16 + KVAQ_LANES < 16) return;
                unsigned state = 0;
                for (size_t i = 64 - (8 - kBits); i < 64; ++i) state = state << 1 | (cell[i] & 1U);
                for (size_t i = 0; i < 64; ++i) {
                    const unsigned code = cell[i];
                    cell[i] = table[code | (state << kLow & kHistory)];
                    state = state << 1 | (code & 1U);
                }
            });
#endif
        }
    });
}

static void to_float(const float16* from, size_t n, float* to) {
    size_t i = 0;
    for (; i + KVAQ_LANES <= n; i += KVAQ_LANES) *reinterpret_cast<VecF*>(to + i) = widen(from + i);
    for (; i < n; ++i) to[i] = static_cast<float>(from[i]);
}

// 2^((byte - 128) / 16): 16 steps of an octave, times a power of two.
static void gains(const uint8_t* from, size_t n, float* to) {
    const float* octave = transform_gains().data() + 128;
    size_t i = 0;
    for (; i + KVAQ_LANES <= n; i += KVAQ_LANES) {
        const auto code = (VecU)widen(from + i);
        const VecF step = look_up<4>(octave, code & 15U);
        const VecU power = (code >> 4) - 8U + 127U;
        *reinterpret_cast<VecF*>(to + i) = step * __builtin_bit_cast(VecF, power << 23);
    }
    for (; i < n; ++i) to[i] = transform_gains()[from[i]];
}

static const DecodeKernels kTable = {affine, codebook, levels, trellis, to_float, gains};
