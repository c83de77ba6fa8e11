// Included by the -inl.h files of kernels that read packed codes, inside their target's own namespace: from planes' bits to codes to bytes of levels, a
// register at a time.
typedef uint32_t VecU __attribute__((vector_size(KVAQ_LANES * 4), aligned(4), may_alias));

static inline VecU load_u(const uint8_t* from) { return *reinterpret_cast<const VecU*>(from); }

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

// Codes from words whose bytes begin with the low bits and words whose bytes end with the high ones.
template <unsigned kLow, unsigned kHigh>
static inline VecU join_planes(VecU low, VecU high) {
    if constexpr (kLow == 8) return low;
    const VecU codes = low & (((1U << kLow) - 1U) * 0x01010101U);
    if constexpr (kHigh == 0) return codes;
    return codes | ((high >> (8 - kHigh - kLow)) & ((((1U << kHigh) - 1U) << kLow) * 0x01010101U));
}

// The same as windows have them (trellis_table): the high bits stay at the top.
template <unsigned kLow, unsigned kHigh>
static inline VecU window_codes(VecU low, VecU high) {
    const VecU codes = low & (((1U << kLow) - 1U) * 0x01010101U);
    if constexpr (kHigh == 0) return codes;
    return codes | (high & ((0xFF00U >> kHigh & 0xFFU) * 0x01010101U));
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

#if defined(__AVX512VBMI__)
struct TrellisOrder {
    alignas(
        64) uint8_t histories[64] = {};  // bytes 0 and 1 of every eight: from these eight and from those before, around
    alignas(64) uint8_t first_bit[64] =
        {};  // 8 - i: where the history of byte i of eight begins, less the low bits of a window
    constexpr TrellisOrder() {
        for (unsigned i = 0; i < 64; ++i) {
            histories[i] = static_cast<uint8_t>((i / 8 * 8 + 64 - i % 8 * 8) % 64);
            first_bit[i] = static_cast<uint8_t>(8 - i % 8);
        }
    }
};
static constexpr TrellisOrder kTrellisOrder;

// In registers.
struct TrellisTable {
    __m512i part[4];
};

static inline TrellisTable load_trellis(const uint8_t* table) {
    return {{_mm512_loadu_si512(table), _mm512_loadu_si512(table + 64), _mm512_loadu_si512(table + 128),
             _mm512_loadu_si512(table + 192)}};
}

// Levels of a cell from words of its planes, see walk_planes. The affine map multiplies bytes of ones at the bottom with eight codes as a matrix of bits: bit k of
// every byte is the lowest bit of code 7 - k of the eight. Beside that of the eight before it is a word in which those of the codes before code i follow
// from bit 8 - i on; the multi-shift takes 8 bits from any place.
template <unsigned kLow, unsigned kHigh>
static inline VecU trellis_cell(const TrellisTable& table, VecU low_words, VecU high_words) {
    constexpr auto kLowMask = static_cast<int>(((1U << kLow) - 1U) * 0x01010101U);
    constexpr auto kHighMask = static_cast<int>((0xFF00U >> kHigh & 0xFFU) * 0x01010101U);
    const __m512i last = _mm512_gf2p8affine_epi64_epi8(_mm512_set1_epi8(1), (__m512i)low_words, 0);
    const __m512i lasts =
        _mm512_maskz_permutexvar_epi8(~__mmask64{0}, _mm512_load_si512(kTrellisOrder.histories), last);
    const __m512i from = _mm512_sub_epi8(_mm512_load_si512(kTrellisOrder.first_bit), _mm512_set1_epi8(kLow));
    const __m512i history = _mm512_maskz_multishift_epi64_epi8(~__mmask64{0}, from, lasts);
    // The code's bits where a mask has ones, history elsewhere.
    __m512i windows = _mm512_ternarylogic_epi32(_mm512_set1_epi32(kLowMask), (__m512i)low_words, history, 0xCA);
    if constexpr (kHigh > 0)
        windows = _mm512_ternarylogic_epi32(_mm512_set1_epi32(kHighMask), (__m512i)high_words, windows, 0xCA);
    const __m512i low = _mm512_permutex2var_epi8(table.part[0], windows, table.part[1]);
    const __m512i high = _mm512_permutex2var_epi8(table.part[2], windows, table.part[3]);
    // A byte shuffle gives 0 where the index's top bit is set.
    const __m512i lower = _mm512_shuffle_epi8(_mm512_set1_epi8(-1), windows);
    return (VecU)_mm512_ternarylogic_epi32(lower, low, high, 0xCA);
}
#endif
