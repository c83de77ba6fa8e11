// Included by the -inl.h files of kernels, inside their target's own namespace, after VecF, VecI and VecH. KVAQ_LANES numbers from memory, made wider. By
// intrinsics where there are some: g++ 12 takes __builtin_convertvector of narrow vectors apart, number by number.
static inline VecF widen(const float16* from) {
#if defined(__AVX512F__)
    return (VecF)_mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
    return (VecF)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    return __builtin_convertvector(*reinterpret_cast<const VecH*>(from), VecF);
#endif
}

static inline VecI widen(const int8_t* from) {
#if defined(__AVX512F__)
    return (VecI)_mm512_maskz_cvtepi8_epi32(0xFFFF, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
    return (VecI)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
    typedef int8_t Bytes __attribute__((vector_size(KVAQ_LANES), aligned(1), may_alias));
    return __builtin_convertvector(*reinterpret_cast<const Bytes*>(from), VecI);
#endif
}

static inline VecI widen(const uint8_t* from) {
#if defined(__AVX512F__)
    return (VecI)_mm512_maskz_cvtepu8_epi32(0xFFFF, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
    return (VecI)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
    typedef uint8_t Bytes __attribute__((vector_size(KVAQ_LANES), aligned(1), may_alias));
    return __builtin_convertvector(*reinterpret_cast<const Bytes*>(from), VecI);
#endif
}
