// Sealing of transform codecs. Vectors run over the tile's tokens, so no sum's order depends on the machine: the same bytes everywhere.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kvaq/base/clones.h"
#include "kvaq/cache/tile.h"
#include "kvaq/quant/bit_planes.h"
#include "kvaq/quant/hadamard.h"
#include "kvaq/quant/transform.h"
#include "kvaq/quant/trellis.h"

namespace kvaq {
namespace {

constexpr size_t kMaxDim = 512;
constexpr size_t kMaxTile = 128;
/// Gains tried around the one that fits the token's energy, in 16ths of an octave.
constexpr std::array kTries = {0, -8, -4, 4, 8, 12};
constexpr std::array kTrellisTries = {0, 1, 2, 4, 7, 11};
static_assert(kTries.size() == kTrellisTries.size());

constexpr int kLeastManyBits = 5;
constexpr float kMostLevel = 127;
constexpr size_t kLanes = 16;
/// Of a basis's rounding: norms of E (see to_basis) are .02 to .04, so about .1 % of it is left.
constexpr int kCorrections = 1;
constexpr float kRound = 12582912.0F;  ///< 1.5 * 2^23: adding and taking it away rounds |x| < 2^22 half to even
using Vec = float __attribute__((vector_size(64), aligned(64)));

SealTrial seal_trial;

struct Scratch {
    alignas(64) std::array<float, kMaxDim * kMaxTile> x;        // [channel][token]
    alignas(64) std::array<float, kMaxDim * kMaxTile> u;        // levels at gain 1, [codec channel][token]
    alignas(64) std::array<float, kMaxDim * kMaxTile> y;        // [channel][token]
    alignas(64) std::array<float, kMaxDim * kMaxTile> back;     // [channel][token]
    alignas(64) std::array<uint8_t, kMaxDim * kMaxTile> codes;  // [codec channel][token]
    alignas(64) std::array<uint8_t, kMaxDim * kMaxTile> ordered;
};

/// What a cell's errors leave to the tokens that follow. Mean error of the cell's tokens by channel: of values in steps at gain 1, of keys in steps of the
/// tokens' own gains.
void feed_back(const Band& band, bool key, size_t first, const float* x, const float* inverse, const uint8_t* codes,
               float* carry) noexcept {
    const auto bits = static_cast<unsigned>(band.bits);
    const size_t n_channels = key ? 4 : kTrellisCell / 4;
    const size_t n_tokens = kTrellisCell / n_channels;
    for (size_t c = 0; c < n_channels && first + c < band.n_channels; ++c) {
        float sum = 0;
        for (size_t t = 0; t < n_tokens; ++t) {
            const size_t i = key ? 4 * t + c : 4 * c + t;
            const auto level = static_cast<float>(trellis_outputs(bits)[trellis_window(bits, codes, i)]);
            sum += (x[i] - level) / (key ? 1.0F : inverse[t]);
        }
        carry[first + c] =
            (key ? seal_trial.key_feedback : seal_trial.value_feedback) * sum / static_cast<float>(n_tokens);
    }
}

/// Trellis codes of a band's first channels [channel][token] at these gains, in code order: the cells are the trellis's.
void quantize_cells(const TileLayout& layout, const Band& band, const float* u, const float* inverse,
                    uint8_t* ordered) noexcept {
    const size_t n = layout.tile_tokens;
    const bool key = layout.side == Side::kKey;
    const size_t lane_blocks = ((key ? n : size_t{band.n_channels}) + 15) / 16;
    const size_t n_quads = (key ? size_t{band.n_channels} : n) / 4;
    std::array<float, kTrellisCell> x;
    std::array<float, kMaxDim> carry = {};
    const bool shaped = (key ? seal_trial.key_feedback : seal_trial.value_feedback) != 0;
    for (size_t quad = 0; quad < n_quads; ++quad) {
        for (size_t block = 0; block < lane_blocks; ++block) {
            for (size_t i = 0; i < kTrellisCell; ++i) {
                const size_t lane = 16 * block + i / 4;
                const size_t t = key ? lane : 4 * quad + i % 4;
                const size_t c = key ? 4 * quad + i % 4 : lane;
                x[i] = c < band.n_channels ? u[c * n + t] * inverse[t] : 0.0F;
                if (shaped && c < band.n_channels) x[i] += carry[c] * (key ? 1.0F : inverse[t]);
            }
            uint8_t* codes = ordered + (quad * lane_blocks + block) * kTrellisCell;
            trellis_encode(static_cast<unsigned>(band.bits), x.data(), codes);
            if (shaped) {
                feed_back(band, key, key ? 4 * quad : 16 * block, x.data(), key ? inverse : inverse + 4 * quad, codes,
                          carry.data());
            }
        }
    }
}

struct alignas(64) Row : std::array<float, kMaxTile> {};

/// A band's codebook: levels and the middles between them.
struct Codebook {
    size_t n = 0;  ///< 0: 8 bits, the level is the code - 128
    std::array<float, 64> level;
    std::array<float, 64> middle;  ///< middle[k] between level k - 1 and k
};

KVAQ_CLONES void transpose(const float* __restrict x, size_t n, size_t dim, float* __restrict out) noexcept {
    for (size_t c = 0; c < dim; ++c) {
        for (size_t t = 0; t < n; ++t) out[c * n + t] = x[t * dim + c];
    }
}

/// z[i][t] = sum_j weight(i, j) x[j][t] for rows i in [0, n_rows), weight(i, j) at weight[i * row_stride + j * stride]; n_rows a multiple of 4, n of 32.
KVAQ_CLONES void multiply(const int8_t* __restrict weight, size_t row_stride, size_t stride, size_t n_rows,
                          const float* __restrict x, size_t dim, size_t n, float* __restrict z) noexcept {
    for (size_t i = 0; i < n_rows; i += 4) {
        for (size_t t = 0; t < n; t += 2 * kLanes) {
            Vec sum[8] = {};
            for (size_t j = 0; j < dim; ++j) {
                const auto* row = reinterpret_cast<const Vec*>(x + j * n + t);
                const int8_t* w = weight + i * row_stride + j * stride;
                for (size_t r = 0; r < 4; ++r) {
                    const auto factor = static_cast<float>(w[r * row_stride]);
                    sum[2 * r] += factor * row[0];
                    sum[2 * r + 1] += factor * row[1];
                }
            }
            for (size_t r = 0; r < 4; ++r) {
                auto* out = reinterpret_cast<Vec*>(z + (i + r) * n + t);
                out[0] = sum[2 * r];
                out[1] = sum[2 * r + 1];
            }
        }
    }
}

/// x[j][t] *= factor_j
KVAQ_CLONES void scale_rows(const float* __restrict factor, size_t dim, size_t n, float* __restrict x) noexcept {
    for (size_t j = 0; j < dim; ++j) {
        for (size_t t = 0; t < n; ++t) x[j * n + t] *= factor[j];
    }
}

/// y += x - r
KVAQ_CLONES void add_residual(const float* __restrict x, const float* __restrict r, size_t count,
                              float* __restrict y) noexcept {
    for (size_t i = 0; i < count; ++i) y[i] += x[i] - r[i];
}

KVAQ_CLONES void normalize(float* u, size_t n, float offset, float inverse) noexcept {
    for (size_t t = 0; t < n; ++t) u[t] = (u[t] - offset) * inverse;
}

KVAQ_CLONES void take_largest(const float* __restrict u, size_t n, float* __restrict largest) noexcept {
    for (size_t t = 0; t < n; ++t) {
        const float size = u[t] < 0 ? -u[t] : u[t];
        const float finite = size < 1e30F ? size : 1e30F;  // codes of gains are integers
        largest[t] = finite > largest[t] ? finite : largest[t];
    }
}

KVAQ_CLONES void add_squares(const float* __restrict u, size_t n, float* __restrict sum) noexcept {
    for (size_t t = 0; t < n; ++t) sum[t] += u[t] * u[t];
}

/// Adds weight * (error of one channel at these gains)^2 to `error`.
KVAQ_CLONES void add_error(const float* __restrict u, size_t n, const Codebook& book, const Row& gain,
                           const Row& inverse, float weight, Row& error) noexcept {
    for (size_t t = 0; t < n; t += kLanes) {
        const Vec v = *reinterpret_cast<const Vec*>(u + t) * *reinterpret_cast<const Vec*>(&inverse[t]);
        Vec level = {};
        if (book.n == 0) {
            const Vec low = Vec{} - 128.0F;
            const Vec high = Vec{} + 127.0F;
            level = v < low ? low : (v > high ? high : v);
            level = (level + kRound) - kRound;
        } else {
            level += book.level[0];
            for (size_t k = 1; k < book.n; ++k) {
                const Vec high = Vec{} + book.level[k];
                level = v > book.middle[k] ? high : level;
            }
        }
        const Vec e = (v - level) * *reinterpret_cast<const Vec*>(&gain[t]);
        *reinterpret_cast<Vec*>(&error[t]) += weight * e * e;
    }
}

/// Codes of one channel at these gains.
KVAQ_CLONES void quantize(const float* __restrict u, size_t n, const Codebook& book, const Row& inverse,
                          uint8_t* __restrict codes) noexcept {
    alignas(64) std::array<int32_t, kMaxTile> code = {};
    alignas(64) std::array<float, kMaxTile> v;
    for (size_t t = 0; t < n; ++t) v[t] = u[t] * inverse[t];
    if (book.n == 0) {
        for (size_t t = 0; t < n; ++t) {
            const float clamped = v[t] < -128.0F ? -128.0F : (v[t] > 127.0F ? 127.0F : v[t]);
            code[t] = static_cast<int32_t>((clamped + kRound) - kRound) + 128;
        }
    }
    for (size_t k = 1; k < book.n; ++k) {
        const float middle = book.middle[k];
        for (size_t t = 0; t < n; ++t) code[t] += v[t] > middle ? 1 : 0;
    }
    for (size_t t = 0; t < n; ++t) codes[t] = static_cast<uint8_t>(code[t]);
}

Codebook codebook_of(const TransformFit& fit, int bits) noexcept {
    Codebook book;
    if (bits == 8) return book;
    const std::vector<int8_t>& levels = fit.levels[static_cast<size_t>(bits)];
    book.n = levels.size();
    for (size_t k = 0; k < book.n; ++k) {
        book.level[k] = static_cast<float>(levels[k]);
        if (k > 0) book.middle[k] = 0.5F * (book.level[k - 1] + book.level[k]);
    }
    return book;
}

/// Sums over a tile where one gain serves all its tokens.
void share(Row& x, size_t n) noexcept {
    float sum = 0;
    for (size_t t = 0; t < n; ++t) sum += x[t];
    for (size_t t = 0; t < n; ++t) x[t] = sum;
}

/// The first n_coded rows of s.u = U^-T s.x, so that U^T s.u, what readers make of it, is s.x: y = x, then y += x - U^T U y kCorrections times, s.u = U y.
/// U is orthonormal but for its rounding to int8, U^T U = 1 + E, and what is missing is E^(kCorrections + 1) x.
void to_basis(const TransformFit& fit, size_t n, size_t n_coded, Scratch& s) noexcept {
    const size_t dim = fit.dim;
    const size_t to_codec = fit.side == Side::kKey ? 1 : dim;  // from U_ij to U_i+1,j
    const size_t to_model = fit.side == Side::kKey ? dim : 1;  // from U_ij to U_i,j+1
    std::copy_n(s.x.data(), dim * n, s.y.data());
    const auto forward = [&](size_t n_rows) {
        multiply(fit.matrix.data(), to_codec, to_model, n_rows, s.y.data(), dim, n, s.u.data());
        scale_rows(fit.row_scale.data(), n_rows, n, s.u.data());
    };
    for (int round = 0; round < kCorrections; ++round) {
        forward(dim);
        scale_rows(fit.row_scale.data(), dim, n, s.u.data());
        multiply(fit.matrix.data(), to_model, to_codec, dim, s.u.data(), dim, n, s.back.data());
        add_residual(s.x.data(), s.back.data(), dim * n, s.y.data());
    }
    forward(n_coded);
}

}  // namespace

void set_seal_trial(const SealTrial& trial) noexcept { seal_trial = trial; }

void encode_transform_tile(const TileLayout& layout, const float* x, std::byte* packed) noexcept {
    thread_local Scratch s;
    const TransformFit& fit = *layout.spec.transform->fit;
    const size_t n = layout.tile_tokens;
    const size_t dim = layout.head_dim;
    transpose(x, n, dim, s.x.data());
    size_t n_coded = 0;
    for (const Band& band : layout.bands) {
        if (static_cast<int>(band.bits) != 0) n_coded = size_t{band.first_channel} + band.n_channels;
    }
    switch (fit.basis) {
        case TransformBasis::kHadamard:
            hadamard_columns(s.x.data(), dim, n, n);
            std::copy_n(s.x.data(), n_coded * n, s.u.data());
            break;
        case TransformBasis::kSorted: {
            const size_t unit = transform_unit(fit.side);  // n_coded is a multiple of it, or all
            for (size_t i = 0; i < n_coded; ++i) std::copy_n(&s.x[fit.order[i] * n], n, &s.u[i * n]);
            for (size_t i = 0; i < n_coded; i += unit) hadamard_columns(&s.u[i * n], std::min(unit, n_coded - i), n, n);
            break;
        }
        case TransformBasis::kMatrix:
            to_basis(fit, n, n_coded, s);
            break;
    }
    for (size_t i = 0; i < n_coded; ++i) {
        float* u = &s.u[i * n];
        normalize(u, n, fit.offset[i], fit.scale[i] > 0 ? 1.0F / fit.scale[i] : 0.0F);
    }
    // Channels of 8 bits have room (kvaq/stats/transform_fit.h, kWideStep): the others say what gain fits a token.
    size_t first_fine = 0;
    for (const Band& band : layout.bands) {
        if (static_cast<int>(band.bits) == 8) first_fine = size_t{band.first_channel} + band.n_channels;
    }
    if (first_fine == n_coded) first_fine = 0;
    alignas(64) Row energy = {};
    float expected = 0;
    for (size_t i = first_fine; i < n_coded; ++i) {
        add_squares(&s.u[i * n], n, energy.data());
        expected += kLevelsPerSigma * kLevelsPerSigma;
    }
    const bool one_gain = seal_trial.gain == SealTrial::Gain::kTile;
    if (one_gain) {
        share(energy, n);
        expected *= static_cast<float>(n);
    }
    std::array<int, kMaxTile> base = {};
    for (size_t t = 0; t < n; ++t) {
        const float ratio = expected > 0 ? energy[t] / expected : 1.0F;
        base[t] = 128 + (ratio > 0 ? static_cast<int>(std::lround(8.0F * std::log2(ratio))) : -128);
    }
    std::array<uint8_t, kMaxTile> chosen = {};
    Row least;
    least.fill(std::numeric_limits<float>::infinity());
    const auto try_gains = [&](const std::array<int, kMaxTile>& codes) {
        Row gain;
        Row inverse;
        Row error = {};
        std::array<uint8_t, kMaxTile> code = {};
        for (size_t t = 0; t < n; ++t) {
            code[t] = static_cast<uint8_t>(std::clamp(codes[t], 0, 255));
            gain[t] = transform_gain(code[t]);
            inverse[t] = 1.0F / gain[t];
        }
        for (const Band& band : layout.bands) {
            const int bits = static_cast<int>(band.bits);
            if (bits == 0) continue;
            // Reverse water-filling spends bits until all channels' errors cost the same: an error of one step weighs about 4^bits.
            const float weight = std::ldexp(1.0F, 2 * bits);
            if (band.coding == BandCoding::kTrellis) {
                trellis_add_errors(static_cast<unsigned>(bits), &s.u[size_t{band.first_channel} * n], band.n_channels,
                                   n, gain.data(), inverse.data(), weight, error.data());
                continue;
            }
            const Codebook book = codebook_of(fit, bits);
            for (size_t i = band.first_channel; i < size_t{band.first_channel} + band.n_channels; ++i)
                add_error(&s.u[i * n], n, book, gain, inverse, weight, error);
        }
        if (one_gain) share(error, n);
        for (size_t t = 0; t < n; ++t) {
            if (!(error[t] < least[t])) continue;
            least[t] = error[t];
            chosen[t] = code[t];
        }
    };
    const auto& tries = layout.spec.transform->codes == TransformCodes::kTrellis ? kTrellisTries : kTries;
    for (const int step : tries) {
        std::array<int, kMaxTile> codes = base;
        for (int& code : codes) code += step;
        try_gains(codes);
    }
    // Tokens that are small but for one channel of many bits: the gain that spares it the end of the range.
    alignas(64) Row largest = {};
    for (const Band& band : layout.bands) {
        if (static_cast<int>(band.bits) < kLeastManyBits) continue;
        for (size_t i = band.first_channel; i < size_t{band.first_channel} + band.n_channels; ++i)
            take_largest(&s.u[i * n], n, largest.data());
    }
    if (one_gain) {
        std::fill_n(largest.begin(), n,
                    *std::max_element(largest.begin(), largest.begin() + static_cast<ptrdiff_t>(n)));
    }
    std::array<int, kMaxTile> spared = base;
    bool any = false;
    for (size_t t = 0; t < n; ++t) {
        if (!(largest[t] > 0)) continue;
        const int code = 128 + static_cast<int>(std::ceil(16.0F * std::log2(largest[t] * (1.0F / kMostLevel))));
        if (code <= base[t] + tries.back()) continue;
        spared[t] = code;
        any = true;
    }
    if (any) try_gains(spared);
    if (seal_trial.gain == SealTrial::Gain::kFixed) chosen.fill(128);
    Row inverse;
    for (size_t t = 0; t < n; ++t) {
        packed[layout.gain_offset + t] = static_cast<std::byte>(chosen[t]);
        inverse[t] = 1.0F / transform_gain(chosen[t]);
    }
    for (const Band& band : layout.bands) {
        const int bits = static_cast<int>(band.bits);
        if (bits == 0) continue;
        if (band.coding == BandCoding::kTrellis) {
            quantize_cells(layout, band, &s.u[size_t{band.first_channel} * n], inverse.data(), s.ordered.data());
        } else {
            const Codebook book = codebook_of(fit, bits);
            for (size_t i = 0; i < band.n_channels; ++i)
                quantize(&s.u[(band.first_channel + i) * n], n, book, inverse, &s.codes[i * n]);
            order_codes(layout, band, s.codes.data(), n, QuadAxis::kTokens, s.ordered.data());
        }
        pack_codes(band.bits, {s.ordered.data(), band_codes(layout, band)}, packed + band.codes_offset);
    }
}

}  // namespace kvaq
