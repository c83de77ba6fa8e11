// Included once per SIMD target, inside that target's own namespace, with KVAQ_LANES = 32-bit lanes of a register.
// GCC/Clang vector extensions only. code * scale + offset is rounded twice, on purpose, so that every target gives the
// same bits (these files are compiled with -ffp-contract=off).

typedef float VecF __attribute__((vector_size(KVAQ_LANES * 4), aligned(4), may_alias));
typedef uint32_t VecU __attribute__((vector_size(KVAQ_LANES * 4), aligned(4), may_alias));
typedef int32_t VecI __attribute__((vector_size(KVAQ_LANES * 4), aligned(4), may_alias));
typedef float16 VecH __attribute__((vector_size(KVAQ_LANES * 2), aligned(2), may_alias));

#include "kvaq/base/shuffle-inl.h"
#include "kvaq/base/widen-inl.h"

static inline VecU load_u(const uint8_t* from) { return *reinterpret_cast<const VecU*>(from); }
static inline VecF load_f(const float* from) { return *reinterpret_cast<const VecF*>(from); }

// Hands the 64 codes of every cell to visit(quad, lane of the first, codes as 32-bit words of 4), register by register.
// By value: what visit writes cannot be the planes then.
template <unsigned kLow, unsigned kHigh, typename Visit>
static inline void walk_cells(const CodePlanes planes, Visit visit) {
    constexpr uint32_t kLowMask = ((1U << kLow) - 1U) * 0x01010101U;
    constexpr uint32_t kHighMask = ((1U << kHigh) - 1U) * 0x01010101U;
    constexpr size_t kLowCells = 8 / kLow;  // of a block
    constexpr size_t kHighCells = kHigh > 0 ? 8 / kHigh : 1;
    constexpr size_t kSpan = kLowCells > kHighCells ? kLowCells : kHighCells;
    size_t quad = 0;
    size_t lanes = 0;
    // The c-th cell from where blocks of both planes begin.
    const auto take = [&](const uint8_t* low, const uint8_t* high, size_t c) {
        for (size_t part = 0; part < 16; part += KVAQ_LANES) {
            const auto low_shift = static_cast<uint32_t>(c % kLowCells * kLow);
            VecU codes = (load_u(low + c / kLowCells * 64 + part * 4) >> low_shift) & kLowMask;
            if constexpr (kHigh > 0) {
                const auto high_shift = static_cast<uint32_t>(c % kHighCells * kHigh);
                codes |= ((load_u(high + c / kHighCells * 64 + part * 4) >> high_shift) & kHighMask) << kLow;
            }
            visit(quad, lanes * 16 + part, codes);
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

// Calls run<low bits, high bits>() for a band's planes.
template <typename Run>
static inline void with_bits(const CodePlanes& planes, Run run) {
    switch (planes.low_bits * 10 + planes.high_bits) {
        case 10:
            return run.template operator()<1, 0>();
        case 20:
            return run.template operator()<2, 0>();
        case 21:
            return run.template operator()<2, 1>();
        case 40:
            return run.template operator()<4, 0>();
        case 41:
            return run.template operator()<4, 1>();
        case 42:
            return run.template operator()<4, 2>();
        default:
            return run.template operator()<8, 0>();
    }
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

// table[code] for every byte of a register, codes below 2^kBits <= 64.
template <unsigned kBits>
static inline VecU look_up_bytes(const uint8_t* table, VecU codes) {
#if defined(__AVX512VBMI__)
    // The zeroing form with a full mask: g++ 12 warns wrongly of the plain one (GCC bug 105593).
    return (VecU)_mm512_maskz_permutexvar_epi8(~__mmask64{0}, (__m512i)codes, _mm512_loadu_si512(table));
#elif defined(__AVX512BW__) || defined(__AVX2__)
    // 16 entries at a time: a byte shuffle gives 0 where the index's top bit is set, which adding 0x70 does from 16 on.
    VecU found = {};
    for (uint32_t part = 0; part < (kBits <= 4 ? 1U : 1U << (kBits - 4)); ++part) {
        const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + part * 16));
        const VecU index = codes ^ (part * 0x10101010U);
#if defined(__AVX512BW__)
        found |= (VecU)_mm512_shuffle_epi8(_mm512_maskz_broadcast_i32x4(0xFFFF, entries),
                                           _mm512_adds_epu8((__m512i)index, _mm512_set1_epi8(0x70)));
#else
        found |= (VecU)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries),
                                           _mm256_adds_epu8((__m256i)index, _mm256_set1_epi8(0x70)));
#endif
    }
    return found;
#else
    uint8_t bytes[KVAQ_LANES * 4];
    *reinterpret_cast<VecU*>(bytes) = codes;
    for (size_t i = 0; i < sizeof bytes; ++i) bytes[i] = table[bytes[i]];
    return load_u(bytes);
#endif
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

// Windows of a whole cell from its codes, 64 bytes in a register or in memory; then their levels.
#if defined(__AVX512VBMI__)
struct TrellisOrder {
    alignas(64) uint8_t backwards[64] = {};  // byte i from byte 63 - i
    alignas(64) uint8_t first_bit[64] = {};  // 64 - i: where the history of byte i begins, less the code's bits
    constexpr TrellisOrder() {
        for (unsigned i = 0; i < 64; ++i) {
            backwards[i] = static_cast<uint8_t>(63 - i);
            first_bit[i] = static_cast<uint8_t>((64 - i) % 64);
        }
    }
};
static constexpr TrellisOrder kTrellisOrder;

/// In registers.
struct TrellisTable {
    __m512i part[4];
};

// Bit k of `last` is the lowest bit of code 63 - k, so that of code i - 1 - j is bit 64 - i + j, around: the 8 bits from bit 64 - i - kBits on are what
// comes after the code's own kBits in window i. The multi-shift takes 8 bits from any place of a 64-bit word.
template <unsigned kBits>
static inline VecU trellis_cell(const TrellisTable& table, VecU codes) {
    constexpr auto kCodeMask = static_cast<int>(((1U << kBits) - 1U) * 0x01010101U);
    const __m512i backwards =
        _mm512_maskz_permutexvar_epi8(~__mmask64{0}, _mm512_load_si512(kTrellisOrder.backwards), (__m512i)codes);
    const __mmask64 last = _mm512_test_epi8_mask(backwards, _mm512_set1_epi8(1));
    const __m512i from = _mm512_sub_epi8(_mm512_load_si512(kTrellisOrder.first_bit), _mm512_set1_epi8(kBits));
    const __m512i history = _mm512_maskz_multishift_epi64_epi8(
        ~__mmask64{0}, from, _mm512_maskz_set1_epi64(0xFF, static_cast<long long>(last)));
    // codes where the mask has ones, history elsewhere
    const __m512i windows = _mm512_ternarylogic_epi32(_mm512_set1_epi32(kCodeMask), (__m512i)codes, history, 0xCA);
    const __m512i low = _mm512_permutex2var_epi8(table.part[0], windows, table.part[1]);
    const __m512i high = _mm512_permutex2var_epi8(table.part[2], windows, table.part[3]);
    return (VecU)_mm512_mask_blend_epi8(_mm512_movepi8_mask(windows), low, high);
}
#elif defined(__AVX512BW__) || defined(__AVX2__)
#define KVAQ_TRELLIS_BLOCK 16

// Windows of a register's part of a cell; the cell's 64 codes lie there twice in a row, `code` points into the second.
template <unsigned kBits>
static inline VecU trellis_windows(const uint8_t* code) {
    VecU windows = load_u(code);
    for (uint32_t j = 1; j <= 8 - kBits; ++j) windows |= (load_u(code - j) & 0x01010101U) << (kBits + j - 1);
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
                            look_up_256(table, trellis_windows<kBits>(&codes_twice[c][64 + i]));
                    }
                }
                n = 0;
            };
            walk_cells<kLow, kHigh>(planes, [&](size_t quad, size_t lane, VecU codes) {
                *reinterpret_cast<VecU*>(&codes_twice[n][lane % 16 * 4]) = codes;
                *reinterpret_cast<VecU*>(&codes_twice[n][64 + lane % 16 * 4]) = codes;
                if (lane % 16 + KVAQ_LANES < 16) return;
                to[n++] = cells + quad * cell_stride + lane / 16 * 64;
                if (n == KVAQ_TRELLIS_BLOCK) flush();
            });
            flush();
#elif defined(__AVX512VBMI__)
            const TrellisTable parts = {{_mm512_loadu_si512(table), _mm512_loadu_si512(table + 64),
                                         _mm512_loadu_si512(table + 128), _mm512_loadu_si512(table + 192)}};
            walk_cells<kLow, kHigh>(planes, [&](size_t quad, size_t lane, VecU codes) {
                *reinterpret_cast<VecU*>(cells + quad * cell_stride + lane * 4) = trellis_cell<kBits>(parts, codes);
            });
#else
            walk_cells<kLow, kHigh>(planes, [&](size_t quad, size_t lane, VecU codes) {
                uint8_t* cell = cells + quad * cell_stride + lane / 16 * 64;
                *reinterpret_cast<VecU*>(cell + lane % 16 * 4) = codes;
                if (lane % 16 + KVAQ_LANES < 16) return;
                unsigned state = 0;
                for (size_t i = 64 - (8 - kBits); i < 64; ++i) state = state << 1 | (cell[i] & 1U);
                for (size_t i = 0; i < 64; ++i) {
                    const unsigned code = cell[i];
                    cell[i] = table[code | (state << kBits & 0xFFU)];
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
