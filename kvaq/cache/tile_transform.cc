// Sealing of transform codecs. Inner loops run over the tile's tokens, so that the compiler vectorizes them without changing a
// sum's order: the same bytes on every machine.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kvaq/cache/tile.h"
#include "kvaq/quant/bit_planes.h"
#include "kvaq/quant/hadamard.h"
#include "kvaq/quant/transform.h"

namespace kvaq {
namespace {

constexpr size_t kMaxDim = 512;
constexpr size_t kMaxTile = 128;
/// Gains tried around the one that fits the token's energy, in 16ths of an octave.
constexpr std::array kTries = {0, -8, -4, 4, 8, 12};

struct Scratch {
    alignas(64) std::array<float, kMaxDim * kMaxTile> x;        // [channel][token]
    alignas(64) std::array<float, kMaxDim * kMaxTile> u;        // levels at gain 1, [codec channel][token]
    alignas(64) std::array<uint8_t, kMaxDim * kMaxTile> codes;  // [codec channel][token]
    alignas(64) std::array<uint8_t, kMaxDim * kMaxTile> best;
    alignas(64) std::array<uint8_t, kMaxDim * kMaxTile> ordered;
};

using Row = std::array<float, kMaxTile>;

/// Codes of one channel at the given inverse gains and the squared error in levels, times weight * gain^2, added to `error`.
void quantize_channel(const float* u, size_t n, const std::vector<int8_t>* levels, const Row& gain, const Row& inverse,
                      float weight, uint8_t* codes, Row& error) noexcept {
    alignas(64) Row v;
    alignas(64) Row level;
    for (size_t t = 0; t < n; ++t) v[t] = u[t] * inverse[t];
    if (levels == nullptr) {  // 8 bits
        for (size_t t = 0; t < n; ++t) {
            const float clamped = std::min(std::max(v[t], -128.0F), 127.0F);
            level[t] = std::nearbyint(clamped);
            codes[t] = static_cast<uint8_t>(static_cast<int>(level[t]) + 128);
        }
    } else {
        alignas(64) std::array<int32_t, kMaxTile> code = {};
        for (size_t t = 0; t < n; ++t) level[t] = static_cast<float>((*levels)[0]);
        for (size_t k = 1; k < levels->size(); ++k) {
            const auto low = static_cast<float>((*levels)[k - 1]);
            const auto high = static_cast<float>((*levels)[k]);
            const float middle = 0.5F * (low + high);
            for (size_t t = 0; t < n; ++t) {
                code[t] += v[t] > middle ? 1 : 0;
                level[t] = v[t] > middle ? high : level[t];
            }
        }
        for (size_t t = 0; t < n; ++t) codes[t] = static_cast<uint8_t>(code[t]);
    }
    for (size_t t = 0; t < n; ++t) {
        const float e = (v[t] - level[t]) * gain[t];
        error[t] += weight * e * e;
    }
}

}  // namespace

void encode_transform_tile(const TileLayout& layout, const float* x, std::byte* packed) noexcept {
    thread_local Scratch s;
    const TransformFit& fit = *layout.spec.transform->fit;
    const size_t n = layout.tile_tokens;
    const size_t dim = layout.head_dim;
    std::array<float, kMaxDim> row;
    for (size_t t = 0; t < n; ++t) {
        std::copy_n(x + t * dim, dim, row.data());
        if (fit.hadamard) hadamard_transform(row.data(), dim);
        for (size_t c = 0; c < dim; ++c) s.x[c * n + t] = row[c];
    }
    size_t n_coded = 0;
    for (const Band& band : layout.bands) {
        if (static_cast<int>(band.bits) != 0) n_coded = size_t{band.first_channel} + band.n_channels;
    }
    for (size_t i = 0; i < n_coded; ++i) {
        float* u = &s.u[i * n];
        std::fill_n(u, n, 0.0F);
        if (fit.hadamard) std::copy_n(&s.x[i * n], n, u);
        for (size_t j = 0; j < dim && !fit.hadamard; ++j) {
            const auto weight = static_cast<float>(fit.at(i, j));
            for (size_t t = 0; t < n; ++t) u[t] += weight * s.x[j * n + t];
        }
        const float inverse = fit.scale[i] > 0 ? 1.0F / fit.scale[i] : 0.0F;
        for (size_t t = 0; t < n; ++t) u[t] = (u[t] * fit.row_scale[i] - fit.offset[i]) * inverse;
    }
    // Reverse water-filling spends bits until all channels' errors cost the same: an error of one step weighs about 4^bits.
    const auto codebook = [&](const Band& band) {
        return static_cast<int>(band.bits) == 8 ? nullptr : &fit.levels[static_cast<size_t>(band.bits)];
    };
    Row energy = {};
    float expected = 0;
    for (const Band& band : layout.bands) {
        const int bits = static_cast<int>(band.bits);
        if (bits == 0) continue;
        for (size_t i = band.first_channel; i < size_t{band.first_channel} + band.n_channels; ++i) {
            for (size_t t = 0; t < n; ++t) energy[t] += s.u[i * n + t] * s.u[i * n + t];
            expected += kLevelsPerSigma * kLevelsPerSigma;
        }
    }
    std::array<int, kMaxTile> base = {};
    std::array<int, kMaxTile> chosen = {};
    Row least;
    least.fill(std::numeric_limits<float>::infinity());
    for (size_t t = 0; t < n; ++t) {
        const float ratio = expected > 0 ? energy[t] / expected : 1.0F;
        base[t] = 128 + (ratio > 0 ? static_cast<int>(std::lround(8.0F * std::log2(ratio))) : -128);
    }
    for (const int step : kTries) {
        Row gain;
        Row inverse;
        Row error = {};
        std::array<uint8_t, kMaxTile> code = {};
        for (size_t t = 0; t < n; ++t) {
            code[t] = static_cast<uint8_t>(std::clamp(base[t] + step, 0, 255));
            gain[t] = transform_gain(code[t]);
            inverse[t] = 1.0F / gain[t];
        }
        for (const Band& band : layout.bands) {
            const int bits = static_cast<int>(band.bits);
            if (bits == 0) continue;
            const float weight = std::ldexp(1.0F, 2 * bits);
            for (size_t i = band.first_channel; i < size_t{band.first_channel} + band.n_channels; ++i) {
                quantize_channel(&s.u[i * n], n, codebook(band), gain, inverse, weight, &s.codes[i * n], error);
            }
        }
        for (size_t t = 0; t < n; ++t) {
            if (!(error[t] < least[t])) continue;
            least[t] = error[t];
            chosen[t] = code[t];
            for (size_t i = 0; i < n_coded; ++i) s.best[i * n + t] = s.codes[i * n + t];
        }
    }
    for (size_t t = 0; t < n; ++t) packed[layout.gain_offset + t] = static_cast<std::byte>(chosen[t]);
    for (const Band& band : layout.bands) {
        if (static_cast<int>(band.bits) == 0) continue;
        std::fill_n(s.ordered.data(), band_codes(layout, band), uint8_t{0});
        for (size_t i = 0; i < band.n_channels; ++i) {
            for (size_t t = 0; t < n; ++t)
                s.ordered[code_index(layout, band, t, i)] = s.best[(band.first_channel + i) * n + t];
        }
        pack_codes(band.bits, {s.ordered.data(), band_codes(layout, band)}, packed + band.codes_offset);
    }
}

}  // namespace kvaq
