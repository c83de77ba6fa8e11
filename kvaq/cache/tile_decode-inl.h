// Included once per SIMD target, inside that target's own namespace, with KVAQ_LANES = 32-bit lanes of a register.
// GCC/Clang vector extensions only. code * scale + offset is rounded twice, on purpose, so that every target gives the
// same bits (these files are compiled with -ffp-contract=off).

typedef float VecF __attribute__((vector_size(KVAQ_LANES * 4), aligned(4), may_alias));
typedef uint32_t VecU __attribute__((vector_size(KVAQ_LANES * 4), aligned(4), may_alias));
typedef int32_t VecI __attribute__((vector_size(KVAQ_LANES * 4), aligned(4), may_alias));
typedef float16 VecH __attribute__((vector_size(KVAQ_LANES * 2), aligned(2), may_alias));

static inline VecU load_u(const uint8_t* from) { return *reinterpret_cast<const VecU*>(from); }
static inline VecF load_f(const float* from) { return *reinterpret_cast<const VecF*>(from); }

template <unsigned kLow, unsigned kHigh>
static void affine_bits(const DecodeJob& job, float* out) {
    constexpr uint32_t kLowMask = kLow == 32 ? 0xFFFFFFFFU : (1U << kLow) - 1U;
    constexpr uint32_t kHighMask = (1U << kHigh) - 1U;
    size_t cell = 0;
    for (size_t quad = 0; quad < job.n_quads; ++quad) {
        for (size_t lanes = 0; lanes < job.n_lanes16; ++lanes, ++cell) {
            const uint8_t* low = job.low + cell / (8 / kLow) * 64;
            const uint32_t low_shift = static_cast<uint32_t>(cell % (8 / kLow) * kLow);
            const uint8_t* high = nullptr;
            uint32_t high_shift = 0;
            if constexpr (kHigh > 0) {
                high = job.high + cell / (8 / kHigh) * 64;
                high_shift = static_cast<uint32_t>(cell % (8 / kHigh) * kHigh);
            }
            for (size_t part = 0; part < 16; part += KVAQ_LANES) {
                const VecU low_word = load_u(low + part * 4) >> low_shift;
                VecU high_word = {};
                if constexpr (kHigh > 0) high_word = load_u(high + part * 4) >> high_shift;
                const size_t lane = lanes * 16 + part;
                for (size_t i = 0; i < 4; ++i) {
                    VecU code = (low_word >> static_cast<uint32_t>(8 * i)) & kLowMask;
                    if constexpr (kHigh > 0) code |= ((high_word >> static_cast<uint32_t>(8 * i)) & kHighMask) << kLow;
                    const VecF x = __builtin_convertvector(reinterpret_cast<VecI&>(code), VecF);
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
            }
        }
    }
}

static void affine(const DecodeJob& job, float* out) {
    switch (job.low_bits * 10 + job.high_bits) {
        case 10: return affine_bits<1, 0>(job, out);
        case 20: return affine_bits<2, 0>(job, out);
        case 21: return affine_bits<2, 1>(job, out);
        case 40: return affine_bits<4, 0>(job, out);
        case 41: return affine_bits<4, 1>(job, out);
        case 42: return affine_bits<4, 2>(job, out);
        default: return affine_bits<8, 0>(job, out);
    }
}

// table[code], codes below 2^kBits.
template <unsigned kBits>
static inline VecF look_up(const float* table, VecU code) {
    if constexpr (kBits == 8) {
        return __builtin_convertvector(reinterpret_cast<VecI&>(code) - 128, VecF);
    } else if constexpr ((size_t{1} << kBits) <= KVAQ_LANES) {
        return __builtin_shuffle(load_f(table), code);
    } else if constexpr ((size_t{1} << kBits) <= 2 * KVAQ_LANES && KVAQ_LANES >= 8) {
        return __builtin_shuffle(load_f(table), load_f(table + KVAQ_LANES), code);
    } else {
        VecF level;
        for (size_t i = 0; i < KVAQ_LANES; ++i) level[i] = table[code[i]];
        return level;
    }
}

template <unsigned kLow, unsigned kHigh>
static void codebook_bits(const CodebookJob& job, float* out) {
    constexpr uint32_t kLowMask = (1U << kLow) - 1U;
    constexpr uint32_t kHighMask = (1U << kHigh) - 1U;
    size_t cell = 0;
    for (size_t quad = 0; quad < job.n_quads; ++quad) {
        for (size_t lanes = 0; lanes < job.n_lanes16; ++lanes, ++cell) {
            const uint8_t* low = job.low + cell / (8 / kLow) * 64;
            const uint32_t low_shift = static_cast<uint32_t>(cell % (8 / kLow) * kLow);
            const uint8_t* high = nullptr;
            uint32_t high_shift = 0;
            if constexpr (kHigh > 0) {
                high = job.high + cell / (8 / kHigh) * 64;
                high_shift = static_cast<uint32_t>(cell % (8 / kHigh) * kHigh);
            }
            for (size_t part = 0; part < 16; part += KVAQ_LANES) {
                const VecU low_word = load_u(low + part * 4) >> low_shift;
                VecU high_word = {};
                if constexpr (kHigh > 0) high_word = load_u(high + part * 4) >> high_shift;
                const size_t lane = lanes * 16 + part;
                for (size_t i = 0; i < 4; ++i) {
                    VecU code = (low_word >> static_cast<uint32_t>(8 * i)) & kLowMask;
                    if constexpr (kHigh > 0) code |= ((high_word >> static_cast<uint32_t>(8 * i)) & kHighMask) << kLow;
                    const size_t j = quad * 4 + i;
                    const VecF scale = job.quad_scale[j] * load_f(job.lane_scale + lane);
                    const VecF offset = job.quad_offset[j] + load_f(job.lane_offset + lane);
                    *reinterpret_cast<VecF*>(out + j * job.ld_out + lane) = look_up<kLow + kHigh>(job.table, code) * scale + offset;
                }
            }
        }
    }
}

static void codebook(const CodebookJob& job, float* out) {
    switch (job.low_bits * 10 + job.high_bits) {
        case 10: return codebook_bits<1, 0>(job, out);
        case 20: return codebook_bits<2, 0>(job, out);
        case 21: return codebook_bits<2, 1>(job, out);
        case 40: return codebook_bits<4, 0>(job, out);
        case 41: return codebook_bits<4, 1>(job, out);
        case 42: return codebook_bits<4, 2>(job, out);
        default: return codebook_bits<8, 0>(job, out);
    }
}

static void to_float(const float16* from, size_t n, float* to) {
    size_t i = 0;
    for (; i + KVAQ_LANES <= n; i += KVAQ_LANES) {
        *reinterpret_cast<VecF*>(to + i) = __builtin_convertvector(*reinterpret_cast<const VecH*>(from + i), VecF);
    }
    for (; i < n; ++i) to[i] = static_cast<float>(from[i]);
}

static const DecodeKernels kTable = {affine, codebook, to_float};
