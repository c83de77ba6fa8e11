// Included once per SIMD target, inside that target's own namespace, with KVAQ_LANES = f32 lanes of a register.
// GCC/Clang vector extensions, and no intrinsics but in exp_nonpositive, so the same text serves x86, ARM and the plain fallback.
// Nothing here may be an inline function of a shared header (one-definition rule across different -m flags).

typedef float VecF __attribute__((vector_size(KVAQ_LANES * 4), aligned(4), may_alias));
typedef int32_t VecI __attribute__((vector_size(KVAQ_LANES * 4), aligned(4), may_alias));
typedef float16 VecH __attribute__((vector_size(KVAQ_LANES * 2), aligned(2), may_alias));

#include "kvaq/base/widen-inl.h"

static inline VecF load(const float* from) { return *reinterpret_cast<const VecF*>(from); }
static inline void store(float* to, VecF value) { *reinterpret_cast<VecF*>(to) = value; }
static inline VecF splat(float value) { return value - VecF{}; }
static inline VecI splat_i(int32_t value) { return value - VecI{}; }

// Lane i from lane i + kBy, around.
template <size_t kBy, typename V, size_t... k>
static inline V rotate_lanes(V x, std::index_sequence<k...>) {
    return __builtin_shufflevector(x, x, ((k + kBy) % KVAQ_LANES)...);
}
// Over all lanes, pairwise.
template <size_t kBy = KVAQ_LANES / 2, typename V>
static inline auto sum_of_lanes(V x) {
    if constexpr (kBy == 0) {
        return x[0];
    } else {
        return sum_of_lanes<kBy / 2>(x + rotate_lanes<kBy>(x, std::make_index_sequence<KVAQ_LANES>()));
    }
}
template <size_t kBy = KVAQ_LANES / 2, typename V>
static inline auto largest_lane(V x) {
    if constexpr (kBy == 0) {
        return x[0];
    } else {
        const V other = rotate_lanes<kBy>(x, std::make_index_sequence<KVAQ_LANES>());
        return largest_lane<kBy / 2>(other > x ? other : x);
    }
}

// a * b + c. The targets' flags contract this to one FMA where the CPU has it (see CMake: -ffp-contract=fast here only).
static inline VecF mul_add(VecF a, VecF b, VecF c) { return a * b + c; }

// run(rows as a type with ::value, first row) over n_rows rows, four at a time, then the 3, 2 or 1 that are left.
template <typename Run>
static inline void by_rows(size_t n_rows, const Run& run) {
    size_t r = 0;
    for (; n_rows - r >= 4; r += 4) run(std::integral_constant<size_t, 4>{}, r);
    if (n_rows - r == 3) run(std::integral_constant<size_t, 3>{}, r);
    if (n_rows - r == 2) run(std::integral_constant<size_t, 2>{}, r);
    if (n_rows - r == 1) run(std::integral_constant<size_t, 1>{}, r);
}

template <size_t kRows>
static inline void scores_rows(const float* q, size_t ld_q, size_t dim_k, const float* kt, size_t ld_kt,
                               size_t n_tokens, float* s, size_t ld_s) {
    constexpr size_t kVecs = 2;  // kRows * kVecs accumulators stay in registers
    size_t t = 0;
    for (; t + kVecs * KVAQ_LANES <= n_tokens; t += kVecs * KVAQ_LANES) {
        VecF acc[kRows][kVecs] = {};
        for (size_t c = 0; c < dim_k; ++c) {
            VecF k[kVecs];
            for (size_t j = 0; j < kVecs; ++j) k[j] = load(kt + c * ld_kt + t + j * KVAQ_LANES);
            for (size_t r = 0; r < kRows; ++r) {
                const VecF x = splat(q[r * ld_q + c]);
                for (size_t j = 0; j < kVecs; ++j) acc[r][j] = mul_add(x, k[j], acc[r][j]);
            }
        }
        for (size_t r = 0; r < kRows; ++r) {
            for (size_t j = 0; j < kVecs; ++j) store(s + r * ld_s + t + j * KVAQ_LANES, acc[r][j]);
        }
    }
    for (; t < n_tokens; t += KVAQ_LANES) {
        VecF acc[kRows] = {};
        for (size_t c = 0; c < dim_k; ++c) {
            const VecF k = load(kt + c * ld_kt + t);
            for (size_t r = 0; r < kRows; ++r) acc[r] = mul_add(splat(q[r * ld_q + c]), k, acc[r]);
        }
        for (size_t r = 0; r < kRows; ++r) store(s + r * ld_s + t, acc[r]);
    }
}

static void scores(const float* q, size_t ld_q, size_t n_rows, size_t dim_k, const float* kt, size_t ld_kt,
                   size_t n_tokens, float* s, size_t ld_s) {
    size_t r = 0;
    for (; r + 6 <= n_rows; r += 6) scores_rows<6>(q + r * ld_q, ld_q, dim_k, kt, ld_kt, n_tokens, s + r * ld_s, ld_s);
    for (; r + 3 <= n_rows; r += 3) scores_rows<3>(q + r * ld_q, ld_q, dim_k, kt, ld_kt, n_tokens, s + r * ld_s, ld_s);
    for (; r < n_rows; ++r) scores_rows<1>(q + r * ld_q, ld_q, dim_k, kt, ld_kt, n_tokens, s + r * ld_s, ld_s);
}

template <size_t kRows>
static inline void accumulate_rows(const float* p, size_t ld_p, size_t t_begin, size_t t_end, const float* v,
                                   size_t ld_v, size_t dim_v, float* o, size_t ld_o) {
    constexpr size_t kVecs = 2;
    size_t d = 0;
    for (; d + kVecs * KVAQ_LANES <= dim_v; d += kVecs * KVAQ_LANES) {
        VecF acc[kRows][kVecs];
        for (size_t r = 0; r < kRows; ++r) {
            for (size_t j = 0; j < kVecs; ++j) acc[r][j] = load(o + r * ld_o + d + j * KVAQ_LANES);
        }
        for (size_t t = t_begin; t < t_end; ++t) {
            VecF x[kVecs];
            for (size_t j = 0; j < kVecs; ++j) x[j] = load(v + t * ld_v + d + j * KVAQ_LANES);
            for (size_t r = 0; r < kRows; ++r) {
                const VecF w = splat(p[r * ld_p + t]);
                for (size_t j = 0; j < kVecs; ++j) acc[r][j] = mul_add(w, x[j], acc[r][j]);
            }
        }
        for (size_t r = 0; r < kRows; ++r) {
            for (size_t j = 0; j < kVecs; ++j) store(o + r * ld_o + d + j * KVAQ_LANES, acc[r][j]);
        }
    }
    for (; d < dim_v; d += KVAQ_LANES) {
        VecF acc[kRows];
        for (size_t r = 0; r < kRows; ++r) acc[r] = load(o + r * ld_o + d);
        for (size_t t = t_begin; t < t_end; ++t) {
            const VecF x = load(v + t * ld_v + d);
            for (size_t r = 0; r < kRows; ++r) acc[r] = mul_add(splat(p[r * ld_p + t]), x, acc[r]);
        }
        for (size_t r = 0; r < kRows; ++r) store(o + r * ld_o + d, acc[r]);
    }
}

static void accumulate(const float* p, size_t ld_p, size_t n_rows, size_t t_begin, size_t t_end, const float* v,
                       size_t ld_v, size_t dim_v, float* o, size_t ld_o) {
    size_t r = 0;
    for (; r + 6 <= n_rows; r += 6) {
        accumulate_rows<6>(p + r * ld_p, ld_p, t_begin, t_end, v, ld_v, dim_v, o + r * ld_o, ld_o);
    }
    for (; r + 3 <= n_rows; r += 3) {
        accumulate_rows<3>(p + r * ld_p, ld_p, t_begin, t_end, v, ld_v, dim_v, o + r * ld_o, ld_o);
    }
    for (; r < n_rows; ++r) accumulate_rows<1>(p + r * ld_p, ld_p, t_begin, t_end, v, ld_v, dim_v, o + r * ld_o, ld_o);
}

#if defined(__AVX512F__)
struct Sixteenths {
    alignas(64) float powers[16];  // 2^(i/16)
};
static constexpr Sixteenths kSixteenths = {{1.0F, 1.04427378F, 1.09050773F, 1.13878863F, 1.18920712F, 1.24185781F,
                                            1.29683955F, 1.35425555F, 1.41421356F, 1.47682615F, 1.54221083F,
                                            1.61049033F, 1.68179283F, 1.75625216F, 1.83400809F, 1.91520656F}};
#endif

// exp(x) for x <= 0 (and -inf): 2^n * e^f. n: whole numbers, |f| <= ln 2 / 2, Taylor polynomial of degree 6; with AVX-512 sixteenths, of a table that one
// permutation reads, |f| <= ln 2 / 32, degree 3. Relative error below 2.2e-7 where x > -1, below 2.2e-7 |x| elsewhere. Arguments under -87 give 0. NaN stays NaN.
static inline VecF exp_nonpositive(VecF x) {
#if defined(__AVX512F__)
    // Zeroing forms with full masks: GCC bug 105593, as in tile_decode-inl.h.
    const auto y = (__m512)x;
    const __mmask16 kept = _mm512_cmp_ps_mask(y, _mm512_set1_ps(-87.0F), _CMP_NLT_UQ);
    const __m512 magic =
        _mm512_set1_ps(786432.0F);  // 1.5 * 2^19: adding it rounds to sixteenths, which lie in the lowest bits
    const __m512 n_biased = _mm512_fmadd_ps(y, _mm512_set1_ps(1.44269504088896341F), magic);
    const __m512 n = _mm512_sub_ps(n_biased, magic);
    const auto f = (VecF)_mm512_fnmadd_ps(n, _mm512_set1_ps(0.693147180559945309F), y);
    VecF poly = mul_add(splat(1.0F / 6.0F), f, splat(0.5F));
    poly = mul_add(poly, f, splat(1.0F));
    poly = mul_add(poly, f, splat(1.0F));
    const auto power = (VecF)_mm512_maskz_permutexvar_ps(0xFFFF, (__m512i)n_biased, _mm512_load_ps(kSixteenths.powers));
    return (VecF)_mm512_maskz_scalef_ps(kept, (__m512)(poly * power), n);  // by 2^floor(n)
#else
    const VecF log2e = splat(1.44269504088896341F);
    const VecI tiny = x < splat(-87.0F);
    const VecF y = tiny ? splat(-87.0F) : x;
    const VecF magic = splat(12582912.0F);  // 1.5 * 2^23: adding it rounds to the nearest integer
    const VecF n_biased = y * log2e + magic;
    const VecF n = n_biased - magic;
    const VecF hi = y - n * splat(0.693145751953125F);
    const VecF f = hi - n * splat(1.42860682030941723e-6F);
    VecF poly = splat(1.0F / 720.0F);
    poly = mul_add(poly, f, splat(1.0F / 120.0F));
    poly = mul_add(poly, f, splat(1.0F / 24.0F));
    poly = mul_add(poly, f, splat(1.0F / 6.0F));
    poly = mul_add(poly, f, splat(0.5F));
    poly = mul_add(poly, f, splat(1.0F));
    poly = mul_add(poly, f, splat(1.0F));
    const VecI exponent = __builtin_convertvector(n, VecI);
    const VecI bits = (exponent + splat_i(127)) << 23;
    const VecF power = __builtin_bit_cast(VecF, bits);
    return tiny ? splat(0.0F) : poly * power;
#endif
}

// kRows rows at once: their chains of dependent steps run side by side. A row's numbers do not depend on its neighbours. What stays of the weights
// from token t on is as_kept(row, t, weights).
template <size_t kRows, typename AsKept>
static inline void softmax_some(float* s, size_t ld, size_t n_tokens, float* m, float* l, float* tile_sums,
                                float* factors, const AsKept& as_kept) {
    const float minus_inf = -__builtin_inff();
    VecF top[kRows];
    for (size_t r = 0; r < kRows; ++r) top[r] = splat(minus_inf);
    for (size_t t = 0; t < n_tokens; t += KVAQ_LANES) {
        for (size_t r = 0; r < kRows; ++r) {
            const VecF x = load(s + r * ld + t);
            top[r] = x > top[r] ? x : top[r];
        }
    }
    float best[kRows];
    VecF shift[kRows];
    for (size_t r = 0; r < kRows; ++r) best[r] = largest_lane(top[r]);
    for (size_t r = 0; r < kRows; ++r) shift[r] = splat(best[r] > m[r] ? best[r] : best[r] > minus_inf ? m[r] : 0.0F);
    VecF sum[kRows];
    for (size_t r = 0; r < kRows; ++r) sum[r] = splat(0.0F);
    for (size_t t = 0; t < n_tokens; t += KVAQ_LANES) {
        for (size_t r = 0; r < kRows; ++r) {
            const VecF e = exp_nonpositive(load(s + r * ld + t) - shift[r]);
            store(s + r * ld + t, as_kept(r, t, e));
            sum[r] = sum[r] + e;
        }
    }
    float total[kRows];
    for (size_t r = 0; r < kRows; ++r) total[r] = sum_of_lanes(sum[r]);
    for (size_t r = 0; r < kRows; ++r) {
        factors[r] = 1.0F;
        tile_sums[r] = 0.0F;
        if (!(best[r] > minus_inf) && total[r] == total[r]) {  // no score at all; NaN goes on
            for (size_t t = 0; t < n_tokens; ++t) s[r * ld + t] = 0.0F;
            continue;
        }
        if (best[r] > m[r]) {
            factors[r] = exp_nonpositive(splat(m[r] - best[r]))[0];
            m[r] = best[r];
        }
        l[r] = l[r] * factors[r] + total[r];
        tile_sums[r] = total[r];
    }
}

// No range, no weights: true if so. Else scores outside it become -inf.
static inline bool keep_range(float* s, size_t ld, size_t n_rows, size_t n_tokens, size_t lo, size_t hi,
                              float* tile_sums, float* factors) {
    const float minus_inf = -__builtin_inff();
    if (lo >= hi) {
        for (size_t r = 0; r < n_rows; ++r) {
            for (size_t t = 0; t < n_tokens; ++t) s[r * ld + t] = 0.0F;
            factors[r] = 1.0F;
            tile_sums[r] = 0.0F;
        }
        return true;
    }
    for (size_t r = 0; r < n_rows; ++r) {
        for (size_t t = 0; t < lo; ++t) s[r * ld + t] = minus_inf;
        for (size_t t = hi; t < n_tokens; ++t) s[r * ld + t] = minus_inf;
    }
    return false;
}

static void softmax_step(float* s, size_t ld, size_t n_rows, size_t n_tokens, size_t lo, size_t hi, float* m, float* l,
                         float* tile_sums, float* factors) {
    if (keep_range(s, ld, n_rows, n_tokens, lo, hi, tile_sums, factors)) return;
    by_rows(n_rows, [&](auto rows, size_t r) {
        softmax_some<decltype(rows)::value>(s + r * ld, ld, n_tokens, m + r, l + r, tile_sums + r, factors + r,
                                            [](size_t, size_t, VecF weights) { return weights; });
    });
}

static void scale(float* x, size_t n, float factor) {
    size_t i = 0;
    for (; i + KVAQ_LANES <= n; i += KVAQ_LANES) store(x + i, load(x + i) * splat(factor));
    for (; i < n; ++i) x[i] *= factor;
}

static void bytes_to_float(const int8_t* from, size_t n, float* to) {
    size_t i = 0;
    for (; i + KVAQ_LANES <= n; i += KVAQ_LANES) store(to + i, __builtin_convertvector(widen(from + i), VecF));
    for (; i < n; ++i) to[i] = static_cast<float>(from[i]);
}

static void to_float(const float16* from, size_t ld_from, size_t n_rows, size_t n, float* to, size_t ld_to) {
    for (size_t r = 0; r < n_rows; ++r, from += ld_from, to += ld_to) {
        size_t i = 0;
        for (; i + KVAQ_LANES <= n; i += KVAQ_LANES) store(to + i, widen(from + i));
        for (; i < n; ++i) to[i] = static_cast<float>(from[i]);
    }
}
