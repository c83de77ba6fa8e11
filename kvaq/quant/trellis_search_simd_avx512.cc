// The trellis search of kvaq/quant/trellis.cc in registers: the same integers, the same codes. Compiled with the flags of its target
// (cmake/kvaq.cmake); reached only through trellis_encode().
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kvaq/quant/trellis.h"
#include "kvaq/quant/trellis_search.h"

// g++ 12 takes the intrinsics' own undefined registers for ours (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace kvaq::trellis_avx512 {
namespace {

constexpr size_t kLanes = 32;

/// Lane numbers of a permutation, from a rule.
template <typename Rule>
__m512i lanes(Rule rule) noexcept {
    alignas(64) int16_t at[kLanes];
    for (size_t i = 0; i < kLanes; ++i) at[i] = static_cast<int16_t>(rule(i));
    return _mm512_load_si512(at);
}

int16_t least_of(__m512i v) noexcept {
    const __m256i half = _mm256_min_epi16(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    const __m128i quarter = _mm_min_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    return static_cast<int16_t>(_mm_extract_epi16(_mm_minpos_epu16(quarter), 0));  // path errors are never negative
}

template <unsigned kBits>
class Search {
    using Shape = TrellisShape<kBits>;
    static constexpr size_t kStates = Shape::kStates;
    static constexpr size_t kPaths = kStates > kLanes ? kStates / kLanes : 1;           ///< registers of path errors
    static constexpr size_t kErrors = 2 * kStates > kLanes ? 2 * kStates / kLanes : 1;  ///< of errors [u][state]

  public:
    void step(const int16_t* level, int16_t value, int16_t* back, bool normalize) noexcept {
        const __m512i x = _mm512_set1_epi16(value);
        __m512i error[kErrors];  // distances first: the least error is that of the least distance
        __m512i pick[kErrors];
        for (size_t v = 0; v < 256 / kLanes; ++v) {
            const __m512i size = _mm512_abs_epi16(_mm512_sub_epi16(x, _mm512_load_si512(level + v * kLanes)));
            const size_t at = v % kErrors;
            // Twice the pick; small trellises hold several picks in one register.
            const __m512i own =
                _mm512_add_epi16(_mm512_set1_epi16(static_cast<int16_t>(2 * (v * kLanes / (2 * kStates)))), part_);
            if (v < kErrors) {
                error[at] = size;
                pick[at] = own;
            } else {
                const __mmask32 less = _mm512_cmplt_epi16_mask(size, error[at]);
                error[at] = _mm512_min_epi16(size, error[at]);
                pick[at] = _mm512_mask_mov_epi16(pick[at], less, own);
            }
        }
        if constexpr (2 * kStates < kLanes) fold(error[0], pick[0]);
        for (__m512i& e : error) {
            const __m512i near = _mm512_min_epi16(e, _mm512_set1_epi16(kTrellisSquared));
            e = _mm512_add_epi16(_mm512_mullo_epi16(near, near), _mm512_sub_epi16(e, near));
        }
        const __m512i most = _mm512_set1_epi16(kTrellisMostPath);
        const __m512i one = _mm512_set1_epi16(1);
        const auto choose = [&](__m512i a, __m512i b, __m512i pick_a, __m512i pick_b, int16_t* to) {
            const __mmask32 less = _mm512_cmplt_epi16_mask(b, a);
            _mm512_store_si512(to, _mm512_mask_add_epi16(pick_a, less, pick_b, one));
            return _mm512_min_epi16(_mm512_min_epi16(a, b), most);
        };
        if constexpr (kStates >= 2 * kLanes) {
            constexpr size_t kHalf = kPaths / 2;
            __m512i next[kPaths];  // [u][s]
            for (size_t u = 0; u < 2; ++u) {
                for (size_t j = 0; j < kHalf; ++j) {
                    const size_t i = u * kPaths + j;
                    next[u * kHalf + j] = choose(_mm512_add_epi16(path_[j], error[i]),
                                                 _mm512_add_epi16(path_[j + kHalf], error[i + kHalf]), pick[i],
                                                 pick[i + kHalf], back + (u * kHalf + j) * kLanes);
                }
            }
            if (normalize) subtract_least(next);
            for (size_t j = 0; j < kHalf; ++j) {
                path_[2 * j] = _mm512_permutex2var_epi16(next[j], zip_low_, next[kHalf + j]);
                path_[2 * j + 1] = _mm512_permutex2var_epi16(next[j], zip_high_, next[kHalf + j]);
            }
        } else if constexpr (kStates == kLanes) {
            const __m512i even = _mm512_add_epi16(path_[0], error[0]);
            const __m512i odd = _mm512_add_epi16(path_[0], error[1]);
            __m512i next[1] = {choose(_mm512_permutex2var_epi16(even, first_, odd),
                                      _mm512_permutex2var_epi16(even, second_, odd),
                                      _mm512_permutex2var_epi16(pick[0], first_, pick[1]),
                                      _mm512_permutex2var_epi16(pick[0], second_, pick[1]), back)};
            if (normalize) subtract_least(next);
            path_[0] = _mm512_permutexvar_epi16(interleave_, next[0]);
        } else {  // the states again and again in all lanes; first_ and second_ put them in order at once
            const __m512i sum = _mm512_add_epi16(path_[0], error[0]);
            __m512i next[1] = {choose(_mm512_permutexvar_epi16(first_, sum), _mm512_permutexvar_epi16(second_, sum),
                                      _mm512_permutexvar_epi16(first_, pick[0]),
                                      _mm512_permutexvar_epi16(second_, pick[0]), back)};
            if (normalize) subtract_least(next);
            path_[0] = next[0];
        }
    }

    void start() noexcept {
        for (__m512i& p : path_) p = _mm512_setzero_si512();
    }
    void start_from(size_t state) noexcept {
        alignas(64) int16_t path[kPaths * kLanes];
        for (size_t i = 0; i < kPaths * kLanes; ++i) path[i] = i % kStates == state ? int16_t{0} : kTrellisMostPath;
        for (size_t j = 0; j < kPaths; ++j) path_[j] = _mm512_load_si512(&path[j * kLanes]);
    }
    [[nodiscard]] size_t best() const noexcept {
        alignas(64) int16_t path[kPaths * kLanes];
        for (size_t j = 0; j < kPaths; ++j) _mm512_store_si512(&path[j * kLanes], path_[j]);
        size_t found = 0;
        for (size_t i = 1; i < kStates; ++i) {
            if (path[i] < path[found]) found = i;
        }
        return found;
    }

    static constexpr size_t kBackStride = kPaths * kLanes;
    /// Place in a row of `back` of what led to a state.
    static constexpr size_t back_at(size_t state) noexcept {
        return kStates >= kLanes ? state % 2 * (kStates / 2) + state / 2 : state;
    }

  private:
    /// The best of the picks that lie side by side, in all of their lanes. The lower pick wins a tie.
    static void fold(__m512i& error, __m512i& pick) noexcept {
        for (size_t apart = 2 * kStates; apart < kLanes; apart *= 2) {
            const __m512i other = lanes([&](size_t i) { return i ^ apart; });
            const __m512i e = _mm512_permutexvar_epi16(other, error);
            const __m512i p = _mm512_permutexvar_epi16(other, pick);
            const __mmask32 less = _mm512_cmplt_epi16_mask(e, error) |
                                   (_mm512_cmpeq_epi16_mask(e, error) & _mm512_cmplt_epi16_mask(p, pick));
            error = _mm512_min_epi16(e, error);
            pick = _mm512_mask_mov_epi16(pick, less, p);
        }
    }
    template <size_t kN>
    static void subtract_least(__m512i (&next)[kN]) noexcept {
        __m512i least = next[0];
        for (size_t j = 1; j < kN; ++j) least = _mm512_min_epi16(least, next[j]);
        const __m512i by = _mm512_set1_epi16(least_of(least));
        for (__m512i& v : next) v = _mm512_sub_epi16(v, by);
    }

    __m512i path_[kPaths];
    /// Twice the pick of each lane's part of a register.
    __m512i part_ = lanes([](size_t i) { return 2 * (i / (2 * kStates)); });
    __m512i zip_low_ = lanes([](size_t i) { return i % 2 * kLanes + i / 2; });
    __m512i zip_high_ = lanes([](size_t i) { return i % 2 * kLanes + kLanes / 2 + i / 2; });
    __m512i interleave_ = lanes([](size_t i) { return i % 2 * (kLanes / 2) + i / 2; });
    /// Where the two ways into a state lie. 32 states: of [u][s] in two registers, else of the lanes [u][state] of one.
    __m512i first_ = lanes([](size_t i) {
        if (kStates == kLanes) return i / (kLanes / 2) * kLanes + i % (kLanes / 2);
        return i % 2 * kStates + i % kStates / 2;
    });
    __m512i second_ = lanes([](size_t i) {
        if (kStates == kLanes) return i / (kLanes / 2) * kLanes + kLanes / 2 + i % (kLanes / 2);
        return i % 2 * kStates + kStates / 2 + i % kStates / 2;
    });
};

template <unsigned kBits>
void run(const int16_t* level, const int16_t* x, uint8_t* codes) noexcept {
    using Shape = TrellisShape<kBits>;
    using One = Search<kBits>;
    alignas(64) int16_t back[Shape::kSteps * One::kBackStride];
    One search;
    search.start();
    for (size_t i = 0; i < 2 * Shape::kLead; ++i)
        search.step(level, x[(kTrellisCell - Shape::kLead + i) % kTrellisCell], &back[i * One::kBackStride],
                    i % kTrellisNormalize == 0);
    const auto before = [&](size_t i, size_t state, uint8_t* code) {
        const auto entry = static_cast<size_t>(back[i * One::kBackStride + One::back_at(state)]);
        if (code != nullptr) *code = static_cast<uint8_t>(entry / 2 * 2 + state % 2);
        return state / 2 + entry % 2 * (Shape::kStates / 2);
    };
    size_t seam = search.best();
    for (size_t i = 2 * Shape::kLead; i > Shape::kLead; --i) seam = before(i - 1, seam, nullptr);
    search.start_from(seam);
    for (size_t i = 0; i < kTrellisCell; ++i)
        search.step(level, x[i], &back[i * One::kBackStride], i % kTrellisNormalize == 0);
    size_t state = seam;
    for (size_t i = kTrellisCell; i > 0; --i) state = before(i - 1, state, codes + i - 1);
}

}  // namespace

void add_errors(const float* table, const float* u, size_t n_channels, size_t n, const float* gain,
                const float* inverse, float weight, float* error) noexcept {
    static_assert(kTrellisErrorBins == 16);  // of one register
    const __m512 bins = _mm512_loadu_ps(table);
    const __m512 most = _mm512_set1_ps(127.5F);
    for (size_t t = 0; t < n; t += 16) {
        const __m512 factor = _mm512_loadu_ps(inverse + t);
        const __m512 g = _mm512_loadu_ps(gain + t);
        const __m512 squared = _mm512_mul_ps(g, g);
        __m512 sum = _mm512_loadu_ps(error + t);
        for (size_t c = 0; c < n_channels; ++c) {
            const __m512 size = _mm512_abs_ps(_mm512_mul_ps(_mm512_loadu_ps(u + c * n + t), factor));
            const __m512 inside = _mm512_min_ps(size, most);  // NaN: most
            const __m512 beyond = _mm512_sub_ps(size, inside);
            const __m512i bin = _mm512_cvttps_epi32(_mm512_mul_ps(inside, _mm512_set1_ps(1.0F / kTrellisErrorStep)));
            const __m512 e = _mm512_add_ps(_mm512_permutexvar_ps(bin, bins), _mm512_mul_ps(beyond, beyond));
            sum = _mm512_add_ps(sum, _mm512_mul_ps(_mm512_set1_ps(weight), _mm512_mul_ps(e, squared)));
        }
        _mm512_storeu_ps(error + t, sum);
    }
}

void search(unsigned bits, const int16_t* level, const int16_t* x, uint8_t* codes) noexcept {
    switch (bits) {
        case 1:
            return run<1>(level, x, codes);
        case 2:
            return run<2>(level, x, codes);
        case 3:
            return run<3>(level, x, codes);
        case 4:
            return run<4>(level, x, codes);
        case 5:
            return run<5>(level, x, codes);
        default:
            return run<6>(level, x, codes);
    }
}

}  // namespace kvaq::trellis_avx512
