// Included by level_kernels-inl.h where the target has VNNI, VBMI and GFNI: dot_codes, which multiplies packed codes without writing their bytes anywhere. Reading
// bits, looking levels up and multiplying run on different ports of the CPU, side by side.

#include "kvaq/cache/tile_codes-inl.h"

// Into L2: L1 holds what is at work.
template <unsigned kBits, size_t kLanes>
static inline void ask_for(const uint8_t* plane, size_t cell) {
    constexpr size_t kCells = 8 / kBits;  // of a block
#pragma GCC unroll 4
    for (size_t j = 0; j < kLanes; j += kCells) __builtin_prefetch(plane + (cell + j) / kCells * 64, 0, 2);
}

// kLanes neighbouring cells of a plane of kBits from `cell` on, a multiple of kLanes, as words whose bytes begin with the codes.
template <unsigned kBits, size_t kLanes>
static inline void low_words(const uint8_t* plane, size_t cell, VecU (&words)[kLanes]) {
    constexpr size_t kCells = 8 / kBits;
    if constexpr (kLanes >= kCells) {
#pragma GCC unroll 4
        for (size_t j = 0; j < kLanes; ++j)
            words[j] = load_u(plane + (cell + j) / kCells * 64) >> static_cast<uint32_t>(j % kCells * kBits);
    } else {  // all in one block
        words[0] = load_u(plane + cell / kCells * 64) >> static_cast<uint32_t>(cell % kCells * kBits);
#pragma GCC unroll 4
        for (size_t j = 1; j < kLanes; ++j) words[j] = words[0] >> static_cast<uint32_t>(j * kBits);
    }
}

// The same as words whose bytes end with the codes.
template <unsigned kBits, size_t kLanes>
static inline void high_words(const uint8_t* plane, size_t cell, VecU (&words)[kLanes]) {
    constexpr size_t kCells = 8 / kBits;
    if constexpr (kLanes >= kCells) {
#pragma GCC unroll 4
        for (size_t j = 0; j < kLanes; ++j) {
            words[j] = load_u(plane + (cell + j) / kCells * 64)
                       << static_cast<uint32_t>(8 - kBits - j % kCells * kBits);
        }
    } else {
        words[kLanes - 1] = load_u(plane + cell / kCells * 64)
                            << static_cast<uint32_t>(8 - (cell % kCells + kLanes) * kBits);
#pragma GCC unroll 4
        for (size_t j = 0; j + 1 < kLanes; ++j)
            words[j] = words[kLanes - 1] << static_cast<uint32_t>((kLanes - 1 - j) * kBits);
    }
}

// Where a quad's cells begin in a plane of kBits: bytes on where quads begin with a block, which saves finding the block of every cell, else a cell.
template <unsigned kBits, size_t kLanes>
struct PlaneWalk {
    static constexpr size_t kCells = kBits > 0 ? 8 / kBits : 1;  // of a block
    static constexpr bool kWholeBlocks = kLanes % kCells == 0;   // n_lanes16 too is a multiple of kLanes
    const uint8_t* plane;
    size_t cell;
    PlaneWalk(const uint8_t* begin, size_t first_lane)
        : plane(begin + (kWholeBlocks ? first_lane / kCells * 64 : 0)), cell(kWholeBlocks ? 0 : first_lane) {}
    void next(size_t n_lanes16) {
        if constexpr (kWholeBlocks) {
            plane += n_lanes16 / kCells * 64;
        } else {
            cell += n_lanes16;
        }
    }
};

// Adds a run's products to low and high, the sums of the coefficients' low and high digits.
template <unsigned kLow, unsigned kHigh, CodeLevels kLevels, CoefSize kSize, size_t kRows, size_t kLanes>
__attribute__((always_inline)) static inline void dot_run(const PackedCodes& run, size_t first_lane,
                                                          const int16_t* coef, size_t ld_coef,
                                                          VecI (&low)[kRows][kLanes], VecI (&high)[kRows][kLanes]) {
    TrellisTable parts = {};
    VecU table = {};  // look_up_bytes would load it for every cell again
    if constexpr (kLevels == CodeLevels::kTable) table = load_u(run.table);
    if constexpr (kLevels == CodeLevels::kTrellis) parts = load_trellis(run.table);
    const size_t n_quads = run.planes.n_quads;
    const size_t n_lanes16 = run.planes.n_lanes16;
    PlaneWalk<kLow, kLanes> from_low(run.planes.low, first_lane);
    PlaneWalk<kHigh, kLanes> from_high(run.planes.high, first_lane);
    for (size_t quad = 0; quad < n_quads; ++quad, coef += 4) {
        VecU u[kLanes];
        VecU upper[kLanes] = {};
        low_words<kLow>(from_low.plane, from_low.cell, u);
        ask_for<kLow, kLanes>(from_low.plane + run.soon, from_low.cell);
        from_low.next(n_lanes16);
        if constexpr (kHigh > 0) {
            high_words<kHigh>(from_high.plane, from_high.cell, upper);
            ask_for<kHigh, kLanes>(from_high.plane + run.soon, from_high.cell);
            from_high.next(n_lanes16);
        }
#pragma GCC unroll 4
        for (size_t j = 0; j < kLanes; ++j) {
            if constexpr (kLevels == CodeLevels::kTrellis) {
                u[j] = trellis_cell<kLow, kHigh>(parts, u[j], upper[j]);
            } else {
                u[j] = join_planes<kLow, kHigh>(u[j], upper[j]);
                if constexpr (kLevels == CodeLevels::kTable)
                    u[j] = (VecU)_mm512_maskz_permutexvar_epi8(~__mmask64{0}, (__m512i)u[j], (__m512i)table);
            }
        }
        add_quad<kSize>(u, coef, ld_coef, low, high);
    }
}

// kLanes blocks of 16 lanes for kRows rows, of all runs. The sums stay in registers from run to run.
template <bool kTrellis, CoefSize kSize, size_t kRows, size_t kLanes>
static void dot_lanes(const PackedCodes* runs, size_t n_runs, size_t first_lane, const int16_t* coef, size_t ld_coef,
                      const int32_t* init, int32_t* out, size_t ld_out) {
    VecI low[kRows][kLanes];
    VecI high[kRows][kLanes];
    start_sums(init, low, high);
    for (size_t i = 0; i < n_runs; coef += runs[i].planes.n_quads * 4, ++i) {
        const PackedCodes& run = runs[i];
        // No lambda: it would keep the sums in memory.
#define KVAQ_DOT_RUN(low_bits, high_bits)                                                                         \
    case low_bits * 10 + high_bits:                                                                               \
        if (kTrellis && run.levels == CodeLevels::kTrellis)                                                       \
            dot_run<low_bits, high_bits, CodeLevels::kTrellis, kSize>(run, first_lane, coef, ld_coef, low, high); \
        else if (run.levels == CodeLevels::kTable)                                                                \
            dot_run<low_bits, high_bits, CodeLevels::kTable, kSize>(run, first_lane, coef, ld_coef, low, high);   \
        else                                                                                                      \
            dot_run<low_bits, high_bits, CodeLevels::kPlain, kSize>(run, first_lane, coef, ld_coef, low, high);   \
        break;
        switch (run.planes.low_bits * 10 + run.planes.high_bits) {
            KVAQ_DOT_RUN(1, 0)
            KVAQ_DOT_RUN(2, 0)
            KVAQ_DOT_RUN(2, 1)
            KVAQ_DOT_RUN(4, 0)
            KVAQ_DOT_RUN(4, 1)
            KVAQ_DOT_RUN(4, 2)
            default:
                dot_run<8, 0, CodeLevels::kPlain, kSize>(run, first_lane, coef, ld_coef, low, high);
        }
#undef KVAQ_DOT_RUN
    }
    store_sums<kSize>(low, high, out, ld_out);
}

template <bool kTrellis, CoefSize kSize, size_t kRows>
static inline void dot_rows_of_codes(const PackedCodes* runs, size_t n_runs, size_t first_lane, size_t n_lanes,
                                     const int16_t* coef, size_t ld_coef, const int32_t* init, int32_t* out,
                                     size_t ld_out) {
    // Sums, levels, tables and coefficients share 32 registers.
    constexpr size_t kMost = kSize == CoefSize::kWide && (kRows == 4 || (kRows == 3 && kTrellis)) ? 2 : 4;
    const size_t n = runs[0].planes.n_lanes16 | first_lane | n_lanes;  // what divides all
    const size_t step = kMost == 4 && n % 4 == 0 ? 4 : n % 2 == 0 ? 2 : 1;
    for (size_t i = 0; i < n_lanes; i += step, out += 16 * step) {
        const size_t lane = first_lane + i;
        if constexpr (kMost == 4) {
            if (step == 4) {
                dot_lanes<kTrellis, kSize, kRows, 4>(runs, n_runs, lane, coef, ld_coef, init, out, ld_out);
                continue;
            }
        }
        if (step == 2) {
            dot_lanes<kTrellis, kSize, kRows, 2>(runs, n_runs, lane, coef, ld_coef, init, out, ld_out);
        } else {
            dot_lanes<kTrellis, kSize, kRows, 1>(runs, n_runs, lane, coef, ld_coef, init, out, ld_out);
        }
    }
}

static void dot_codes(const PackedCodes* runs, size_t n_runs, size_t first_lane16, size_t n_lanes16, CoefSize size,
                      const int16_t* coef, size_t ld_coef, size_t n_rows, const int32_t* init, int32_t* out,
                      size_t ld_out) {
    bool trellis = false;
    for (size_t i = 0; i < n_runs; ++i) trellis = trellis || runs[i].levels == CodeLevels::kTrellis;
    by_rows(n_rows, [&](auto rows, size_t r) {
        constexpr size_t kRows = decltype(rows)::value;
        const auto run = size == CoefSize::kByte ? trellis ? dot_rows_of_codes<true, CoefSize::kByte, kRows>
                                                           : dot_rows_of_codes<false, CoefSize::kByte, kRows>
                         : trellis ? dot_rows_of_codes<true, CoefSize::kWide, kRows>
                                                 : dot_rows_of_codes<false, CoefSize::kWide, kRows>;
        run(runs, n_runs, first_lane16, n_lanes16, coef + r * ld_coef, ld_coef, init + r, out + r * ld_out, ld_out);
    });
}
