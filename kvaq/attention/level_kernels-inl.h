// Included once per SIMD target after block_kernels-inl.h: the integer half of attention over packed tiles. Sums of products of unsigned
// bytes with 15-bit integers in int32 are exact, hence the same on every target; |coefficient| <= kWideCoef keeps 512 terms inside
// int32: 512 * 255 * 16319 < 2^31.
//
// Coefficients lie in the order in which one multiplication eats them. Pairs of 16 bits: of four neighbours 0, 2, 1, 3 (even bytes of
// a 32-bit lane, then odd ones). Digits (VNNI multiplies four bytes at once): c = 256 high + low, both signed bytes; of four neighbours the
// lows, then the highs. Sums of either are combined at the end: the same numbers.

#include "kvaq/base/shuffle-inl.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define KVAQ_VNNI
#endif

#if defined(__AVX512VNNI__)
struct DigitOrder {
    // Of every four numbers their bytes 0, then bytes 1 of the same from another register.
    alignas(64) uint8_t from[64] = {};
    constexpr DigitOrder() {
        for (unsigned i = 0; i < 32; ++i)
            from[i] = static_cast<uint8_t>(i % 8 < 4 ? i / 8 * 16 + i % 4 * 4 : 64 + i / 8 * 16 + i % 4 * 4 + 1);
    }
};
static constexpr DigitOrder kDigitOrder;
#endif

// Of a register of coefficients.
static inline void store_coefs(VecI rounded, int16_t* coef) {
#if defined(__AVX512VNNI__)
    typedef int32_t Half __attribute__((vector_size(32), aligned(2), may_alias));
    const auto digits =
        (VecI)_mm512_permutex2var_epi8((__m512i)rounded, _mm512_load_si512(kDigitOrder.from), (__m512i)(rounded + 128));
    *reinterpret_cast<Half*>(coef) = __builtin_shufflevector(digits, digits, 0, 1, 2, 3, 4, 5, 6, 7);
#elif defined(__AVXVNNI__)
    const __m256i low_bytes = _mm256_set1_epi64x(0x808080800C080400);   // of four numbers, 0x80: none
    const __m256i high_bytes = _mm256_set1_epi64x(0x0D09050180808080);  // likewise, bytes 1
    const __m256i digits = _mm256_or_si256(_mm256_shuffle_epi8((__m256i)rounded, low_bytes),
                                           _mm256_shuffle_epi8((__m256i)(rounded + 128), high_bytes));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(coef),
                     _mm256_castsi256_si128(_mm256_permute4x64_epi64(digits, 0b1000)));  // each half's first half
#else
    typedef int16_t VecS __attribute__((vector_size(KVAQ_LANES * 2), aligned(2), may_alias));
    VecI order;
    for (size_t k = 0; k < KVAQ_LANES; k += 4) {
        order[k] = static_cast<int32_t>(k);
        order[k + 1] = static_cast<int32_t>(k + 2);
        order[k + 2] = static_cast<int32_t>(k + 1);
        order[k + 3] = static_cast<int32_t>(k + 3);
    }
    *reinterpret_cast<VecS*>(coef) = __builtin_convertvector(shuffle(rounded, order), VecS);
#endif
}

// Of one number, the i-th of a row.
static inline void store_coef(int32_t rounded, int16_t* coef, size_t i) {
    const size_t in_quad = i % 4;
#if defined(KVAQ_VNNI)
    auto* digits = reinterpret_cast<int8_t*>(coef + i - in_quad);
    digits[in_quad] = static_cast<int8_t>(rounded);
    digits[4 + in_quad] = static_cast<int8_t>((rounded + 128) >> 8);
#else
    coef[i - in_quad + (in_quad == 1 ? 2 : in_quad == 2 ? 1 : in_quad)] = static_cast<int16_t>(rounded);
#endif
}

// Sizes as the integers of their bits: of the same order, and what is not finite comes last.
static inline VecI size_bits(VecF x) { return __builtin_bit_cast(VecI, x) & splat_i(0x7FFFFFFF); }

static inline VecF weighted(const float* x, const float* weight, size_t i) {
    return weight != nullptr ? load(x + i) * load(weight + i) : load(x + i);
}
static inline float weighted_one(const float* x, const float* weight, size_t i) {
    return weight != nullptr ? x[i] * weight[i] : x[i];
}

// kRows rows at once: their chains of dependent steps run side by side. A row's numbers do not depend on its neighbours. top_bits: of the row's largest size.
template <size_t kRows>
static inline void round_some(const float* x, size_t ld_x, const float* weight, size_t n, float most,
                              const int32_t (&top_bits)[kRows], int16_t* coef, size_t ld_coef, float* steps,
                              int32_t* sums) {
    const float magic = 12582912.0F;  // 1.5 * 2^23: adding it rounds to the nearest integer
    const size_t whole = n / KVAQ_LANES * KVAQ_LANES;
    float inverse[kRows];
    VecI keep[kRows];  // no bits of a row that is not finite
    for (size_t r = 0; r < kRows; ++r) {
        const float largest = __builtin_bit_cast(float, top_bits[r]);
        inverse[r] = largest > 1e-30F ? most / largest : 0.0F;
        steps[r] = top_bits[r] < 0x7F800000 ? largest / most : __builtin_nanf("");  // as in f32: no number stays none
        keep[r] = splat_i(top_bits[r] < 0x7F800000 ? -1 : 0);
    }
    VecI total[kRows];
    for (size_t r = 0; r < kRows; ++r) total[r] = splat_i(0);
    for (size_t i = 0; i < whole; i += KVAQ_LANES) {
        for (size_t r = 0; r < kRows; ++r) {
            const VecF value = weighted(x + r * ld_x, weight, i);
            const VecF biased = value * splat(inverse[r]) + splat(magic);
            // An integer below 2^22 lies in the lowest bits of itself + magic.
            const VecI rounded = (__builtin_bit_cast(VecI, biased) - __builtin_bit_cast(VecI, splat(magic))) & keep[r];
            total[r] += rounded;
            store_coefs(rounded, coef + r * ld_coef + i);
        }
    }
    for (size_t r = 0; r < kRows; ++r) sums[r] = sum_of_lanes(total[r]);
    for (size_t r = 0; r < kRows; ++r) {
        for (size_t i = whole; i < n; ++i) {
            const float value = weighted_one(x + r * ld_x, weight, i);
            const int32_t rounded = keep[r][0] == 0 ? 0 : static_cast<int32_t>((value * inverse[r] + magic) - magic);
            sums[r] += rounded;
            store_coef(rounded, coef + r * ld_coef, i);
        }
    }
}

template <size_t kRows>
static inline void quantize_some(const float* x, size_t ld_x, const float* weight, size_t n, float most, int16_t* coef,
                                 size_t ld_coef, float* steps, int32_t* sums) {
    const size_t whole = n / KVAQ_LANES * KVAQ_LANES;
    VecI top[kRows];
    for (size_t r = 0; r < kRows; ++r) top[r] = splat_i(0);
    for (size_t i = 0; i < whole; i += KVAQ_LANES) {
        for (size_t r = 0; r < kRows; ++r) {
            const VecI size = size_bits(weighted(x + r * ld_x, weight, i));
            top[r] = size > top[r] ? size : top[r];
        }
    }
    int32_t top_bits[kRows];
    for (size_t r = 0; r < kRows; ++r) top_bits[r] = largest_lane(top[r]);
    for (size_t r = 0; r < kRows; ++r) {
        for (size_t i = whole; i < n; ++i) {
            const float value = weighted_one(x + r * ld_x, weight, i);
            const int32_t size = __builtin_bit_cast(int32_t, value) & 0x7FFFFFFF;
            top_bits[r] = size > top_bits[r] ? size : top_bits[r];
        }
    }
    round_some<kRows>(x, ld_x, weight, n, most, top_bits, coef, ld_coef, steps, sums);
}

static void quantize_coefs(const float* x, size_t ld_x, const float* weight, size_t n_rows, size_t n, CoefSize size,
                           int16_t* coef, size_t ld_coef, float* steps, int32_t* sums) {
    const auto most = static_cast<float>(size == CoefSize::kByte ? kByteCoef : kWideCoef);
    by_rows(n_rows, [&](auto rows, size_t r) {
        quantize_some<decltype(rows)::value>(x + r * ld_x, ld_x, weight, n, most, coef + r * ld_coef, ld_coef,
                                             steps + r, sums + r);
    });
}

// kOffset: offset_sums are wanted.
template <bool kOffset, size_t kRows>
static inline void softmax_coefs_some(float* s, size_t ld, size_t n_tokens, const float* scale, const float* offset,
                                      float* m, float* l, float* tile_sums, float* factors, int16_t* coef,
                                      size_t ld_coef, float* steps, int32_t* sums, float* offset_sums) {
    VecI top[kRows];
    VecF share[kRows];
    for (size_t r = 0; r < kRows; ++r) {
        top[r] = splat_i(0);
        share[r] = splat(0.0F);
    }
    softmax_some<kRows>(s, ld, n_tokens, m, l, tile_sums, factors, [&](size_t r, size_t t, VecF weights) {
        if constexpr (kOffset) share[r] = mul_add(weights, load(offset + t), share[r]);
        const VecF value = weights * load(scale + t);
        const VecI size = size_bits(value);
        top[r] = size > top[r] ? size : top[r];
        return value;
    });
    int32_t top_bits[kRows];
    for (size_t r = 0; r < kRows; ++r) {
        top_bits[r] = largest_lane(top[r]);
        offset_sums[r] = kOffset ? sum_of_lanes(share[r]) : 0.0F;
    }
    round_some<kRows>(s, ld, nullptr, n_tokens, static_cast<float>(kWideCoef), top_bits, coef, ld_coef, steps, sums);
}

static void softmax_coefs(float* s, size_t ld, size_t n_rows, size_t n_tokens, size_t lo, size_t hi, const float* scale,
                          const float* offset, float* m, float* l, float* tile_sums, float* factors, int16_t* coef,
                          size_t ld_coef, float* steps, int32_t* sums, float* offset_sums) {
    if (keep_range(s, ld, n_rows, n_tokens, lo, hi, tile_sums, factors)) {
        for (size_t r = 0; r < n_rows; ++r) {
            for (size_t i = 0; i < n_tokens; ++i) coef[r * ld_coef + i] = 0;
            steps[r] = offset_sums[r] = 0.0F;
            sums[r] = 0;
        }
        return;
    }
    by_rows(n_rows, [&](auto rows, size_t r) {
        constexpr size_t kRows = decltype(rows)::value;
        const auto run = offset != nullptr ? softmax_coefs_some<true, kRows> : softmax_coefs_some<false, kRows>;
        run(s + r * ld, ld, n_tokens, scale, offset, m + r, l + r, tile_sums + r, factors + r, coef + r * ld_coef,
            ld_coef, steps + r, sums + r, offset_sums + r);
    });
}

#if defined(KVAQ_VNNI)
// Four neighbouring digits in every lane. Assembly here and below: no register is saved by reading them anew in every product.
__attribute__((always_inline)) static inline VecI four_digits(const int16_t* from) {
    typedef int32_t Digits __attribute__((aligned(2), may_alias));
    VecI all;
#if defined(__AVX512VNNI__)
    asm("vpbroadcastd %1, %0" : "=v"(all) : "m"(*reinterpret_cast<const Digits*>(from)));
#else
    asm("vpbroadcastd %1, %0" : "=x"(all) : "m"(*reinterpret_cast<const Digits*>(from)));
#endif
    return all;
}
// sum += bytes times digits, four of each lane.
__attribute__((always_inline)) static inline void add_products(VecI& sum, VecI bytes, VecI digits) {
#if defined(__AVX512VNNI__)
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(digits));
#else
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(bytes), "x"(digits));
#endif
}

// Sums of kRows rows over kVecs registers of lanes, of the coefficients' low and high digits (kByte: low ones only). References to arrays, all inlined: they
// stay in registers.
template <size_t kRows, size_t kVecs>
__attribute__((always_inline)) static inline void start_sums(const int32_t* init, VecI (&low)[kRows][kVecs],
                                                             VecI (&high)[kRows][kVecs]) {
#pragma GCC unroll 4
    for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (size_t j = 0; j < kVecs; ++j) {
            low[r][j] = splat_i(init[r]);
            high[r][j] = splat_i(0);
        }
    }
}

// The products of four terms: u holds their bytes, coef those of the first row.
template <CoefSize kSize, typename V, size_t kRows, size_t kVecs>
__attribute__((always_inline)) static inline void add_quad(const V (&u)[kVecs], const int16_t* coef, size_t ld_coef,
                                                           VecI (&low)[kRows][kVecs], VecI (&high)[kRows][kVecs]) {
#pragma GCC unroll 4
    for (size_t r = 0; r < kRows; ++r) {
        const VecI c0 = four_digits(coef + r * ld_coef);
#pragma GCC unroll 4
        for (size_t j = 0; j < kVecs; ++j) add_products(low[r][j], (VecI)u[j], c0);
        if constexpr (kSize == CoefSize::kWide) {
            const VecI c1 = four_digits(coef + r * ld_coef + 2);
#pragma GCC unroll 4
            for (size_t j = 0; j < kVecs; ++j) add_products(high[r][j], (VecI)u[j], c1);
        }
    }
}

template <CoefSize kSize, size_t kRows, size_t kVecs>
__attribute__((always_inline)) static inline void store_sums(const VecI (&low)[kRows][kVecs],
                                                             const VecI (&high)[kRows][kVecs], int32_t* out,
                                                             size_t ld_out) {
#pragma GCC unroll 4
    for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (size_t j = 0; j < kVecs; ++j) {
            *reinterpret_cast<VecI*>(out + r * ld_out + j * KVAQ_LANES) =
                kSize == CoefSize::kWide ? low[r][j] + (high[r][j] << 8) : low[r][j];
        }
    }
}

// kUnits blocks of 16 lanes for kRows rows.
template <CoefSize kSize, size_t kRows, size_t kUnits>
static inline void dot_rows(const uint8_t* cells, size_t cell_stride, size_t n_quads, const int16_t* coef,
                            size_t ld_coef, const int32_t* init, int32_t* out, size_t ld_out) {
    constexpr size_t kVecs = kUnits * (16 / KVAQ_LANES);
    VecI low[kRows][kVecs];
    VecI high[kRows][kVecs];
    start_sums(init, low, high);
    for (size_t quad = 0; quad < n_quads; ++quad) {
        const uint8_t* from = cells + quad * cell_stride;
        VecI u[kVecs];
#pragma GCC unroll 4
        for (size_t j = 0; j < kVecs; ++j) u[j] = *reinterpret_cast<const VecI*>(from + j * KVAQ_LANES * 4);
        add_quad<kSize>(u, coef + quad * 4, ld_coef, low, high);
    }
    store_sums<kSize>(low, high, out, ld_out);
}
#else
/// One register of 32-bit lanes times two pairs of coefficients, added to acc.
static inline VecI dot_quad(VecI acc, VecI even, VecI odd, int32_t even_coef, int32_t odd_coef) {
#if defined(__AVX512BW__)
    return acc + (VecI)_mm512_madd_epi16((__m512i)even, _mm512_set1_epi32(even_coef)) +
           (VecI)_mm512_madd_epi16((__m512i)odd, _mm512_set1_epi32(odd_coef));
#elif defined(__AVX2__)
    return acc + (VecI)_mm256_madd_epi16((__m256i)even, _mm256_set1_epi32(even_coef)) +
           (VecI)_mm256_madd_epi16((__m256i)odd, _mm256_set1_epi32(odd_coef));
#else
    const VecI low = splat_i(0xFFFF);
    acc += (even & low) * splat_i(static_cast<int16_t>(even_coef & 0xFFFF)) + (even >> 16) * splat_i(even_coef >> 16);
    return acc + (odd & low) * splat_i(static_cast<int16_t>(odd_coef & 0xFFFF)) + (odd >> 16) * splat_i(odd_coef >> 16);
#endif
}

// kUnits blocks of 16 lanes for kRows rows.
template <CoefSize, size_t kRows, size_t kUnits>
static inline void dot_rows(const uint8_t* cells, size_t cell_stride, size_t n_quads, const int16_t* coef,
                            size_t ld_coef, const int32_t* init, int32_t* out, size_t ld_out) {
    constexpr size_t kVecs = kUnits * (16 / KVAQ_LANES);
    VecI acc[kRows][kVecs];
    for (size_t r = 0; r < kRows; ++r) {
        for (size_t j = 0; j < kVecs; ++j) acc[r][j] = splat_i(init[r]);
    }
    const VecI mask = splat_i(0x00FF00FF);
    for (size_t quad = 0; quad < n_quads; ++quad) {
        const uint8_t* from = cells + quad * cell_stride;
        VecI even[kVecs];
        VecI odd[kVecs];
        for (size_t j = 0; j < kVecs; ++j) {
            const VecI word = *reinterpret_cast<const VecI*>(from + j * KVAQ_LANES * 4);
            even[j] = word & mask;
            odd[j] = (word >> 8) & mask;
        }
        for (size_t r = 0; r < kRows; ++r) {
            int32_t pair[2];
            __builtin_memcpy(pair, coef + r * ld_coef + quad * 4, sizeof pair);
            for (size_t j = 0; j < kVecs; ++j) acc[r][j] = dot_quad(acc[r][j], even[j], odd[j], pair[0], pair[1]);
        }
    }
    for (size_t r = 0; r < kRows; ++r) {
        for (size_t j = 0; j < kVecs; ++j) *reinterpret_cast<VecI*>(out + r * ld_out + j * KVAQ_LANES) = acc[r][j];
    }
}
#endif

template <CoefSize kSize, size_t kRows>
static void dot_units(const uint8_t* cells, size_t cell_stride, size_t n_lanes16, size_t n_quads, const int16_t* coef,
                      size_t ld_coef, const int32_t* init, int32_t* out, size_t ld_out) {
#if defined(__AVXVNNI__)
    if constexpr (kSize == CoefSize::kWide &&
                  kRows == 4) {  // 8 sums of two rows, the levels and a coefficient in 16 registers
        for (size_t r = 0; r < 4; r += 2) {
            dot_units<kSize, 2>(cells, cell_stride, n_lanes16, n_quads, coef + r * ld_coef, ld_coef, init + r,
                                out + r * ld_out, ld_out);
        }
        return;
    }
    constexpr size_t kMost = 1;
#elif defined(__AVX512VNNI__)
    // 24 sums at most, the levels and two coefficients in 32 registers
    constexpr size_t kMost = kRows == 4 && kSize == CoefSize::kWide ? 2 : 4;
#else
    constexpr size_t kMost = KVAQ_LANES == 16 ? 4 : 1;
#endif
    size_t unit = 0;
    for (; unit + kMost <= n_lanes16; unit += kMost) {
        dot_rows<kSize, kRows, kMost>(cells + unit * 64, cell_stride, n_quads, coef, ld_coef, init, out + unit * 16,
                                      ld_out);
    }
    for (; unit < n_lanes16; ++unit) {
        dot_rows<kSize, kRows, 1>(cells + unit * 64, cell_stride, n_quads, coef, ld_coef, init, out + unit * 16,
                                  ld_out);
    }
}

static void dot_cells(const uint8_t* cells, size_t cell_stride, size_t n_lanes16, size_t n_quads, CoefSize size,
                      const int16_t* coef, size_t ld_coef, size_t n_rows, const int32_t* init, int32_t* out,
                      size_t ld_out) {
    by_rows(n_rows, [&](auto rows, size_t r) {
        constexpr size_t kRows = decltype(rows)::value;
        const auto run =
            size == CoefSize::kByte ? dot_units<CoefSize::kByte, kRows> : dot_units<CoefSize::kWide, kRows>;
        run(cells, cell_stride, n_lanes16, n_quads, coef + r * ld_coef, ld_coef, init + r, out + r * ld_out, ld_out);
    });
}

static void add_levels(const int32_t* acc, size_t ld_acc, size_t n_rows, size_t n, const float* steps,
                       const float* scale, const float* offset, const float* offset_factors, const float* start,
                       float* out, size_t ld_out) {
    for (size_t r = 0; r < n_rows; ++r) {
        const int32_t* from = acc + r * ld_acc;
        float* to = out + r * ld_out;
        const VecF step = splat(steps[r]);
        const VecF offset_factor = splat(offset != nullptr ? offset_factors[r] : 0.0F);
        const VecF first = splat(start != nullptr ? start[r] : 0.0F);
        for (size_t i = 0; i < n; i += KVAQ_LANES) {
            const VecF factor = scale != nullptr ? step * load(scale + i) : step;
            const VecF before = start != nullptr ? first : load(to + i);
            VecF sum = mul_add(__builtin_convertvector(*reinterpret_cast<const VecI*>(from + i), VecF), factor, before);
            if (offset != nullptr) sum = mul_add(load(offset + i), offset_factor, sum);
            store(to + i, sum);
        }
    }
}

static float dot(const float* a, const float* b, size_t n) {
    VecF sum = splat(0.0F);
    size_t i = 0;
    for (; i + KVAQ_LANES <= n; i += KVAQ_LANES) sum = mul_add(load(a + i), load(b + i), sum);
    float total = sum_of_lanes(sum);
    for (; i < n; ++i) total += a[i] * b[i];
    return total;
}

#if defined(KVAQ_VNNI)
static constexpr bool kByteDigits = true;
#else
static constexpr bool kByteDigits = false;
#endif
#if defined(__AVX512VNNI__)
#include "kvaq/attention/code_dots-inl.h"
static constexpr auto kDotCodes = dot_codes;
#else
static constexpr decltype(BlockKernels::dot_codes) kDotCodes = nullptr;
#endif

static const BlockKernels kTable = {scores,         accumulate,    softmax_step, scale,     bytes_to_float, to_float,
                                    quantize_coefs, softmax_coefs, dot_cells,    kDotCodes, add_levels,     dot,
                                    kByteDigits};
#undef KVAQ_VNNI
