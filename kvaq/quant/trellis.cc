#include "kvaq/quant/trellis.h"

#include <algorithm>
#include <cmath>

#include "kvaq/base/clones.h"
#include "kvaq/base/simd_target.h"
#include "kvaq/quant/trellis_search.h"

namespace kvaq {

#if defined(__x86_64__)
namespace trellis_avx512 {
void search(unsigned bits, const int16_t* level, const int16_t* x, uint8_t* codes) noexcept;
void add_errors(const float* table, const float* u, size_t n_channels, size_t n, const float* gain,
                const float* inverse, float weight, float* error) noexcept;
}  // namespace trellis_avx512
#endif

namespace {

constexpr size_t kCell = kTrellisCell;
constexpr float kMostStep = 128.0F;
constexpr size_t kWindow = 256;
/// [code][state], in the search's units.
struct alignas(64) Row : std::array<int16_t, kWindow> {};

/// Values are searched in 2^shift units a step, so that a mean squared error is about 100 units at every number of bits.
constexpr std::array<int, kTrellisMostBits + 1> kShift = {0, 0, 0, 1, 2, 3, 4};

template <unsigned kBits>
struct Trellis : TrellisShape<kBits> {
    using TrellisShape<kBits>::kStates;
    using TrellisShape<kBits>::kPicks;
    using TrellisShape<kBits>::kLead;
    using TrellisShape<kBits>::kSteps;
    static constexpr size_t kHalf = kStates / 2;

    /// Entry [u * kHalf + s]: how state 2 s + u is reached: pick * 2 + (1 if from s + kHalf).
    using Back = std::array<std::array<int16_t, kStates>, kSteps>;

    /// One value more.
    [[gnu::always_inline]] static inline void step(const Row& level, int16_t x, std::array<int16_t, kStates>& path,
                                                   std::array<int16_t, kStates>& back, bool normalize) noexcept {
        // Distances first: the least error is that of the least distance.
        alignas(64) std::array<int16_t, 2 * kStates> error;
        alignas(64) std::array<int16_t, 2 * kStates> pick = {};
        for (size_t i = 0; i < 2 * kStates; ++i) error[i] = INT16_MAX;
        for (size_t k = 0; k < kPicks; ++k) {
            const int16_t* row = &level[k * 2 * kStates];
            for (size_t i = 0; i < 2 * kStates; ++i) {
                const auto d = static_cast<int16_t>(x - row[i]);
                const auto size = d < 0 ? static_cast<int16_t>(-d) : d;
                pick[i] = size < error[i] ? static_cast<int16_t>(2 * k) : pick[i];
                error[i] = size < error[i] ? size : error[i];
            }
        }
        for (int16_t& e : error) {
            const auto near = e < kTrellisSquared ? e : kTrellisSquared;
            e = static_cast<int16_t>(near * near + (e - near));
        }
        alignas(64) std::array<int16_t, kStates> next;  // [u][s]
        for (size_t u = 0; u < 2; ++u) {
            for (size_t s = 0; s < kHalf; ++s) {
                const size_t i = u * kStates + s;
                const auto a = static_cast<int16_t>(path[s] + error[i]);
                const auto b = static_cast<int16_t>(path[s + kHalf] + error[i + kHalf]);
                const auto least = b < a ? b : a;
                next[u * kHalf + s] = least < kTrellisMostPath ? least : kTrellisMostPath;
                back[u * kHalf + s] = b < a ? static_cast<int16_t>(pick[i + kHalf] + 1) : pick[i];
            }
        }
        if (normalize) {
            int16_t least = INT16_MAX;
            for (size_t i = 0; i < kStates; ++i) least = next[i] < least ? next[i] : least;
            for (size_t i = 0; i < kStates; ++i) next[i] = static_cast<int16_t>(next[i] - least);
        }
        for (size_t s = 0; s < kHalf; ++s) {
            path[2 * s] = next[s];
            path[2 * s + 1] = next[kHalf + s];
        }
    }

    [[gnu::always_inline]] static inline size_t before(const std::array<int16_t, kStates>& back, size_t state,
                                                       uint8_t* code) noexcept {
        const size_t s = state / 2;
        const size_t u = state % 2;
        const auto entry = static_cast<size_t>(back[u * kHalf + s]);
        if (code != nullptr) *code = static_cast<uint8_t>(entry / 2 * 2 + u);
        return s + entry % 2 * kHalf;
    }

    [[gnu::always_inline]] static inline void search(const Row& level, const std::array<int16_t, kCell>& x,
                                                     uint8_t* codes) noexcept {
        alignas(64) Back back;
        alignas(64) std::array<int16_t, kStates> path = {};
        for (size_t i = 0; i < 2 * kLead; ++i)
            step(level, x[(kCell - kLead + i) % kCell], path, back[i], i % kTrellisNormalize == 0);
        auto seam = static_cast<size_t>(std::min_element(path.begin(), path.end()) - path.begin());
        for (size_t i = 2 * kLead; i > kLead; --i) seam = before(back[i - 1], seam, nullptr);
        path.fill(kTrellisMostPath);
        path[seam] = 0;
        for (size_t i = 0; i < kCell; ++i) step(level, x[i], path, back[i], i % kTrellisNormalize == 0);
        // Where errors are so large that all paths are cut to kTrellisMostPath the way back may miss the seam; then the first few levels are not
        // the ones meant, among values that no level is near anyway.
        size_t state = seam;
        for (size_t i = kCell; i > 0; --i) state = before(back[i - 1], state, codes + i - 1);
    }
};

KVAQ_CLONES void search1(const Row& l, const std::array<int16_t, kCell>& x, uint8_t* c) noexcept {
    Trellis<1>::search(l, x, c);
}
KVAQ_CLONES void search2(const Row& l, const std::array<int16_t, kCell>& x, uint8_t* c) noexcept {
    Trellis<2>::search(l, x, c);
}
KVAQ_CLONES void search3(const Row& l, const std::array<int16_t, kCell>& x, uint8_t* c) noexcept {
    Trellis<3>::search(l, x, c);
}
KVAQ_CLONES void search4(const Row& l, const std::array<int16_t, kCell>& x, uint8_t* c) noexcept {
    Trellis<4>::search(l, x, c);
}
KVAQ_CLONES void search5(const Row& l, const std::array<int16_t, kCell>& x, uint8_t* c) noexcept {
    Trellis<5>::search(l, x, c);
}
KVAQ_CLONES void search6(const Row& l, const std::array<int16_t, kCell>& x, uint8_t* c) noexcept {
    Trellis<6>::search(l, x, c);
}

Row order(unsigned bits, const std::array<float, kWindow>& table) noexcept {
    Row row;
    const size_t n_codes = size_t{1} << bits;
    for (size_t window = 0; window < kWindow; ++window) {
        row[window % n_codes * (kWindow / n_codes) + window / n_codes] =
            static_cast<int16_t>(std::lround(std::ldexp(table[window], kShift[bits])));
    }
    return row;
}

const Row& order_of(unsigned bits) noexcept {
    static const std::array<Row, kTrellisMostBits + 1> rows = [] {
        std::array<Row, kTrellisMostBits + 1> all = {};
        for (unsigned b = 1; b <= kTrellisMostBits; ++b) {
            std::array<float, kWindow> table;
            std::copy(trellis_levels(b).begin(), trellis_levels(b).end(), table.begin());
            all[b] = order(b, table);
        }
        return all;
    }();
    return rows[bits];
}

/// In the search's units, rounded half to even.
KVAQ_CLONES void to_units(const float* __restrict x, float scale, int16_t* __restrict units) noexcept {
    constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding and taking it away rounds |x| < 2^22
    for (size_t i = 0; i < kCell; ++i) {
        const float low = x[i] > -kMostStep ? x[i] : -kMostStep;  // NaN: -kMostStep
        const float cut = low > kMostStep ? kMostStep : low;
        units[i] = static_cast<int16_t>(static_cast<int32_t>((cut * scale + kRound) - kRound));
    }
}

KVAQ_CLONES void add_errors(const float* __restrict table, const float* __restrict u, size_t n_channels, size_t n,
                            const float* __restrict gain, const float* __restrict inverse, float weight,
                            float* __restrict error) noexcept {
    for (size_t c = 0; c < n_channels; ++c, u += n) {
        for (size_t t = 0; t < n; ++t) {
            const float v = u[t] * inverse[t];
            const float size = v < 0 ? -v : v;
            const float most = 127.5F;
            const float inside = size < most ? size : most;
            const float beyond = size - inside;
            const float e = table[static_cast<uint32_t>(inside * (1.0F / kTrellisErrorStep))] + beyond * beyond;
            error[t] += weight * (e * (gain[t] * gain[t]));
        }
    }
}

void search(TrellisTarget target, unsigned bits, const Row& level, const float* x, uint8_t* codes) noexcept {
    alignas(64) std::array<int16_t, kCell> units;
    to_units(x, std::ldexp(1.0F, kShift[bits]), units.data());
#if defined(__x86_64__)
    if (target == TrellisTarget::kAvx512) return trellis_avx512::search(bits, level.data(), units.data(), codes);
#endif
    switch (bits) {
        case 1:
            return search1(level, units, codes);
        case 2:
            return search2(level, units, codes);
        case 3:
            return search3(level, units, codes);
        case 4:
            return search4(level, units, codes);
        case 5:
            return search5(level, units, codes);
        default:
            return search6(level, units, codes);
    }
}

TrellisTarget best_target() noexcept {
    static const bool wide = trellis_target_runs(TrellisTarget::kAvx512);
    return wide ? TrellisTarget::kAvx512 : TrellisTarget::kPlain;
}

}  // namespace

const std::array<int8_t, 256>& trellis_outputs(unsigned bits) noexcept {
    /// Of the tables' own line of decibels (kvaq/quant/trellis_tables.cc), by bits.
    static constexpr std::array<double, kTrellisMostBits> kDistortion = {0.2838,  0.0752,  0.01968,
                                                                         0.00525, 0.00153, 0.000506};
    static const auto tables = [] {
        std::array<std::array<int8_t, 256>, kTrellisMostBits> all;
        for (unsigned b = 0; b < kTrellisMostBits; ++b) {
            for (size_t i = 0; i < 256; ++i) {
                const double level = static_cast<double>(trellis_levels(b + 1)[i]) / (1 - kDistortion[b]);
                all[b][i] = static_cast<int8_t>(std::clamp(std::lround(level), -127L, 127L));
            }
        }
        return all;
    }();
    return tables[bits - 1];
}

uint8_t trellis_window(unsigned bits, const uint8_t* codes, size_t i) noexcept {
    unsigned window = codes[i];
    for (size_t j = 1; j <= 8 - bits; ++j) window |= (codes[(i + kCell - j) % kCell] & 1U) << (bits + j - 1);
    return static_cast<uint8_t>(window);
}

bool trellis_target_runs(TrellisTarget target) noexcept {
    if (target == TrellisTarget::kPlain) return true;
    return best_simd_target() == SimdTarget::kAvx512 || best_simd_target() == SimdTarget::kAvx512Vnni;
}

void trellis_add_errors_on(TrellisTarget target, unsigned bits, const float* u, size_t n_channels, size_t n,
                           const float* gain, const float* inverse, float weight, float* error) noexcept {
    const float* table = trellis_errors(bits).data();
#if defined(__x86_64__)
    if (target == TrellisTarget::kAvx512)
        return trellis_avx512::add_errors(table, u, n_channels, n, gain, inverse, weight, error);
#endif
    add_errors(table, u, n_channels, n, gain, inverse, weight, error);
}

void trellis_add_errors(unsigned bits, const float* u, size_t n_channels, size_t n, const float* gain,
                        const float* inverse, float weight, float* error) noexcept {
    trellis_add_errors_on(best_target(), bits, u, n_channels, n, gain, inverse, weight, error);
}

void trellis_encode_on(TrellisTarget target, unsigned bits, const float* x, uint8_t* codes) noexcept {
    search(target, bits, order_of(bits), x, codes);
}

void trellis_encode(unsigned bits, const float* x, uint8_t* codes) noexcept {
    trellis_encode_on(best_target(), bits, x, codes);
}

void internal::trellis_encode_with(unsigned bits, const std::array<float, 256>& levels, const float* x,
                                   uint8_t* codes) noexcept {
    search(best_target(), bits, order(bits, levels), x, codes);
}

}  // namespace kvaq
